# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from monai_rdad.data import ManifestError, load_manifest
from monai_rdad.data.sets import BuildReport, build_manifest, card, set_names

Miniature = Callable[[str], tuple[Path, Any]]
# The miniatures have 8 slices and 10 to 12 patients' worth of images; the defaults are for real sizes.
OPTIONS: dict[str, dict[str, Any]] = {
    "brats2021": {"first": 0, "last": 7, "step": 1},
    "aptos2019": {"size": 64},
}
RELAXED: dict[str, Any] = {"counts": "warn", "on_error": "skip", "progress": False}


def _build(name: str, raw: Path, out: Path, **settings: Any) -> BuildReport:
    return build_manifest(name, raw, out, **(RELAXED | OPTIONS.get(name, {}) | settings))


def _items(report: BuildReport) -> dict[str, list[dict[str, Any]]]:
    return load_manifest(report.manifest, required=())


def _files(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", set_names())
def test_miniature(name: str, miniature: Miniature, tmp_path: Path) -> None:
    """Every image that can be used is in the manifest once, which passes its own checks; the download is untouched."""
    raw, expected = miniature(name)
    before = _files(raw)
    report = _build(name, raw, tmp_path / "out")
    splits = _items(report)  # groups apart, no copies across splits, masks of the right size
    items = [item for members in splits.values() for item in members]
    written = json.loads(report.manifest.read_text())
    masks = sum("mask" in item for members in splits.values() for item in members)
    assert (sum(1 - i["label"] for i in items), sum(i["label"] for i in items)) == (expected.normal, expected.abnormal)
    assert masks == expected.masks
    assert report.dropped.get("missing or broken", 0) == expected.problems
    assert expected.normal == 0 or splits["training"]
    assert _files(raw) == before
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made <= {"manifest.json", "images", "masks"}
    assert sum(report.counts["testing"].values()) == len(splits["testing"])
    assert written["settings"]["seed"] == 0


@pytest.mark.parametrize("name", ["rsna_pneumonia", "siim_pneumothorax", "duke_dme", "retouch", "busi", "brats2021"])
def test_broken_files_stop_the_build(name: str, miniature: Miniature, tmp_path: Path) -> None:
    raw, expected = miniature(name)
    with pytest.raises(ManifestError, match=rf"{expected.problems} missing or broken files(.|\n)*--on-error skip"):
        _build(name, raw, tmp_path / "out", on_error="raise")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_same_seed_same_manifest(miniature: Miniature, tmp_path: Path) -> None:
    raw, _ = miniature("rsna_pneumonia")
    first, second, *others = (
        json.loads(_build("rsna_pneumonia", raw, tmp_path / f"{i}", seed=seed).manifest.read_text())["training"]
        for i, seed in enumerate((3, 3, 4, 5, 6))
    )
    assert first == second
    assert any(first != other for other in others)


def test_copy_can_be_moved(miniature: Miniature, tmp_path: Path) -> None:
    raw, expected = miniature("ham10000")
    shutil.copytree(raw, tmp_path / "raw")
    report = _build("ham10000", tmp_path / "raw", tmp_path / "out", copy=True)
    shutil.rmtree(tmp_path / "raw")
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    splits = load_manifest(moved / report.manifest.name)
    assert sum(len(items) for items in splits.values()) == expected.normal + expected.abnormal


def test_sets_aside_for_thresholds(miniature: Miniature, tmp_path: Path) -> None:
    raw, _ = miniature("isic2018_task3")
    plain = _items(_build("isic2018_task3", raw, tmp_path / "a"))
    split = _items(_build("isic2018_task3", raw, tmp_path / "b", calibration=0.3, validation=0.2))
    assert split["calibration"] and split["validation"] and split["training"]
    names = {i["name"] for key in ("training", "calibration", "validation") for i in split[key]}
    assert names == {i["name"] for i in plain["training"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calibration": 1.0}, "must not be negative, nor add up to 1"),
        ({"split": "published"}, "no published split"),
        ({"colour": "red"}, "no option colour. It has: none"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str, miniature: Miniature, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        _build("busi", miniature("busi")[0], tmp_path / "out", **settings)


def test_wrong_folders(miniature: Miniature, tmp_path: Path) -> None:
    raw, _ = miniature("busi")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no such folder"):
        _build("busi", tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ManifestError, match="no folder in it holds 'benign' and 'malignant' and 'normal'. Unpack"):
        _build("busi", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ManifestError, match="nothing is written there"):
        _build("busi", raw, raw / "out")
    with pytest.raises(ManifestError, match="no known data set. Known: .*busi"):
        _build("bussi", raw, tmp_path / "out")


def test_counts_against_the_description(miniature: Miniature, tmp_path: Path) -> None:
    """BUSI's numbers are known for certain, Br35H's are not: there a difference is a warning only."""
    raw = Path(shutil.copytree(miniature("busi")[0], tmp_path / "busi"))
    (raw / "Dataset_BUSI_with_GT" / "malignant" / "malignant (4).png").unlink()  # the one without a mask
    with pytest.raises(ManifestError, match=r"normal 4 instead of 133.*--counts warn"):
        _build("busi", raw, tmp_path / "out", counts="strict", on_error="raise")
    report = _build("br35h", miniature("br35h")[0], tmp_path / "br", counts="strict")
    assert any("no 5 instead of 1500" in warning for warning in report.warnings)


# What the sets are known for


def test_rsna_patients_stay_together(miniature: Miniature, tmp_path: Path) -> None:
    """The image of a healthy day goes where the patient's opacity goes: to testing."""
    splits = _items(_build("rsna_pneumonia", miniature("rsna_pneumonia")[0], tmp_path))
    assert [item["group"] for item in splits["testing"] if item["name"].endswith("n6.dcm")] == ["o0"]


def test_drawn_numbers(miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the description says, though the patient of n6 has an opacity too and could give one more."""
    about = card("rsna_pneumonia")
    about["split"] = {"default": "drawn", "normal": {"training": 4, "testing": 2}, "abnormal": {"testing": 3}}
    monkeypatch.setattr("monai_rdad.data.sets.build.card", lambda name: about)
    for seed in range(4):
        report = _build("rsna_pneumonia", miniature("rsna_pneumonia")[0], tmp_path, seed=seed)
        assert report.counts == {"training": {"Normal": 4}, "testing": {"Normal": 2, "Lung Opacity": 3}}
        assert sum(report.dropped.values()) == 1 + 3  # the broken file, and what is beyond the numbers


def test_old_manifest_goes_first(miniature: Miniature, tmp_path: Path) -> None:
    """A build that fails must not leave a manifest whose files it has overwritten."""
    _build("busi", miniature("busi")[0], tmp_path)
    with pytest.raises(ManifestError):
        _build("busi", miniature("busi")[0], tmp_path, on_error="raise")
    assert not (tmp_path / "manifest.json").exists()


def test_rsna_boxes(miniature: Miniature, tmp_path: Path) -> None:
    raw = Path(shutil.copytree(miniature("rsna_pneumonia")[0], tmp_path / "raw"))
    rows = ["patientId,x,y,width,height,Target", "n0,,,,,0", "o1,1,2,3,4,1", "o1,700,10,50,60,1"]
    (raw / "stage_2_train_labels.csv").write_text("\n".join(rows))
    # the masks are of the real size, 1024 pixels, and do not fit the miniature's images
    report = _build("rsna_pneumonia", raw, tmp_path / "out", boxes=True)
    assert any("o1" in name and "size" in name for name in report.examples["missing or broken"])
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "o1.png"))
    assert mask.shape == (1024, 1024) and (mask > 0).sum() == 3 * 4 + 50 * 60


def test_siim_masks(miniature: Miniature, tmp_path: Path) -> None:
    _build("siim_pneumothorax", miniature("siim_pneumothorax")[0], tmp_path)
    mask = np.asarray(Image.open(tmp_path / "masks" / "im5.png")).T.ravel() > 0  # down the columns
    assert np.flatnonzero(mask).tolist() == [*range(100, 105), *range(148, 153), *range(1000, 1003)]


def test_siim_png_packaging(tmp_path: Path) -> None:
    root = tmp_path / "raw" / "siim-acr-pneumothorax"
    for split, n in (("train", 5), ("test", 3)):
        rows = ["new_filename,ImageId,has_pneumo"]
        for i in range(n):
            name, sick = f"{i}_{split}_{i % 2}_.png", i % 2
            rows.append(f"{name},1.2.{i},{sick}")
            pixels = np.random.default_rng([i, n]).integers(0, 255, (32, 32), dtype=np.uint8)
            for folder, values in (("png_images", pixels), ("png_masks", np.full((32, 32), 255 * sick, np.uint8))):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(root / folder / name)
        (root / f"stage_1_{split}_images.csv").write_text("\n".join(rows))
    splits = _items(_build("siim_pneumothorax", tmp_path / "raw", tmp_path / "out", split="published"))
    assert [len(splits[key]) for key in ("training", "testing")] == [3, 3]
    assert sum("mask" in item for item in splits["testing"]) == 1


def test_oct2017_patient_in_both_splits(miniature: Miniature, tmp_path: Path) -> None:
    report = _build("oct2017", miniature("oct2017")[0], tmp_path)
    lost = next(names for reason, names in report.examples.items() if "later split" in reason)
    assert lost == ["train-NORMAL-305-5"]
    assert all(item["label"] == 0 for item in _items(report)["training"])


def test_isic_parts(miniature: Miniature, tmp_path: Path) -> None:
    raw, _ = miniature("isic2018_task3")
    names = {
        part: {item["name"].split("ISIC_")[-1][0] for item in _items(report)["testing"]}
        for part in ("test", "validation")
        for report in [_build("isic2018_task3", raw, tmp_path / part, evaluate=part)]
    }
    assert names == {"test": {"2"}, "validation": {"1"}}


def test_odir_healthy_eye_of_a_sick_patient(miniature: Miniature, tmp_path: Path) -> None:
    splits = _items(_build("odir5k", miniature("odir5k")[0], tmp_path))
    of_patient_2 = [(split, item["label"]) for split, items in splits.items() for item in items if item["group"] == "2"]
    assert sorted(of_patient_2) == [("testing", 0), ("testing", 1)]
    assert all("Training Images" in item["name"] for items in splits.values() for item in items)


def test_busi_masks_are_united(miniature: Miniature, tmp_path: Path) -> None:
    _build("busi", miniature("busi")[0], tmp_path)
    mask = np.asarray(Image.open(tmp_path / "masks" / "benign_1.png")) > 0
    assert mask[10:20, 12:30].all() and mask[::-1][10:20, 12:30].all() and mask.sum() == 2 * 180


def test_lgg_order_margin_and_second_copy(miniature: Miniature, tmp_path: Path) -> None:
    raw, _ = miniature("lgg_segmentation")
    report = _build("lgg_segmentation", raw, tmp_path / "a", margin=2, flair=True)
    names = {Path(i["name"]).stem for items in _items(report).values() for i in items if i["label"] == 0}
    # slices 4 to 6 have tumour, 2, 3, 7, 8 are too close, 1 is black: 9 and 10 are left
    assert {int(name.rpartition("_")[2]) for name in names} == {9, 10}
    stored = np.asarray(Image.open(tmp_path / "a" / "images" / f"{sorted(names)[0]}.png"))
    source = raw / "kaggle_3m" / sorted(names)[0].rpartition("_")[0] / f"{sorted(names)[0]}.tif"
    assert np.array_equal(stored, np.asarray(Image.open(source))[..., 1])


def test_brats_orientation_and_masks(miniature: Miniature, tmp_path: Path) -> None:
    """Left-posterior-superior voxels: the stored array, transposed, is the radiological picture."""
    import nibabel

    raw, _ = miniature("brats2021")
    _build("brats2021", raw, tmp_path)
    case = raw / "BraTS2021_Training_Data" / "BraTS2021_00000"
    made = sorted((tmp_path / "images").glob("BraTS2021_00000*"))
    assert [path.stem[-3:] for path in made] == ["000", "001", "002", "003", "005", "006", "007"]  # 4: one voxel
    labels = np.asarray(nibabel.load(case / "BraTS2021_00000_seg.nii.gz").dataobj)
    mask = np.asarray(Image.open(tmp_path / "masks" / "BraTS2021_00000_flair_006.png")) > 0
    assert np.array_equal(mask, labels[:, :, 6].T > 0)


def test_duke_either_expert(miniature: Miniature, tmp_path: Path) -> None:
    _build("duke_dme", miniature("duke_dme")[0], tmp_path)
    assert {path.stem for path in (tmp_path / "masks").glob("Subject_01*")} == {"Subject_01_01", "Subject_01_02"}
    assert len(list((tmp_path / "images").glob("Subject_01*"))) == 4


def test_retouch_device(miniature: Miniature, tmp_path: Path) -> None:
    splits = _items(_build("retouch", miniature("retouch")[0], tmp_path, device="cirrus"))
    assert {item["group"] for items in splits.values() for item in items} == {"Cirrus_TRAIN00", "Cirrus_TRAIN01"}


def test_aptos_crop(miniature: Miniature, tmp_path: Path) -> None:
    """A square with the retina in its middle, whose edge is the retina's, plus a margin of 5 pixels."""
    _build("aptos2019", miniature("aptos2019")[0], tmp_path, size=120)
    picture = np.asarray(Image.open(tmp_path / "images" / "eye0.png")).sum(-1) > 90
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    assert picture.shape == (120, 120)
    for found in (rows, columns):
        assert abs(found[0] - 5) <= 2 and abs(found[-1] - 114) <= 2


def test_cvc_has_no_normals(miniature: Miniature, tmp_path: Path) -> None:
    report = _build("cvc_clinicdb", miniature("cvc_clinicdb")[0], tmp_path)
    assert any("testing only" in warning for warning in report.warnings)
    assert any("left alone" in note for note in report.notes)  # TIF/ and PNG/ hold the same
    assert {item["group"] for item in _items(report)["testing"]} == {"video 0", "video 1"}


def test_nih_findings_and_view(miniature: Miniature, tmp_path: Path) -> None:
    raw, _ = miniature("nih_chestxray14")
    mass = _build("nih_chestxray14", raw, tmp_path / "a", findings="Mass")
    none = _build("nih_chestxray14", raw, tmp_path / "b", findings="Hernia")
    assert mass.counts["testing"]["Mass"] == 5
    assert set(none.counts["testing"]) == {"No Finding"}
    with pytest.raises(ManifestError, match="no usable image"):
        _build("nih_chestxray14", raw, tmp_path / "c", view="AP")
