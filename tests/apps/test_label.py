# SPDX-License-Identifier: Apache-2.0
"""The MONAI Label app without MONAI Label; tests/integration has the server."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_rdad.apps.cli import main
from monai_rdad.apps.label.detector import Detector, Prediction, Versions, bundle_folder
from monai_rdad.apps.label.reading import next_image, normal_images, score_images, unread, unscored, verdict
from monai_rdad.apps.label.results import result_json, result_suffix, write_heat_map, write_label_map
from monai_rdad.apps.label.training import train_version
from monai_rdad.data.phantoms import phantom_slice
from monai_rdad.handlers import load_calibration, load_settings
from monai_rdad.utils import root_cause
from monai_rdad.visualize.writer import read_map

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "scrd" / "configs"
OBLIQUE = np.array([[0.1, 0.9, 0, -20], [0, 0.1, -0.9, 30], [-4.0, 0, 0.2, 10], [0, 0, 0, 1]])


class MemoryStore:
    """A datastore as MONAI Label has them, in memory."""

    def __init__(self, *images: str) -> None:
        self.infos: dict[str, dict[str, Any]] = {name: {} for name in images}
        self.labels: dict[str, str] = {}

    def list_images(self):
        return list(self.infos)

    def get_unlabeled_images(self):
        return [name for name in self.infos if name not in self.labels]

    def get_image_info(self, image_id):
        return json.loads(json.dumps(self.infos[image_id]))  # a copy of what a file can hold

    def update_image_info(self, image_id, info):
        self.infos[image_id].update(info)

    def get_image_uri(self, image_id):
        return f"/studies/{image_id}.png"

    def get_label_by_image_id(self, image_id, tag):
        return image_id if tag == "final" and image_id in self.labels else ""

    def get_label_uri(self, label_id, label_tag):
        return self.labels[label_id]

    def refresh(self):
        pass


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
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(8):
        image, _ = phantom_slice(np.random.default_rng(i), lesion=i == 7, size=80)
        Image.fromarray(image[:, :72]).save(folder / f"{i}.png")
    slices = [phantom_slice(np.random.default_rng(20 + k), lesion=k == 1, size=48)[0] for k in range(4)]
    nibabel.save(nibabel.Nifti1Image(np.stack(slices).astype(np.float32), OBLIQUE), folder / "scan.nii.gz")
    return folder


@pytest.fixture(scope="module")
def model(images, tmp_path_factory) -> Path:
    """One epoch of SCRD at 64 px, without calibration."""
    folder = tmp_path_factory.mktemp("model")
    manifest = {"training": [{"image": f"{i}.png", "label": 0} for i in range(4)]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    options = {"dataset_dir": str(images), "manifest": str(folder / "manifest.json"), "tracking_uri": "none"}
    options |= {"ckpt_dir": str(folder), "output_dir": str(folder / "eval")}
    bundle("train", **options, max_epochs=1, image_size=64, batch_size=4)
    (folder / "checkpoint.pt").unlink()
    return folder


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """The model in a folder of the test's own."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def prediction(values: Any, affine: Any = None, threshold: float = 0.5, **scores: Any) -> Prediction:
    scores = {"anomaly_score": 1.0} | scores
    return Prediction(np.asarray(values, np.float32), affine, 6.0, threshold, "request", scores, "0")


# the detector


def test_maps_are_those_of_the_bundle(model, images, tmp_path):
    for name in ("7.png", "scan.nii.gz"):
        shutil.copy(images / name, tmp_path)
    bundle("inference", ckpt_dir=str(model), input=str(tmp_path), output_dir=str(tmp_path / "out"), dataset_dir=".")
    detector = Detector(model, device="cpu")
    picture, volume = detector(images / "7.png"), detector(images / "scan.nii.gz")
    assert picture.values.shape == (80, 72) and picture.affine is None
    np.testing.assert_allclose(picture.values, read_map(tmp_path / "out" / "7_map.png"), atol=6 / 65535)
    expected = nibabel.load(tmp_path / "out" / "scan_map.nii.gz")
    np.testing.assert_allclose(volume.values, expected.get_fdata(), atol=1e-5)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)
    rows = dict(line.split(",")[:2] for line in (tmp_path / "out" / "scores.csv").read_text().splitlines()[1:])
    assert picture.scores["anomaly_score"] == pytest.approx(float(rows["7.png"]), abs=1e-5)
    assert volume.scores["anomaly_score"] == pytest.approx(float(rows["scan.nii.gz"]), abs=1e-5)


def test_slice_scores_are_in_the_order_of_the_file(model, images, tmp_path):
    detector = Detector(model, device="cpu")
    scores = detector(images / "scan.nii.gz").scores
    assert scores["slice_axis"] == 0 and len(scores["slice_scores"]) == 4
    source = nibabel.load(images / "scan.nii.gz")
    turned = OBLIQUE @ np.array([[-1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(source.get_fdata(dtype=np.float32)[::-1], turned), tmp_path / "turned.nii.gz")
    again = detector(tmp_path / "turned.nii.gz").scores
    np.testing.assert_allclose(again["slice_scores"], scores["slice_scores"][::-1], atol=1e-6)
    assert len(set(scores["slice_scores"])) == 4


def test_without_calibration_the_highest_percent_is_marked(model, images):
    found = Detector(model, device="cpu")(images / "7.png")
    assert found.threshold_source == "image" and 0.005 < found.label.mean() < 0.02
    assert set(found.scores) == {"anomaly_score"}
    asked = Detector(model, device="cpu")(images / "7.png", threshold=0.0)
    assert asked.threshold_source == "request" and asked.label.all()


def test_broken_images_are_named(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(RuntimeError) as caught:
        Detector(model, device="cpu")(tmp_path / "broken.png")
    assert "broken.png: cannot be read" in str(root_cause(caught.value))


def test_bundles_are_found_by_method():
    assert (bundle_folder("rd4ad") / "configs" / "train.yaml").is_file()
    with pytest.raises(ValueError, match="no bundle of the method 'nothing'"):
        bundle_folder("nothing")


# results


def test_label_map_and_heat_map_of_a_picture(tmp_path):
    found = prediction([[0.1, 0.5], [5.9, 0.4]])
    assert result_suffix(found) == ".png"
    write_label_map(tmp_path / "label.png", found)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "label.png")), [[0, 1], [1, 0]])
    write_heat_map(tmp_path / "map.png", found)
    np.testing.assert_allclose(read_map(tmp_path / "map.png"), found.values, atol=6 / 65535)
    write_label_map(tmp_path / "label.nrrd", found)
    image = SimpleITK.ReadImage(str(tmp_path / "label.nrrd"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), [[[0, 1], [1, 0]]])


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_keep_their_place_in_space(tmp_path, suffix):
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * [0.5, 2.0, 3.0]
    affine[:3, 3] = [10, -20, 30]
    values = np.random.default_rng(1).random((3, 4, 5))
    found = prediction(values, affine)
    assert result_suffix(found) == ".nii.gz" and result_suffix(found, ".NRRD") == ".nrrd"
    write_heat_map(tmp_path / f"map{suffix}", found)
    image = SimpleITK.ReadImage(str(tmp_path / f"map{suffix}"))
    np.testing.assert_allclose(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), found.values)
    for index in ((0, 0, 0), (2, 1, 4)):
        place = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        np.testing.assert_allclose(place, (affine @ [*index, 1])[:3], atol=1e-4)


def test_formats_that_do_not_do_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Leave result_extension out"):
        result_suffix(prediction(np.zeros((2, 2, 2)), np.eye(4)), ".png")
    with pytest.raises(ValueError, match="result_extension"):
        result_suffix(prediction([[0]]), ".exe")
    with pytest.raises(ValueError, match="right angles"):
        write_label_map(tmp_path / "x.nrrd", prediction(np.zeros((2, 2, 2)), OBLIQUE))
    assert not list(tmp_path.iterdir())


def test_json_says_how_the_label_map_came_about():
    content = json.loads(json.dumps(result_json(prediction([[0.1, 0.9]], p_value=0.25, abnormal=False))))
    assert content["label_names"] == {"anomaly": 1} and content["marked"] == 0.5 and content["p_value"] == 0.25
    assert content["threshold"] == 0.5 and content["threshold_source"] == "request"


# reading


def test_verdicts(tmp_path):
    store = MemoryStore("unread", "empty", "marked", "said", "overruled", "lost")
    for name, value in (("empty", 0), ("marked", 1), ("overruled", 1)):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / f"{name}.png")
        store.labels[name] = str(tmp_path / f"{name}.png")
    store.labels["lost"] = str(tmp_path / "lost.png")
    store.infos["said"]["normal"] = True
    store.infos["overruled"]["normal"] = True
    assert [verdict(store, name) for name in store.infos] == [
        None,
        "normal",
        "abnormal",
        "normal",
        "normal",
        "abnormal",
    ]
    assert normal_images(store) == ["empty", "said", "overruled"]
    assert unread(store) == ["unread"]


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 6)), st.sampled_from(["", "label", "normal"]))))
def test_the_highest_unread_comes_first_then_all_others_once(cases):
    store = MemoryStore(*(str(i) for i in range(len(cases))))
    for i, (score, read) in enumerate(cases):
        store.infos[str(i)]["anomaly"] = {"net": {"score": score}, "other": {"score": 7 - i}}
        if read == "label":
            store.labels[str(i)] = "somewhere"
        elif read:
            store.infos[str(i)]["normal"] = True
    open_cases = {str(i): score for i, (score, read) in enumerate(cases) if not read}
    given_out = []
    for clock in range(len(open_cases)):
        found = next_image(store, "net", "strategy")
        assert found["anomaly_score"] == open_cases[found["id"]]
        given_out.append(found["id"])
        store.update_image_info(found["id"], {"strategy": {"strategy": {"ts": 1000 + clock}}})
    assert sorted(given_out) == sorted(open_cases)
    scores = [-1 if open_cases[name] is None else open_cases[name] for name in given_out]
    assert scores == sorted(scores, reverse=True)
    assert (next_image(store, "net", "strategy") or {}).get("id") == (given_out[0] if given_out else None)


def test_scoring_takes_what_is_new_and_reports_what_fails():
    store = MemoryStore("a", "b", "c")
    store.labels["c"] = "somewhere"

    def score(path):
        if "b" in Path(path).name:
            raise ValueError("it is broken")
        return {"score": 0.5}

    assert score_images(store, "net", "1", score) == {"scored": 1, "failed": 1}
    assert store.infos["b"]["anomaly"]["net"] == {"score": None, "error": "it is broken", "version": "1"}
    assert score_images(store, "net", "1", score) == {"scored": 0, "failed": 0}
    assert unscored(store, "net", "2") == ["a", "b"] and unscored(store, "other", "1") == ["a", "b"]
    score_images(store, "other", "1", score)
    assert set(store.infos["a"]["anomaly"]) == {"net", "other"} and "anomaly" not in store.infos["c"]


# training


def test_training_publishes_a_version_and_the_detector_takes_it(copy, images):
    detector = Detector(copy, device="cpu")
    before = detector(images / "7.png")
    start = torch.load(copy / "model.pt", weights_only=True)
    normals = {str(images / f"{i}.png"): f"patient {i // 2}" for i in range(6)}
    result = train_version(copy, normals, max_epochs=1, calibration=0.34, min_images=6, device="cpu")
    assert result["training"] == 4 and result["calibration"] == 2 and result["decides_at"] == 0.5
    place = copy / "label" / result["version"]
    assert Versions(copy).newest() == place
    assert {path.name for path in place.iterdir()} == {
        "calibration.json", "manifest.json", "model.json", "model.pt", "model_final.pt",
    }  # fmt: skip
    assert load_settings(place)["started_from"] == "0" and load_settings(place)["image_size"] == 64
    assert load_calibration(place, required=True).scores[""].n_groups == 1
    trained = torch.load(place / "model.pt", weights_only=True)
    assert all(torch.equal(trained[k], start[k]) for k in start if k.startswith("teacher"))
    steps = [(trained[k] - start[k]).abs().max() for k in start if k.startswith("decoder") and k.endswith("weight")]
    assert 0 < max(steps) < 0.05  # it went on from there: Adam moved each weight once, by about the learning rate
    after = detector(images / "7.png")
    assert (before.version, after.version) == ("0", result["version"])
    assert after.threshold_source == "calibration_maximum" and after.scores["p_value"] >= 0.5
    shutil.rmtree(place)  # back to the weights of the start
    np.testing.assert_array_equal(detector(images / "7.png").values, before.values)


def test_volumes_train_and_calibrate_by_their_slices(copy, images, tmp_path):
    for i in range(3):
        slices = [phantom_slice(np.random.default_rng(10 * i + k), lesion=False, size=48)[0] for k in range(3)]
        nibabel.save(nibabel.Nifti1Image(np.stack(slices).astype(np.float32), OBLIQUE), tmp_path / f"{i}.nii.gz")
    normals = {str(tmp_path / f"{i}.nii.gz"): str(i) for i in range(3)}
    result = train_version(copy, normals, max_epochs=1, calibration=0.34, min_images=3, device="cpu")
    assert (result["training"], result["calibration"], result["decides_at"]) == (2, 1, 0.5)
    found = Detector(copy, device="cpu")(images / "scan.nii.gz")
    assert found.version == result["version"] and found.scores["p_value"] in (0.5, 1.0)
    assert found.threshold_source == "calibration_maximum"


def test_training_that_fails_leaves_nothing(copy, images, tmp_path):
    Image.fromarray(np.zeros((80, 72), np.uint8)).save(tmp_path / "constant.png")
    normals = {str(path): path.name for path in (images / "0.png", images / "1.png", tmp_path / "constant.png")}
    with pytest.raises(RuntimeError) as caught:
        train_version(copy, normals, max_epochs=1, calibration=0, min_images=2, device="cpu")
    assert "constant.png" in str(root_cause(caught.value))
    assert Versions(copy).newest() == copy
    assert [path.name for path in (copy / "label").iterdir()] in ([], [".lock"])


def test_what_cannot_be_trained_is_refused(copy, images):
    with pytest.raises(ValueError, match="1 images are marked normal, training needs at least 20"):
        train_version(copy, {str(images / "0.png"): "a"})
    with pytest.raises(ValueError, match="pictures and volumes"):
        train_version(copy, {str(images / name): name for name in ("0.png", "scan.nii.gz")}, min_images=2)
    (copy / "label").mkdir()
    with FileLock(copy / "label" / ".lock"), pytest.raises(RuntimeError, match="another training"):
        train_version(copy, {str(images / "0.png"): "a"}, min_images=1)
    settings = load_settings(copy) | {"method": "d24fad"}
    (copy / "model.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="support images"):
        train_version(copy, {str(images / "0.png"): "a"}, min_images=1)


# the command


def test_start_says_what_is_missing(model, tmp_path, capsys, monkeypatch):
    assert main(["label", "start", "--studies", str(tmp_path), "--models", str(tmp_path)]) == 1
    assert "no trained network" in capsys.readouterr().err
    assert main(["label", "start", "--studies", str(tmp_path), "--models", str(model), f"scrd={model}"]) == 1
    assert "Two models are named 'scrd'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "monailabel", None)
    assert main(["label", "start", "--studies", str(tmp_path), "--models", str(model)]) == 1
    assert "install_label.sh" in capsys.readouterr().err
