# SPDX-License-Identifier: Apache-2.0
"""Exported detectors compute what their bundle computes, say what they are, and run without this package."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from monai_rdad.apps import export_files, exporting
from monai_rdad.apps.bundle import method_names, open_bundle, run_bundle
from monai_rdad.apps.cli import main
from monai_rdad.apps.trained_bundle import TrainedBundle
from monai_rdad.data.phantoms import phantom_slice
from monai_rdad.handlers import Calibration, load_calibration
from monai_rdad.handlers.trained import save_trained
from monai_rdad.inferers import Detector
from monai_rdad.metrics import AreaRisk, ConformalScores
from monai_rdad.transforms import NormalizeByPreset, ReadImage
from monai_rdad.utils import file_sha256
from monai_rdad.visualize.writer import read_map

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "onnx_inference.py"
METHODS = [*method_names(), pytest.param("dnp_vit", marks=pytest.mark.slow)]
TINY: dict[str, Any] = {"image_size": 64, "weights": "none", "tracking_uri": "none", "score_mode": "top"}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of phantoms of different sizes, one of them with 16 bits."""
    folder = tmp_path_factory.mktemp("pictures")
    items: dict[str, list[dict[str, Any]]] = {"training": [], "testing": []}
    for i, size in enumerate((80, 80, 80, 96, 128, 64)):
        split = "training" if i < 3 else "testing"
        pixels = phantom_slice(np.random.default_rng(i), lesion=False, size=size)[0][:, 8:]
        (folder / split).mkdir(exist_ok=True)
        Image.fromarray(pixels if i != 4 else pixels.astype(np.uint16) * 201).save(folder / split / f"{i}.png")
        items[split].append({"image": f"{split}/{i}.png", "label": 0})
    (folder / "manifest.json").write_text(json.dumps(items))
    return folder


def prepare(method: str, root: Path, pictures: Path) -> str:
    """Leave what a training leaves, of a network that was never trained; returns the bundle's name."""
    bundle = method.partition("_vit")[0]
    extra = {"encoder": "vit_small_dinov2_reg4", "image_size": 70, "blocks": 2} if bundle != method else {}
    overrides = TINY | {"bundle_root": str(root), "dataset_dir": str(pictures), **extra}
    overrides["manifest"] = str(pictures / "manifest.json")
    parser = open_bundle(bundle, "train", overrides).parser
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    record = {"manifest": overrides["manifest"], "dataset_dir": str(pictures), "manifest_sha256": "0" * 64}
    save_trained(root / "models", network, parser.get_parsed_content("settings"), record)
    return bundle


def calibrate(bundle: str, root: Path) -> Calibration:
    """Scores around those of the untrained network, of patients with one to three images, from two scanners."""
    parser = open_bundle(bundle, "infer", {"bundle_root": str(root)}).parser
    rng = np.random.default_rng(0)
    scores, areas = {}, {}
    for name, n in (("", 60), ("a", 40), ("b", 20)):
        groups = [str(g) for g in rng.integers(0, n // 2, n)]
        scores[name] = ConformalScores(rng.uniform(0.5, 3.5, n), groups)
        fractions = tuple(np.linspace(1, 0, 30) ** 3)
        areas[name] = AreaRisk(tuple(np.linspace(0.1, 3, 30)), fractions, scores[name].n_groups)
    made_with = parser.get_parsed_content("score_settings")
    calibration = Calibration(scores, areas, False, file_sha256(root / "models" / "model.pt"), made_with)
    calibration.save(root / "models")
    return calibration


def options(root: Path, pictures: Path, bundle: str) -> list[str]:
    support = ["--support", str(pictures / "training")] if bundle == "d24fad" else []
    return ["--out", str(root), "--results", str(root / "out"), *support]


@pytest.fixture(scope="module")
def rd4ad(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a network and its calibration, and of nothing exported."""
    root = tmp_path_factory.mktemp("rd4ad")
    calibrate(prepare("rd4ad", root, pictures), root)
    return root


def load_metadata(path: Path) -> dict[str, Any]:
    if path.suffix == ".ts":
        extra = {"metadata.json": ""}
        torch.jit.load(path, _extra_files=extra)
        return json.loads(extra["metadata.json"])
    return {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}


@pytest.mark.parametrize("method", METHODS)
def test_both_formats_are_the_bundle(
    method: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = prepare(method, tmp_path, pictures)
    assert main(["export", bundle, *options(tmp_path, pictures, bundle)]) == 0
    assert "3 testing images" in capsys.readouterr().out
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.ts", "verification.json"}
    verification = json.loads((out / "verification.json").read_text())
    metadata = load_metadata(out / "model.onnx")
    assert metadata == load_metadata(out / "model.ts")
    assert metadata["method"] == bundle and metadata["calibration"] is None
    assert metadata["data"] == {"manifest": "manifest.json", "manifest_sha256": "0" * 64}
    assert metadata["verification"] == {k: v for k, v in verification.items() if k != "files"}
    assert str(tmp_path) not in json.dumps(metadata) and str(pictures) not in json.dumps(metadata)
    if bundle == "d24fad":
        expected = {path.name: file_sha256(path) for path in (pictures / "training").iterdir()}
        assert metadata["support"]["images"] == expected
    session = onnxruntime.InferenceSession(out / "model.onnx")
    scripted = torch.jit.load(out / "model.ts")
    size = metadata["size"]
    # sizes and batches that neither the trace nor the verification had; the same by the usual operators
    items = exporting.Images.find(tmp_path / "models", number=1).items
    support = pictures / "training" if bundle == "d24fad" else None
    network = TrainedBundle(bundle, items, tmp_path, tmp_path / "models", support).network
    for shape in ((3, 1, 50, 111), (1, 1, 200, 70)):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        found = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            for a, b in zip(found, scripted(image), strict=True):
                np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=2e-5)
            small = interpolate(image.double(), (size, size), mode="bilinear", antialias=True).float()
            model_map = network(torch.floor(small * 255 + 0.501) / 255)
        full = interpolate(model_map, shape[2:], mode="bilinear", antialias=True)
        np.testing.assert_allclose(found[0], full.numpy(), rtol=0, atol=2e-5)
        ordered = model_map.flatten(1).sort(1, descending=True).values
        top = ordered[:, : round(metadata["score"]["fraction"] * size**2)].mean(1)
        np.testing.assert_allclose(found[1], top.numpy(), rtol=0, atol=2e-5)
        np.testing.assert_allclose(found[2], model_map.numpy(), rtol=0, atol=2e-5)


def test_example_needs_nothing_else_and_decides_as_the_bundle(rd4ad: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = ["export", "rd4ad", "--out", str(rd4ad), "--results", str(tmp_path), "--format", "onnx"]
    assert main(arguments) == 0
    run_bundle("rd4ad", "infer", {
        "ckpt_dir": str(rd4ad / "models"), "output_dir": str(tmp_path / "bundle"), "input": str(pictures / "testing"),
        "precision": "fp32", "device": "$torch.device('cpu')", "stratum": "b", "alpha": 0.2, "area_alpha": 0.3,
    })  # fmt: skip
    with (tmp_path / "bundle" / "scores.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    block = (
        "import importlib.metadata as m, runpy, sys\n"
        "allowed = {'numpy', 'PIL', 'onnxruntime', 'flatbuffers', 'google', 'packaging'}\n"
        "blocked = set(m.packages_distributions()) - allowed - set(sys.stdlib_module_names) | {'monai_rdad'}\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in blocked: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    for name, row in rows.items():
        done = subprocess.run(
            [sys.executable, "-c", block, EXAMPLE, tmp_path / "model.onnx", pictures / "testing" / name,
             "--map", tmp_path / "map.png", "--stratum", "b", "--alpha", "0.2", "--area-alpha", "0.3"],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["score"] == pytest.approx(float(row["score"]), abs=1e-5)
        assert found["p_value"] == pytest.approx(float(row["p_value"]))
        assert found["abnormal"] == int(row["abnormal"])
        assert found["area"] == pytest.approx(float(row["area"]), abs=1e-3)
        expected = read_map(tmp_path / "bundle" / row["map"])
        np.testing.assert_allclose(read_map(tmp_path / "map.png"), expected, rtol=0, atol=2e-4)
    assert {row["abnormal"] for row in rows.values()} <= {"0", "1"} and len(rows) == 3


def test_pictures_and_volumes_in_torchscript(rd4ad: Path, pictures: Path, tmp_path: Path) -> None:
    slices = [phantom_slice(np.random.default_rng(k), lesion=False, size=48)[0] for k in range(10)]
    affine = np.array([[0.1, 0.9, 0, -20], [0, 0.1, -0.9, 30], [-4.0, 0, 0.2, 10], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.stack(slices).astype(np.float32)[:, ::-1], affine), tmp_path / "scan.nii.gz")
    arguments = ["export", "rd4ad", "--out", str(rd4ad), "--results", str(tmp_path / "out")]
    images = ["--images", str(tmp_path / "scan.nii.gz"), str(pictures / "testing")]
    assert main([*arguments, "--format", "torchscript", *images]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.ts", "verification.json"}
    metadata = load_metadata(tmp_path / "out" / "model.ts")
    assert metadata["verification"]["images"] == 4 and metadata["verification"]["largest"]["torchscript"]["map"] < 1e-5
    assert metadata["calibration"] == json.loads((rd4ad / "models" / "calibration.json").read_text())


def test_a_file_that_differs_is_not_kept(
    rd4ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "rd4ad", "--out", str(rd4ad), "--format", "torchscript", "--results"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.ts").write_bytes(b"before")
    monkeypatch.setattr(TrainedBundle, "detector", lambda self: Detector(self.network, self.size, "max").eval())
    for name, left in (("new", []), ("old", ["model.ts"])):
        assert main([*arguments, str(tmp_path / name)]) == 1
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and "differ from the bundle by up to" in captured.err
        assert "score" in captured.out  # the table
        assert [path.name for path in (tmp_path / name).iterdir()] == left
    assert (tmp_path / "old" / "model.ts").read_bytes() == b"before"


def test_missing_libraries_are_one_line(
    rd4ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_files, "find_spec", lambda name: None if name == "onnxscript" else object())
    arguments = ["export", "rd4ad", "--out", str(rd4ad), "--results", str(tmp_path / "out")]
    assert main(arguments) == 1
    expected = "monai-rdad: ONNX needs onnxscript: pip install onnx onnxscript onnxruntime\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rd4add"], "There is no bundle 'rd4add'. Did you mean 'rd4ad'?"),
        (["rd4ad", "--out", "nowhere"], "There is no trained network in nowhere"),
        (["rd4ad", "--tolerance", "0"], "The tolerance is 0.0"),
        (["rd4ad", "--number", "0"], "at least 1 image"),
        (["rd4ad", "--images", "nowhere.png"], "nowhere.png"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, rd4ad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [] if "--out" in arguments else ["--out", str(rd4ad)]
    assert main(["export", *arguments, *place, "--results", str(tmp_path / "out"), "--format", "torchscript"]) == 1
    shown = capsys.readouterr().err
    assert message in shown and shown.startswith("monai-rdad: ") and shown.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_images_are_those_of_the_training_or_phantoms(
    rd4ad: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exporting.Images.find(rd4ad / "models", number=2)
    assert [item["name"] for item in found.items] == ["testing/3.png", "testing/5.png"]
    assert "2 testing images" in found.description
    save_trained(tmp_path, torch.nn.Linear(1, 1), {}, {"manifest": str(tmp_path / "gone.json")})
    monkeypatch.setattr(exporting, "phantom_dataset", lambda: pictures)
    found = exporting.Images.find(tmp_path)
    assert len(found.items) == 3 and "phantoms, because the manifest of the training is not here" in found.description


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnx_inference", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(max_examples=50, deadline=None)
@given(
    score=st.floats(0, 4, allow_subnormal=False), alpha=st.floats(0.01, 0.99), stratum=st.sampled_from(["", "a", "b"])
)
def test_p_values_and_thresholds_of_the_example(
    example: ModuleType, rd4ad: Path, score: float, alpha: float, stratum: str
) -> None:
    calibration = load_calibration(rd4ad / "models", required=True)
    assert calibration is not None
    content = json.loads((rd4ad / "models" / "calibration.json").read_text())
    known = float(calibration.scores[stratum].scores[3])
    for value in (score, known):
        assert example.p_value(value, content, stratum) == pytest.approx(calibration.p_value(value, stratum))
    assert example.area_threshold(content, alpha, stratum) == calibration.area_threshold(alpha, stratum)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "I;16", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_example_reads_pictures_as_the_bundles_do(
    example: ModuleType, mode: str, channels: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    if mode in ("I;16", "F"):
        image = Image.fromarray(rng.integers(0, 4000, (20, 30)).astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        image = Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).convert(mode)
    path = tmp_path / f"image.{'tif' if mode == 'F' else 'png'}"
    image.save(path)
    pixels, expected = example.read_picture(str(path), channels), ReadImage(channels)(path)
    assert pixels.dtype == expected.numpy().dtype
    np.testing.assert_array_equal(pixels, expected.numpy())
    for preset in ("auto", "percentile", "ct"):
        rule = {"intensity": preset, "window": [100, 150], "percentiles": [0.5, 99.5]}
        found = example.normalize(pixels, rule)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, NormalizeByPreset(preset, (100, 150))(expected).numpy())
