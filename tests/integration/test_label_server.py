# SPDX-License-Identifier: Apache-2.0
"""A real MONAI Label server, from the outside.

It runs in an environment of its own (scripts/install_label.sh), whose Python the environment variable
MONAI_RDAD_LABEL_PYTHON names; scripts/test_label.sh does both. Without the variable the tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_rdad.data.phantoms import phantom_slice
from monai_rdad.handlers import load_settings
from monai_rdad.visualize.writer import read_map

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.skipif(
        "MONAI_RDAD_LABEL_PYTHON" not in os.environ,
        reason="MONAI_RDAD_LABEL_PYTHON names no environment with MONAI Label",
    ),
    pytest.mark.xdist_group("label_server"),
]

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "scrd" / "configs"
NORMALS, LESIONS = 12, 3


def bundle(*names: str, **overrides: Any) -> None:
    workflow = ConfigWorkflow(
        workflow_type="infer" if names == ("inference",) else "train",
        config_file=[str(CONFIGS / f"{name}.yaml") for name in names],
        logging_file=False,
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """Phantom slices, one of them a JPEG, a volume with an oblique affine, and a file that is no image."""
    folder = tmp_path_factory.mktemp("studies")
    for i in range(NORMALS + LESIONS):
        image, _ = phantom_slice(np.random.default_rng(i), lesion=i >= NORMALS, size=80)
        name = f"normal_{i:02}.png" if i < NORMALS else f"lesion_{i:02}.png"
        Image.fromarray(image).save(folder / name)
    Image.fromarray(phantom_slice(np.random.default_rng(99), lesion=False, size=80)[0]).save(folder / "photo.jpeg")
    slices = [phantom_slice(np.random.default_rng(100 + k), lesion=k == 2, size=48)[0] for k in range(5)]
    affine = np.array([[0.1, 0.9, 0, -20], [0, 0.1, -0.9, 30], [-4.0, 0, 0.2, 10], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.stack(slices).astype(np.float32), affine), folder / "scan.nii.gz")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def model(studies, tmp_path_factory) -> Path:
    """A network of two epochs, calibrated."""
    folder = tmp_path_factory.mktemp("model")
    items = [{"image": f"normal_{i:02}.png", "label": 0} for i in range(NORMALS)]
    manifest = {"training": items[:8], "calibration": items[8:]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    options: dict[str, Any] = {"dataset_dir": str(studies), "manifest": str(folder / "manifest.json")}
    options |= {"ckpt_dir": str(folder), "output_dir": str(folder / "eval"), "tracking_uri": "none"}
    options |= {"max_epochs": 2, "image_size": 64, "batch_size": 4}
    bundle("train", **options)
    bundle("train", "evaluate", "calibrate", **options)
    return folder


class Server:
    """A server's REST interface, by the standard library."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def __call__(self, method: str, path: str, body: Any = None, **fields: Any) -> Any:
        """JSON or bytes of an answer; ``fields`` are sent as a form, of texts and of files (name, content)."""
        headers = {}
        data = None
        if fields:
            boundary = uuid.uuid4().hex
            headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
            parts = []
            for key, value in fields.items():
                name, content = value if isinstance(value, tuple) else (None, str(value).encode())
                file = f'; filename="{name}"' if name else ""
                head = f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"{file}\r\n\r\n'
                parts.append(head.encode() + content + b"\r\n")
            data = b"".join(parts) + f"--{boundary}--\r\n".encode()
        elif body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=300) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers["Content-Type"] else content

    def fails(self, method: str, path: str, **fields: Any) -> tuple[int, str]:
        """Status and text of an answer that is an error."""
        with pytest.raises(urllib.error.HTTPError) as caught:
            self(method, path, **fields)
        return caught.value.code, caught.value.read().decode()

    def until_done(self, task: str, seconds: float = 400) -> dict[str, Any]:
        """A background task's last state, when no task of its kind runs any more."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            states = self("GET", f"/{task}/?all=true")
            if all(state["status"] not in ("SUBMITTED", "RUNNING") for state in states):
                return dict(states[-1])
            time.sleep(1)
        raise AssertionError(f"{task} did not end; the server said: {self.log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def server(studies, model, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python = os.environ["MONAI_RDAD_LABEL_PYTHON"]
    command = [python, "-m", "monai_rdad.apps.cli", "label", "start", "--studies", str(studies), "--port", str(port)]
    command += ["--models", f"scrd={model}", "--device", "cpu", "--work", str(work)]
    # no network: whoever tried to reach one would fail at once
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    log = work / "server.log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=file, stderr=subprocess.STDOUT)
    found = Server(f"http://127.0.0.1:{port}", log)
    try:
        end = time.monotonic() + 200
        while True:
            try:
                found("GET", "/info/")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.5)
        yield found
    finally:
        process.terminate()
        process.wait(30)
        if "MONAI_RDAD_LABEL_LOG" in os.environ:
            shutil.copy(log, os.environ["MONAI_RDAD_LABEL_LOG"])


@pytest.fixture(scope="module")
def reference(studies, model, tmp_path_factory) -> Path:
    """Maps of the bundle's own inference."""
    out = tmp_path_factory.mktemp("reference")
    inputs = out / "inputs"
    inputs.mkdir()
    for name in ("lesion_12.png", "photo.jpeg", "scan.nii.gz"):
        shutil.copy(studies / name, inputs)
    bundle("inference", ckpt_dir=str(model), input=str(inputs), output_dir=str(out), dataset_dir=".")
    return out


def test_info_names_what_there_is(server):
    info = server("GET", "/info/")
    assert set(info["models"]) == {"scrd", "scrd_heatmap"}
    assert info["models"]["scrd"]["labels"] == {"anomaly": 1} and info["labels"] == ["anomaly"]
    assert set(info["scoring"]) == {"scrd_anomaly"} and "scrd_anomaly" in info["strategies"]
    assert info["trainers"]["scrd"]["config"]["max_epochs"] == 2


@pytest.mark.parametrize("name", ["lesion_12", "photo"])
def test_picture(server, reference, tmp_path, name):
    (tmp_path / "map.png").write_bytes(server("POST", f"/infer/scrd_heatmap?image={name}&output=image"))
    (tmp_path / "label.png").write_bytes(server("POST", f"/infer/scrd?image={name}&output=image"))
    scores = server("POST", f"/infer/scrd?image={name}&output=json")
    values, expected = read_map(tmp_path / "map.png"), read_map(reference / f"{name}_map.png")
    np.testing.assert_allclose(values, expected, atol=1e-5 + 6 / 65535)  # one step of 16 bits
    label = np.asarray(Image.open(tmp_path / "label.png"))
    assert label.shape == (80, 80) and label.dtype == np.uint8
    clear = abs(values - scores["threshold"]) > 2e-4  # by more than the steps of 16 bits
    np.testing.assert_array_equal(label[clear] == 1, values[clear] >= scores["threshold"])
    assert scores["threshold_source"] == "calibration_maximum" and scores["label_names"] == {"anomaly": 1}
    assert 1 / 5 <= scores["p_value"] <= 1 and scores["abnormal"] is False and "slice_scores" not in scores


def test_volume(server, studies, reference, tmp_path):
    (tmp_path / "map.nii.gz").write_bytes(server("POST", "/infer/scrd_heatmap?image=scan&output=image"))
    (tmp_path / "label.nii.gz").write_bytes(
        server("POST", "/infer/scrd?image=scan&output=image", params=json.dumps({"threshold": 0.5}))
    )
    scores = server("POST", "/infer/scrd?image=scan&output=json")
    expected = nibabel.load(reference / "scan_map.nii.gz")
    found, label = nibabel.load(tmp_path / "map.nii.gz"), nibabel.load(tmp_path / "label.nii.gz")
    np.testing.assert_allclose(found.get_fdata(), expected.get_fdata(), atol=1e-5)
    for image in (found, label):
        np.testing.assert_allclose(image.affine, nibabel.load(studies / "scan.nii.gz").affine, atol=1e-6)
    assert label.get_data_dtype() == np.uint8 and found.get_data_dtype() == np.float32
    assert set(np.unique(label.get_fdata())) <= {0, 1}
    # the calibration is of pictures: it says nothing about a volume
    assert "p_value" not in scores and scores["threshold_source"] == "image"
    assert scores["slice_axis"] == 0 and len(scores["slice_scores"]) == 5
    assert max(scores["slice_scores"]) == pytest.approx(scores["anomaly_score"], abs=1e-6)


def test_slicer_asks_for_nrrd(server, studies, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    params = json.dumps({"result_extension": ".nrrd", "result_dtype": "uint8"})
    (tmp_path / "label.nrrd").write_bytes(server("POST", "/infer/scrd?image=lesion_12&output=image", params=params))
    assert sitk.ReadImage(str(tmp_path / "label.nrrd")).GetSize() == (80, 80, 1)
    status, text = server.fails("POST", "/infer/scrd?image=scan&output=image", params=params)
    assert status == 422 and "right angles" in text  # the phantom volume is oblique


def test_errors_say_what_is_wrong(server):
    status, text = server.fails("POST", "/infer/scrd?image=broken&output=json")
    assert status == 422 and "cannot be read" in text
    status, text = server.fails("POST", "/infer/scrd?image=nobody&output=json")
    assert status == 404 and "no image" in text


def test_reading_then_training(server, studies, model):
    """The most anomalous image first, images marked normal, training on them, and the new version in use."""
    server.until_done("scoring")  # it starts by itself with the server
    server("POST", "/scoring/scrd_anomaly")
    assert '"scored": 0' in "\n".join(server.until_done("scoring")["details"])
    objects = server("GET", "/datastore/?output=all")["objects"]
    scores = {name: o["image"]["info"]["anomaly"]["scrd"] for name, o in objects.items()}
    assert scores.pop("broken")["score"] is None
    assert set(scores) == {Path(name.name).name.split(".")[0] for name in studies.glob("*.*")} - {
        "broken",
        "datastore_v2",
        "",
    }
    ranked = sorted(scores, key=lambda name: -scores[name]["score"])
    served = [server("POST", "/activelearning/scrd_anomaly")["id"] for _ in range(2)]
    assert served == ranked[:2]

    # read: one image abnormal, by a label map that is not empty; all normal slices normal, by either way
    mask = np.zeros((80, 80), np.uint8)
    for i in range(NORMALS):
        name = f"normal_{i:02}"
        if i % 2:
            server("PUT", f"/datastore/image/info?image={name}", info=json.dumps({"normal": True}))
        else:
            server("PUT", f"/datastore/label?image={name}", params="{}", label=("l.png", png(mask)))
    mask[10:20, 10:20] = 1
    server("PUT", "/datastore/label?image=lesion_12", params="{}", label=("l.png", png(mask)))
    left = {"lesion_13", "lesion_14", "photo", "scan", "broken"}
    assert {server("POST", "/activelearning/scrd_anomaly")["id"] for _ in range(len(left))} == left

    server("POST", "/train/scrd", body={"max_epochs": 1})
    state = server.until_done("train")
    assert state["status"] == "ERROR" and "at least 20" in "\n".join(state["details"])
    assert not (model / "label").exists()

    server("POST", "/train/scrd", body={"max_epochs": 1, "min_images": NORMALS})
    state = server.until_done("train")
    assert state["status"] == "DONE", "\n".join(state["details"])
    (version,) = (model / "label").glob("2*")
    assert load_settings(version)["started_from"] == "0" and (version / "calibration.json").is_file()
    manifest = json.loads((version / "manifest.json").read_text())
    names = {Path(item["image"]).stem for split in manifest.values() for item in split}
    assert names == {f"normal_{i:02}" for i in range(NORMALS)}
    assert {split: len(items) for split, items in manifest.items()} == {"training": 9, "calibration": 3}
    assert server("POST", "/infer/scrd?image=lesion_12&output=json")["model_version"] == version.name
    server.until_done("scoring")


def test_cancelled_training_leaves_the_model_as_it_was(server, model):
    before = server("POST", "/infer/scrd?image=lesion_12&output=json")
    server("POST", "/train/scrd", body={"max_epochs": 1000, "min_images": NORMALS})
    end = time.monotonic() + 200
    while not list((model / "label").glob(".writing-*/*/manifest.json")):
        assert time.monotonic() < end, server("GET", "/train/")
        time.sleep(0.5)
    server("DELETE", "/train/")
    assert server.until_done("train")["status"] == "STOPPED"
    assert server("POST", "/infer/scrd?image=lesion_12&output=json") == before


def png(mask: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()
