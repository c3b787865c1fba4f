# SPDX-License-Identifier: Apache-2.0
"""Fundus photographs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from monai_rdad.data.sets.pixels import fundus_crop
from monai_rdad.data.sets.source import Record, Source, builder

__all__ = ["aptos2019", "lag", "odir5k"]

_GRADES = ("no DR", "mild", "moderate", "severe", "proliferative DR")
_UNUSABLE = (
    "lens dust",
    "low image quality",
    "optic disk photographically invisible",
    "image offset",
    "anterior segment image",
    "no fundus image",
)


@builder("aptos2019")
def aptos2019(source: Source, crop: bool = True, size: int = 512) -> Iterator[Record]:
    """APTOS 2019 Blindness Detection: PNG files and a table of grades.

    Args:
        source: folder with train.csv and train_images/; the test images have no published grades.
        crop: write a square around the retina, as ReContrast and DNP-ConFormer do; else the files as they are.
        size: edge of that square in pixels.
    """
    folder = source.find("train.csv", "train_images")
    for row in source.table(folder / "train.csv", "id_code", "diagnosis"):
        image, grade = folder / "train_images" / f"{row['id_code']}.png", int(row["diagnosis"])
        record = Record(row["id_code"], int(grade > 0), _GRADES[grade], image)
        if crop:
            record.image, record.pixels = None, partial(fundus_crop, image, size)
        yield record


@builder("lag")
def lag(source: Source) -> Iterator[Record]:
    """LAG, glaucoma: JPEG files in folders by class, in one archive or several parts.

    Args:
        source: folder with non_glaucoma/image/ and suspicious_glaucoma/image/ at any depth; the attention maps beside
            them are of where ophthalmologists looked and serve as no mask.
    """
    kinds = ("non_glaucoma", "suspicious_glaucoma")
    images = [path for path in source.images(source.raw, deep=True) if path.parent.name != "attention_map"]
    found = {kind: [path for path in images if kind in path.relative_to(source.raw).parts] for kind in kinds}
    for kind in kinds:
        if not found[kind]:
            source.find(*kinds)  # says what is missing
        for image in found[kind]:
            name = "-".join(image.relative_to(source.raw).with_suffix("").parts)
            yield Record(name, int(kind != kinds[0]), kind, image)


@builder("odir5k")
def odir5k(source: Source, keywords: str = "") -> Iterator[Record]:
    """ODIR-5K: JPEG files and a table with diagnostic keywords for each eye.

    An eye is normal if its keywords are "normal fundus" and nothing else. Photographs that the keywords call unusable
    are left out; "lens dust" beside a diagnosis does no harm.

    Args:
        source: folder with full_df.csv (Kaggle), or the sheet data.xlsx saved as data.csv, and "Training Images" or
            preprocessed_images/ at any depth.
        keywords: abnormal is only what has one of these keywords, for instance "glaucoma,cataract"; empty: any.
    """
    names = ("full_df.csv", "data.csv")
    name = next((n for n in names if source.find(n, optional=True).is_dir()), names[0])
    eyes = ("Left-Fundus", "Left-Diagnostic Keywords", "Right-Fundus", "Right-Diagnostic Keywords")
    rows = source.table(source.find(name) / name, "ID", *eyes)
    files: dict[str, Path] = {}
    for path in source.images(source.raw, deep=True):
        # The originals come before the pictures that Kaggle's copy has reduced.
        if path.name not in files or "training" in path.parent.name.lower():
            files[path.name] = path
    wanted = {word.strip().lower() for word in keywords.split(",") if word.strip()}
    seen: set[str] = set()
    for row in rows:
        for image, words in ((row[eyes[0]], row[eyes[1]]), (row[eyes[2]], row[eyes[3]])):
            # full_df.csv has a row for each eye, and each row names both.
            if image in seen:
                continue
            seen.add(image)
            diagnoses = {word.strip().lower() for word in re.split("[,，]", words) if word.strip()} - set(_UNUSABLE)
            normal = diagnoses == {"normal fundus"}
            diagnoses -= {"normal fundus"}
            if not normal and (not diagnoses or (wanted and not diagnoses & wanted)):
                continue
            if image not in files:
                # Kaggle's table leaves out some files on purpose; a whole download lacks them.
                source.broken(image, "the table lists it, but there is no such file")
                continue
            kind = "normal fundus" if normal else ", ".join(sorted(diagnoses))
            yield Record(Path(image).stem, int(not normal), kind, files[image], row["ID"])
