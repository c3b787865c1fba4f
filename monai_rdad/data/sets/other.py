# SPDX-License-Identifier: Apache-2.0
"""Skin, breast ultrasound, colonoscopy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from monai_rdad.data.sets.pixels import union_mask
from monai_rdad.data.sets.source import Record, Source, builder

__all__ = ["busi", "cvc_clinicdb", "ham10000", "isic2018_task3"]

_TASK3 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@builder("isic2018_task3")
def isic2018_task3(source: Source, evaluate: str = "test") -> Iterator[Record]:
    """ISIC 2018 task 3: JPEG files and tables; naevi (NV) count as normal.

    Args:
        source: folder with ISIC2018_Task3_{Training,Validation,Test}_{Input,GroundTruth} and, where at hand,
            ISIC2018_Task3_Training_LesionGroupings.csv, which tells which images show one lesion.
        evaluate: part that becomes the testing split: "test" (SCRD4AD) or "validation" (ReContrast, DNP-ConFormer).
    """
    if evaluate not in ("test", "validation"):
        raise ValueError(f"evaluate is '{evaluate}', it must be 'test' or 'validation'.")
    folder = source.find("ISIC2018_Task3_Training_Input")
    lesions = _lesions(source)
    for part in ("Training", evaluate.title()):
        images = folder / f"ISIC2018_Task3_{part}_Input"
        table = f"ISIC2018_Task3_{part}_GroundTruth"
        rows = source.table(folder / table / f"{table}.csv", "image", *_TASK3)
        split = "training" if part == "Training" else "testing"
        for row in rows:
            name, kind = row["image"], next(key for key in _TASK3 if float(row[key]) == 1)
            yield Record(name, int(kind != "NV"), kind, images / f"{name}.jpg", lesions.get(name, ""), split)


def _lesions(source: Source) -> dict[str, str]:
    file = "ISIC2018_Task3_Training_LesionGroupings.csv"
    path = source.find(file, optional=True) / file
    if not path.is_file():
        source.note(f"{file} is not there: which images show the same lesion is unknown")
        return {}
    return {row["image"]: row["lesion_id"] for row in source.table(path, "image", "lesion_id")}


@builder("ham10000")
def ham10000(source: Source, masks: bool = True) -> Iterator[Record]:
    """HAM10000: JPEG files and a table; naevi (nv) count as normal.

    Args:
        source: folder with HAM10000_metadata (or .csv, .tab), the images at any depth and, where at hand,
            HAM10000_segmentations_lesion_tschandl/.
        masks: name the outlines of the abnormal lesions as masks, where they are at hand.
    """
    names = ("HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.tab")
    name = next((n for n in names if source.find(n, optional=True).is_dir()), names[1])
    rows = source.table(source.find(name) / name, "lesion_id", "image_id", "dx")
    files = {path.stem: path for path in source.images(source.raw, deep=True)}
    for row in rows:
        image, kind = row["image_id"], row["dx"]
        if image not in files:
            source.broken(image, "the table lists it, but there is no such file")
            continue
        mask = files.get(f"{image}_segmentation") if masks and kind != "nv" else None
        yield Record(image, int(kind != "nv"), kind, files[image], row["lesion_id"], mask=mask)


@builder("busi")
def busi(source: Source) -> Iterator[Record]:
    """BUSI, breast ultrasound: PNG files in folders by class, with one mask or several.

    Args:
        source: folder Dataset_BUSI_with_GT with benign/, malignant/ and normal/.
    """
    folder = source.find("benign", "malignant", "normal")
    for kind in ("normal", "benign", "malignant"):
        files = source.images(source.child(folder, kind))
        masks: dict[str, list[Path]] = {}
        for path in files:
            if found := re.fullmatch(r"(.+)_mask(_\d+)?", path.stem):
                masks.setdefault(found.group(1), []).append(path)
        for image in files:
            if re.fullmatch(r".+_mask(_\d+)?", image.stem):
                continue
            name = re.sub(r"\W+", "_", image.stem).strip("_")
            record = Record(name, int(kind != "normal"), kind, image)
            if kind != "normal":
                if image.stem not in masks:
                    source.broken(image, "its mask is missing")
                    continue
                record.mask_pixels = partial(union_mask, masks[image.stem])
            yield record


@builder("cvc_clinicdb")
def cvc_clinicdb(source: Source) -> Iterator[Record]:
    """CVC-ClinicDB: frames of colonoscopies, each with a polyp, and their masks.

    Args:
        source: folder with Original/ and "Ground Truth"/, of TIFF or PNG files (Kaggle's copy has both, the first in
            TIF/, the second in PNG/), and, where at hand, metadata.csv, which tells the video of each frame.
    """
    folder = source.find("Original", "Ground Truth")
    videos: dict[str, str] = {}
    table = source.find("metadata.csv", optional=True) / "metadata.csv"
    if table.is_file():
        videos = {row["frame_id"]: row["sequence_id"] for row in source.table(table, "frame_id", "sequence_id")}
    else:
        source.note("metadata.csv is not there: the videos behind the frames are unknown")
    for image in source.images(source.child(folder, "Original")):
        mask = source.child(folder, "Ground Truth") / image.name
        if not mask.is_file():
            source.broken(image, "its mask is missing")
            continue
        video = videos.get(image.stem, "")
        yield Record(image.stem, 1, "polyp", image, f"video {video}" if video else "", "testing", mask)
