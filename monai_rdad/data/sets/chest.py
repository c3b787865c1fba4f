# SPDX-License-Identifier: Apache-2.0
"""Chest radiographs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from monai_rdad.data.sets.pixels import boxes_mask, relative_rle_mask
from monai_rdad.data.sets.source import Record, Source, builder

__all__ = ["kermany_chest_xray", "nih_chestxray14", "rsna_pneumonia", "siim_pneumothorax"]

_RSNA_EDGE = 1024  # of every image of the challenge, and of the boxes' coordinates


@builder("rsna_pneumonia")
def rsna_pneumonia(source: Source, boxes: bool = False, not_normal: bool = False) -> Iterator[Record]:
    """RSNA Pneumonia Detection Challenge: DICOM files and two tables.

    Args:
        source: folder with stage_2_train_images/, stage_2_detailed_class_info.csv, stage_2_train_labels.csv and, where
            at hand, pneumonia-challenge-dataset-mappings_2018.json, which tells the NIH patients behind the images.
        boxes: make masks from the bounding boxes. They are coarse: pixel metrics on them reward coarse maps.
        not_normal: count "No Lung Opacity / Not Normal" as abnormal instead of leaving it out.
    """
    folder = source.find("stage_2_train_images", "stage_2_detailed_class_info.csv")
    classes = source.table(folder / "stage_2_detailed_class_info.csv", "patientId", "class")
    # One row per box: the images with several opacities come several times.
    kinds = {row["patientId"]: row["class"] for row in classes}
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    if boxes:
        for row in source.table(folder / "stage_2_train_labels.csv", "patientId", "x", "y", "width", "height"):
            if row["x"]:
                box = (float(row["x"]), float(row["y"]), float(row["width"]), float(row["height"]))
                found.setdefault(row["patientId"], []).append(box)
    patients = _nih_patients(source)
    for name, kind in sorted(kinds.items()):
        if kind.startswith("No Lung Opacity") and not not_normal:
            continue
        mask = partial(boxes_mask, found[name], _RSNA_EDGE, _RSNA_EDGE) if name in found else None
        image = folder / "stage_2_train_images" / f"{name}.dcm"
        yield Record(name, int(kind != "Normal"), kind, image, patients.get(name, ""), mask_pixels=mask)


def _nih_patients(source: Source) -> dict[str, str]:
    """NIH patient of each RSNA image, from the mapping that the RSNA publishes separately."""
    file = "pneumonia-challenge-dataset-mappings_2018.json"
    path = source.find(file, optional=True) / file
    if not path.is_file():
        source.note(
            f"{file} is not there: the patients behind the images are unknown, each image counts as a patient, and "
            "images of one patient may fall into training and testing. The RSNA offers this file for download"
        )
        return {}
    return {entry["subset_img_id"]: entry["img_id"].split("_")[0] for entry in json.loads(path.read_text())}


@builder("siim_pneumothorax")
def siim_pneumothorax(source: Source) -> Iterator[Record]:
    """SIIM-ACR Pneumothorax Segmentation: DICOM files with masks in run-length code, or Kaggle's PNG packaging of it.

    Args:
        source: folder with DICOM files at any depth and train-rle.csv, stage_1_train.csv or stage_2_train.csv; or with
            png_images/, png_masks/, stage_1_train_images.csv and stage_1_test_images.csv.
    """
    packaged = source.find("png_images", "png_masks", optional=True)
    if packaged.is_dir():
        yield from _siim_png(source, packaged)
        return
    import pydicom

    names = ("stage_2_train.csv", "train-rle.csv", "stage_1_train.csv")
    name = next((n for n in names if source.find(n, optional=True).is_dir()), names[1])
    codes: dict[str, list[str]] = {}
    for row in source.table(source.find(name) / name, "ImageId", "EncodedPixels"):
        codes.setdefault(row["ImageId"], []).append(row["EncodedPixels"])
    files = {path.stem: path for path in source.images(source.raw, (".dcm",), deep=True)}
    unlabelled = sorted(set(files) - set(codes))
    if unlabelled:
        source.note(f"{len(unlabelled)} DICOM files are not in {name} and were left out, for instance {unlabelled[0]}")
    for image in sorted(codes):
        if image not in files:
            source.broken(image, f"{name} lists it, but there is no such DICOM file")
            continue
        try:
            tags = ["PatientID", "Rows", "Columns"]
            header = pydicom.dcmread(files[image], specific_tags=tags, stop_before_pixels=True)
            size = int(header.Rows), int(header.Columns)
        except Exception as error:  # pydicom raises many types
            source.broken(files[image], f"cannot be read as DICOM ({' '.join(str(error).split())[:120]})")
            continue
        runs = [code for code in codes[image] if code not in ("-1", "")]
        kind = "pneumothorax" if runs else "no pneumothorax"
        mask = partial(relative_rle_mask, runs, *size) if runs else None
        yield Record(image, int(bool(runs)), kind, files[image], str(header.get("PatientID", "")), mask_pixels=mask)


def _siim_png(source: Source, folder: Path) -> Iterator[Record]:
    for split, table in (("training", "stage_1_train_images.csv"), ("testing", "stage_1_test_images.csv")):
        for row in source.table(folder / table, "new_filename", "has_pneumo"):
            name, label = row["new_filename"], int(row["has_pneumo"])
            mask = folder / "png_masks" / name
            if label and not mask.is_file():
                source.broken(f"png_masks/{name}", "the mask is missing")
                continue
            kind = "pneumothorax" if label else "no pneumothorax"
            image = folder / "png_images" / name
            yield Record(Path(name).stem, label, kind, image, split=split, mask=mask if label else None)


@builder("nih_chestxray14")
def nih_chestxray14(source: Source, findings: str = "", view: str = "") -> Iterator[Record]:
    """NIH ChestX-ray14: PNG files, one table, the authors' lists of training and test images.

    Args:
        source: folder with images_001/images/ to images_012/images/ (or all in images/), Data_Entry_2017*.csv,
            train_val_list.txt and test_list.txt.
        findings: abnormal is only what has one of these, for instance "Pneumonia,Mass"; empty: any finding.
        view: only "PA" or only "AP" images; empty: both. The view tells sick patients in bed from others.
    """
    folder = source.find("test_list.txt")
    tables = [path for path in sorted(folder.iterdir()) if re.fullmatch(r"Data_Entry_2017.*\.csv", path.name)]
    rows = source.table(tables[-1] if tables else folder / "Data_Entry_2017.csv", "Image Index", "Finding Labels")
    test = set((folder / "test_list.txt").read_text().split())
    files = {path.name: path for path in source.images(folder, (".png",), deep=True)}
    wanted = {name.strip() for name in findings.split(",") if name.strip()}
    for row in rows:
        name, labels = row["Image Index"], set(row["Finding Labels"].split("|"))
        normal = labels == {"No Finding"}
        if (view and row.get("View Position") != view) or (wanted and not normal and not labels & wanted):
            continue
        if name not in files:
            source.broken(name, "the table lists it, but there is no such file")
            continue
        kind = "No Finding" if normal else "|".join(sorted(labels & wanted or labels))
        split = "testing" if name in test else "training"
        patient = row.get("Patient ID") or name.split("_")[0]
        yield Record(Path(name).stem, int(not normal), kind, files[name], patient, split)


@builder("kermany_chest_xray")
def kermany_chest_xray(source: Source) -> Iterator[Record]:
    """Paediatric chest radiographs of Kermany et al.: JPEG files in folders by split and class.

    Args:
        source: folder chest_xray with train/, test/ and, in Kaggle's copy, val/, each with NORMAL/ and PNEUMONIA/.
    """
    folder = source.find("train", "test")
    for place, split in (("train", "training"), ("val", "validation"), ("test", "testing")):
        for kind in ("NORMAL", "PNEUMONIA"):
            for image in source.images(source.child(source.child(folder, place), kind)):
                patient = re.match(r"person\d+|(?:NORMAL2-)?IM-\d+", image.name)
                # The numbers start anew in each split: "person1" of train and of test are not known to be one child.
                group = f"{place}-{patient.group()}" if patient else ""
                yield Record(f"{place}-{kind}-{image.stem}", int(kind != "NORMAL"), kind, image, group, split)
