# SPDX-License-Identifier: Apache-2.0
"""Real images, laid out as their official downloads; and the figures that their own documentation measured."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from monai_rdad.apps.describe import describe_manifest
from monai_rdad.data import load_manifest
from monai_rdad.data.sets import build_manifest

pytestmark = pytest.mark.slow

Item = dict[str, Any]
# score of a description: what SOURCE.md calls it
FIGURES = {"mean": "mean", "deviation": "std", "jpeg_bytes": "JPEG size at 128 px", "file_bytes": "PNG bytes"}
FIGURES |= {"rows": "height", "columns": "width"}
LEAKS = {
    "brain_mri_lgg": set(),
    "breast_us_busi": {"deviation"},
    "chest_xray_kermany": {"jpeg_bytes", "file_bytes"},
    "chest_xray_nih": set(),
    "head_ct_hemorrhage": set(),
    "histo_breast_ucsb": set(),
    "retina_fundus_odir": set(),
}


@pytest.mark.parametrize("name", LEAKS)
def test_trivial_scores_agree_with_the_documentation(name: str, real_data: Path, tmp_path: Path) -> None:
    source = (real_data / name / "SOURCE.md").read_text(encoding="utf-8").partition("## Trivial scores")[2]
    found = describe_manifest(real_data / name / "manifest.json", tmp_path, resamples=100)["trivial_scores"]
    for score, title in FIGURES.items():
        documented = re.search(rf"(?:\n|, ){re.escape(title)} (\d\.\d+)", source)
        assert documented is not None, title
        assert found[score]["auroc"] == pytest.approx(float(documented.group(1)), abs=0.02), score
    nearest = re.search(r"pixel 3-NN to train/good at 24x24: (\d\.\d+)", source)
    assert nearest is not None
    assert found["nearest"]["auroc"] == pytest.approx(float(nearest.group(1)), abs=0.02)
    assert {score for score, figures in found.items() if figures["level"] == "leak"} == LEAKS[name]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(source, target)


def _table(path: Path, rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _busi(folder: Path, items: list[Item], raw: Path) -> None:
    for item in items:
        kind, name = item["source"].split("/")[1], Path(item["source"]).stem
        _link(folder / item["image"], raw / "Dataset_BUSI_with_GT" / kind / f"{name}.png")
        if item["mask"]:
            _link(folder / item["mask"], raw / "Dataset_BUSI_with_GT" / kind / f"{name}_mask.png")


def _lgg(folder: Path, items: list[Item], raw: Path) -> None:
    """The shared images are FLAIR, the second of the three channels of the original files."""
    for item in items:
        target = raw / "kaggle_3m" / item["group"] / Path(item["source"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(folder / item["image"]) as flair:
            Image.merge("RGB", [flair] * 3).save(target)
            mask = Image.open(folder / item["mask"]) if item["mask"] else Image.new("L", flair.size)
            mask.save(target.with_name(f"{target.stem}_mask.tif"))


def _nih(folder: Path, items: list[Item], raw: Path) -> None:
    rows = [["Image Index", "Finding Labels", "Patient ID"]]
    for item in items:
        name = Path(item["source"]).name
        _link(folder / item["image"], raw / "images_001" / "images" / name)
        rows.append([name, "Pneumonia" if item["label"] else "No Finding", item["group"]])
    _table(raw / "Data_Entry_2017.csv", rows)
    test = [Path(item["source"]).name for item in items if item["split"] == "test"]
    (raw / "test_list.txt").write_text("\n".join(test))


def _kermany(folder: Path, items: list[Item], raw: Path) -> None:
    for item in items:
        number = re.sub(r"\D", "", Path(item["source"]).stem)
        name = f"person{number}_virus_1.jpeg" if item["label"] else f"IM-{number:0>4}-0001.jpeg"
        kind = ("NORMAL", "PNEUMONIA")[item["label"]]
        _link(folder / item["image"], raw / "chest_xray" / item["split"] / kind / name)


def _odir(folder: Path, items: list[Item], raw: Path) -> None:
    names = ["Left-Fundus", "Left-Diagnostic Keywords", "Right-Fundus", "Right-Diagnostic Keywords"]
    rows: list[list[Any]] = [["ID", *names]]
    for item in items:
        name = Path(item["source"]).name
        _link(folder / item["image"], raw / "preprocessed_images" / name)
        eye = [name, item.get("cls") or "normal fundus"]
        side, far = ("left", "right") if "left" in name else ("right", "left")
        other = [name.replace(side, far), "no fundus image"]
        rows.append([item["group"], *(eye + other if "left" in name else other + eye)])
    _table(raw / "full_df.csv", rows)


def _head_ct(folder: Path, items: list[Item], raw: Path) -> None:
    for item in items:
        _link(folder / item["image"], raw / "head_ct" / "head_ct" / Path(item["source"]).name)
    _table(raw / "labels.csv", [["id", "hemorrhage"], *([int(Path(i["source"]).stem), i["label"]] for i in items)])


@pytest.mark.parametrize(
    ("shared", "name", "lay_out", "options"),
    [
        ("breast_us_busi", "busi", _busi, {}),
        ("brain_mri_lgg", "lgg_segmentation", _lgg, {"flair": True}),
        ("chest_xray_nih", "nih_chestxray14", _nih, {}),
        ("chest_xray_kermany", "kermany_chest_xray", _kermany, {}),
        ("retina_fundus_odir", "odir5k", _odir, {}),
        ("head_ct_hemorrhage", "head_ct_hemorrhage", _head_ct, {}),
    ],
)
def test_build_and_describe(
    shared: str,
    name: str,
    lay_out: Callable[[Path, list[Item], Path], None],
    options: dict[str, Any],
    real_data: Path,
    tmp_path: Path,
) -> None:
    """All images arrive; where the official split is known, the leaks are those of the documentation."""
    folder, raw = real_data / shared, tmp_path / "raw"
    items = json.loads((folder / "manifest.json").read_text())
    if name != "head_ct_hemorrhage":  # to take less time
        items = [item for i, item in enumerate(items) if item["split"] == "test" or i % 3 == 0]
    raw.mkdir()
    lay_out(folder, items, raw)
    report = build_manifest(name, raw, tmp_path / "out", counts="warn", progress=False, **options)
    splits = load_manifest(report.manifest)
    kept = [item for members in splits.values() for item in members]
    unused = sum(number for reason, number in report.dropped.items() if "patients in training" in reason)
    assert unused + len(kept) == len(items)
    assert unused + sum(item["label"] for item in kept) == sum(item["label"] for item in items)
    assert report.notes == [] or name == "retina_fundus_odir", report.notes
    found = describe_manifest(report.manifest, tmp_path / "out", resamples=100)
    leaks = {score for score, figures in found["trivial_scores"].items() if figures["level"] == "leak"}
    if name == "busi":
        assert found["trivial_scores"]["deviation"]["level"] in ("doubt", "leak")
    elif name == "head_ct_hemorrhage":
        # the download does not tell scans: slices of one scan fall into both splits, 0.82 in the documentation
        assert leaks == {"nearest"}
    else:
        assert leaks == LEAKS[shared]
