# SPDX-License-Identifier: Apache-2.0
"""What a few-shot bundle adds: supports from a folder or a file, a task held out, several manifests."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_rdad.data.task_phantoms import PHANTOM_TASKS
from monai_rdad.networks.support import support_images
from monai_rdad.utils import root_cause

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "d24fad" / "configs"


def run(kind: str, *names: str, **options) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        workflow_type=kind,
        config_file=[str(CONFIGS / f"{name}.yaml") for name in names],
        logging_file=False,
        **options,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of three tasks, root of a bundle trained on two of them)."""
    folder, root = tmp_path_factory.mktemp("tasks"), tmp_path_factory.mktemp("d24fad")
    for number, (task, draw) in enumerate(PHANTOM_TASKS.items()):
        manifest: dict[str, list[dict]] = {"training": [], "testing": []}
        for i in range(8):
            lesion = i > 5
            picture, _ = draw(np.random.default_rng([number, i]), lesion, 64)
            split = "training" if i < 4 else "testing"
            name = f"{split}/{i}.png"
            (folder / task / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).save(folder / task / name)
            manifest[split].append({"image": name, "label": int(lesion)})
        (folder / task / "manifest.json").write_text(json.dumps(manifest))
    run("train", "train", **options(folder, root))
    return folder, root


def options(folder: Path, root: Path) -> dict:
    return {
        "manifests": [f"{folder}/{task}/manifest.json" for task in PHANTOM_TASKS],
        "holdout": "ultrasound",
        "bundle_root": str(root),
        "image_size": 64,
        "batch_size": 4,
        "max_epochs": 1,
        "shots": 2,
        "tracking_uri": "none",
    }


def scores(path: Path) -> dict[str, float]:
    with path.open() as file:
        return {Path(row["name"]).name: float(row["score"]) for row in csv.DictReader(file)}


def test_the_task_held_out_is_evaluated_and_not_trained_on(trained, monkeypatch):
    folder, root = trained
    unsaid = {name: value for name, value in options(folder, root).items() if name != "holdout"}
    evaluation = run("train", "train", "evaluate", **unsaid, bootstrap=0)
    assert evaluation.parser.get_parsed_content("dataset_dir") == str(folder / "ultrasound")
    assert set(scores(root / "eval" / "scores.csv")) == {f"{i}.png" for i in range(4, 8)}
    workflow = ConfigWorkflow(
        workflow_type="train", config_file=[str(CONFIGS / "train.yaml")], logging_file=False, **options(folder, root)
    )
    workflow.initialize()
    data = workflow.parser.get_parsed_content("train#dataset")
    assert set(data.tasks) == {"fundus", "histology"} and len(data) == 8
    assert data[0]["support"].shape == (2, 1, 64, 64)
    workflow.finalize()


def test_no_task_is_held_out(trained, tmp_path):
    folder, _ = trained
    place = {"dataset_dir": str(folder / "ultrasound"), "manifest": f"{folder}/ultrasound/manifest.json"}
    training = run("train", "train", **options(folder, tmp_path) | {"holdout": "none"}, **place)
    assert set(training.parser.get_parsed_content("train#dataset").tasks) == set(PHANTOM_TASKS)
    unsaid = {name: value for name, value in options(folder, tmp_path).items() if name not in ("holdout", "manifests")}
    run("train", "train", "evaluate", **unsaid, **place, bootstrap=0)
    assert len(scores(tmp_path / "eval" / "scores.csv")) == 4


def test_supports_from_a_folder_then_from_the_file_that_they_leave(trained):
    folder, root = trained
    places = [root / "from_folder", root / "from_file"]
    support = folder / "histology" / "training"
    for place, source in zip(places, (support, places[0] / "support.safetensors"), strict=True):
        inputs = {"input": str(folder / "histology" / "testing"), "support": str(source)}
        run("infer", "inference", bundle_root=str(root), output_dir=str(place), **inputs)
    first, second = (scores(place / "scores.csv") for place in places)
    assert set(first) == {f"{i}.png" for i in range(4, 8)} and first == pytest.approx(second, rel=1e-5)
    from safetensors import safe_open

    with safe_open(places[0] / "support.safetensors", "pt") as file:
        images = json.loads(file.metadata()["images"])
    assert images["0.png"] == hashlib.sha256((support / "0.png").read_bytes()).hexdigest() and len(images) == 4
    # the supports of another organ give other scores
    place = root / "from_training"
    run("infer", "inference", bundle_root=str(root), output_dir=str(place), input=inputs["input"])
    assert max(scores(place / "scores.csv").values()) > 1.2 * max(first.values())


def test_a_calibration_is_refused_for_other_supports(trained):
    folder, root = trained
    manifest = json.loads((folder / "ultrasound" / "manifest.json").read_text())
    manifest["calibration"] = [manifest["testing"].pop(0)]
    (folder / "ultrasound" / "calibration.json").write_text(json.dumps(manifest))
    place = options(folder, root) | {"manifest": f"{folder}/ultrasound/calibration.json"}
    run("train", "train", "evaluate", "calibrate", **place)
    inputs = {"bundle_root": str(root), "input": str(folder / "ultrasound" / "testing")}
    # drawn, as calibrated, from the file that was left, and from a folder of the same images under other names
    run("train", "train", "evaluate", **place, bootstrap=0)
    run("infer", "inference", **inputs, support=str(root / "eval" / "support.safetensors"))
    with (root / "eval" / "predictions" / "scores.csv").open() as file:
        assert all(0 < float(row["p_value"]) <= 1 for row in csv.DictReader(file))
    others = folder / "renamed"
    others.mkdir()
    drawn = support_images(root / "eval" / "support.safetensors").values()
    for path in (folder / "ultrasound" / "training").iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in drawn:
            (others / f"{digest}.png").write_bytes(path.read_bytes())
    run("infer", "inference", **inputs, support=str(others))
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        run("infer", "inference", **inputs, support=str(folder / "histology" / "training"))
    assert "calibration.json was made with support" in str(root_cause(caught.value))
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        run("train", "train", "evaluate", **place | {"shots": 3}, bootstrap=0)
    assert "calibration.json was made with support" in str(root_cause(caught.value))
    (root / "models" / "calibration.json").unlink()


def test_a_folder_with_too_many_images_is_refused(trained, tmp_path):
    _, root = trained
    for i in range(9):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        run("infer", "inference", bundle_root=str(root), input=str(tmp_path), support=str(tmp_path))
    assert "9 support images; 2 to 8 are needed" in str(root_cause(caught.value))


def test_training_tells_entropy_and_spread(trained, tmp_path):
    folder, _ = trained
    metrics = run("train", "train", **options(folder, tmp_path)).trainer.state.metrics
    assert 0 < metrics["support_entropy"] <= 1.001 and metrics["student_spread"] > 0
