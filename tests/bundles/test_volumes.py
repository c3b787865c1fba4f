# SPDX-License-Identifier: Apache-2.0
"""Bundles train on volumes, and nothing that they write names a patient."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_rdad.data.phantoms import phantom_slice, phantom_volume
from monai_rdad.utils import root_cause

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(p.name for p in (ROOT / "bundles").iterdir() if (p / "configs" / "train.yaml").is_file())
FEW_SHOT = {"d24fad"}
# settings under which a training takes seconds; bundles ignore those that they do not know
TINY = {"max_epochs": 2, "image_size": 64, "batch_size": 4, "val_interval": 1, "episodes": 8}
TINY |= {"schedule_epochs": 2}  # also of a training that stops earlier and is resumed
TINY |= {"encoder_lr": 0.001, "momentum": 0.5}  # so that a momentum encoder moves in a few steps


@pytest.fixture(scope="session")
def volume_set(tmp_path_factory) -> Path:
    """A data set of phantom volumes: training on a normal one, one whose lesion is excluded, and a picture."""
    folder = tmp_path_factory.mktemp("volumes")
    for i, name in enumerate(("normal", "sick", "lesion", "healthy")):
        rng = np.random.default_rng(i)
        array, mask, affine = phantom_volume(rng, lesion=i in (1, 2), shape=(40, 48, 24))
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, affine), folder / f"{name}_mask.nii.gz")
    Image.fromarray(phantom_slice(np.random.default_rng(9), lesion=False, size=64)[0]).save(folder / "picture.png")
    lesion = {"image": "lesion.nii.gz", "label": 1, "mask": "lesion_mask.nii.gz", "group": "c"}
    manifest = {
        "training": [
            {"image": "normal.nii.gz", "label": 0, "group": "a"},
            {"image": "sick.nii.gz", "label": 0, "exclude": "sick_mask.nii.gz", "group": "b"},
            {"image": "picture.png", "label": 0},
        ],
        "testing": [{"image": "healthy.nii.gz", "label": 0, "group": "d"}, lesion],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def configs(bundle: str, *names: str) -> list[str]:
    return [str(ROOT / "bundles" / bundle / "configs" / f"{name}.yaml") for name in names]


def run(bundle: str, *names: str, **overrides) -> ConfigWorkflow:
    kind = "infer" if names == ("inference",) else "train"
    folder = ROOT / "bundles" / bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=configs(bundle, *names),
        meta_file=str(folder / "metadata.json"),
        logging_file=str(folder / "logging.conf"),
        workflow_type=kind,
        **overrides,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return workflow


@pytest.mark.parametrize("bundle", sorted(set(BUNDLES) - FEW_SHOT))
def test_volumes_train_and_are_evaluated(bundle, volume_set, tmp_path):
    settings = TINY | {"max_epochs": 1, "bundle_root": str(tmp_path), "dataset_dir": str(volume_set)}
    settings |= {"tracking_uri": "none", "axes": [2, 0], "slices_per_volume": 4}
    training = run(bundle, "train", **settings)
    # four slices per axis of the normal volume, fewer of the other, and the picture
    names = [item["name"] for item in training.parser.get_parsed_content("train#dataset").data]
    assert [sum(n.startswith(f"normal.nii.gz axis {axis} slice") for n in names) for axis in (2, 0)] == [4, 4]
    assert 1 <= sum(n.startswith("sick.nii.gz axis") for n in names) <= 8 and names[-1] == "picture.png"
    run(bundle, "train", "evaluate", bootstrap=0, **settings)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["n_images"] == 2 and 0 <= metrics["pixel_auroc"] <= 1
    out = tmp_path / "out"
    source = volume_set / "lesion.nii.gz"
    run(bundle, "inference", bundle_root=str(tmp_path), output_dir=str(out), dataset_dir=".", input=str(source))
    with (tmp_path / "eval" / "scores.csv").open() as file:
        expected = {row["name"]: float(row["score"]) for row in csv.DictReader(file)}
    with (out / "scores.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["score"]) == pytest.approx(expected["lesion.nii.gz"], rel=5e-3)


def test_few_shot_training_refuses_volumes(volume_set, tmp_path):
    task = str(volume_set / "manifest.json")
    settings = TINY | {"bundle_root": str(tmp_path), "dataset_dir": str(volume_set), "manifest": task}
    with pytest.raises(RuntimeError, match="Failed to") as caught:
        run("d24fad", "train", **settings | {"manifests": [f"a={task}"], "holdout": "none"})
    assert "a volume, but 2D images are wanted here" in str(root_cause(caught.value))


def test_no_output_names_the_patient(tmp_path, write_dicom, caplog, capfd):
    """Training, evaluation and inference on DICOM: tables, pages, MLflow and logs know no patient."""
    pytest.importorskip("highdicom")
    patient = {"PatientName": "Doe^Jane", "PatientID": "PID-4711", "PatientBirthDate": "19700102"}
    patient |= {"AccessionNumber": "ACC-8", "InstitutionName": "Hospital of Nowhere", "FrameOfReferenceUID": "1.2.77"}
    data, root = tmp_path / "data", tmp_path / "root"
    for i, name in enumerate(("one", "two")):
        (data / name).mkdir(parents=True)
        array = phantom_volume(np.random.default_rng(i), lesion=False, shape=(64, 64, 3))[0]
        for k in range(3):
            pixels, place = array[..., k].T.astype(np.uint16), (0, 0, 5 * k)
            attributes = patient | {"SeriesInstanceUID": f"1.2.826.0.9{i}", "StudyInstanceUID": f"1.2.826.0.8{i}"}
            write_dicom(data / name / f"{k}.dcm", pixels.copy(), position=place, number=k, **attributes)
    splits = {"training": ["one"], "testing": ["two"]}
    manifest = {split: [{"image": name, "label": 0} for name in names] for split, names in splits.items()}
    (data / "manifest.json").write_text(json.dumps(manifest))
    settings = TINY | {"max_epochs": 1, "bundle_root": str(root), "dataset_dir": str(data)}
    run("rd4ad", "train", **settings)
    run("rd4ad", "train", "evaluate", bootstrap=0, **settings)
    outputs = {"input": str(data), "dataset_dir": ".", "output_dir": str(root / "out"), "bundle_root": str(root)}
    run("rd4ad", "inference", dicom=True, lesion_threshold=0.01, **outputs)
    assert (root / "out" / "two_map.dcm").is_file() and (root / "out" / "two_seg.dcm").is_file()
    texts = {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.suffix not in (".dcm", ".pt")}
    assert any(name.endswith("mlruns.db") for name in texts) and any(name.endswith("report.html") for name in texts)
    texts |= {"log": caplog.text.encode(), "streams": "".join(capfd.readouterr()).encode()}
    secrets = [v for k, v in patient.items() if k != "FrameOfReferenceUID"] + ["1.2.826.0"]
    assert [(n, s) for n, text in texts.items() for s in secrets if s.encode() in text] == []
