# SPDX-License-Identifier: Apache-2.0
"""Data sets as other benchmarks have packaged them: BMAD, MedIAnomaly, and D2-4FAD's patches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from monai_rdad.data.manifest import ManifestError
from monai_rdad.data.sets.other import isic2018_task3
from monai_rdad.data.sets.source import Record, Source, builder

__all__: list[str] = []

_SPLITS = {"train": "training", "valid": "validation", "val": "validation", "test": "testing"}
_BMAD = {
    # name of the set: what a patient, scan or slide is in the names of its files; "" where they do not tell
    "bmad_brain": r"^(\d+)_\d+$",
    "bmad_liver": r"^(\w+?)[_-]\d+$",
    "bmad_resc": r"^(\d+)[_-]\d+$",
    "bmad_oct2017": r"^[A-Za-z]+-(\d+)-\d+$",
    "bmad_chest": "",
    "bmad_histopathology": "",
}


def _good_and_bad(source: Source, folder: Path, pattern: str = "") -> Iterator[Record]:
    """Layout of BMAD: {train,valid,test}/{good,Ungood}[/img] with masks in Ungood/label."""
    for place, split in _SPLITS.items():
        for name, label in (("good", 0), ("Ungood", 1), ("bad", 1)):
            images = source.child(source.child(folder, place), name)
            nested, masks = source.child(images, "img"), source.child(images, "label")
            for image in source.images(nested if nested.is_dir() else images):
                found = re.match(pattern, image.stem) if pattern else None
                mask = masks / image.name if label and masks.is_dir() else None
                if mask is not None and not mask.is_file():
                    source.broken(image, f"its mask {masks.name}/{image.name} is missing")
                    continue
                kind, group = ("good", "Ungood")[label], found.group(1) if found else ""
                yield Record(f"{place}-{kind}-{image.stem}", label, kind, image, group, split, mask)


def _data_json(source: Source, folder: Path) -> Iterator[Record]:
    """Layout of MedIAnomaly: images/ and data.json {"train": {"0": [...]}, "test": {"0": [...], "1": [...]}}."""
    try:
        lists = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        parts = [
            ("training", 0, lists["train"]["0"]),
            ("testing", 0, lists["test"]["0"]),
            ("testing", 1, lists["test"]["1"]),
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{folder}/data.json cannot be used ({error!r}). Unpack the archive again.") from error
    for split, label, names in parts:
        for image in names:
            # The abnormal images of the training list are meant for other settings.
            yield Record(
                str(Path(image).with_suffix("")),
                label,
                ("normal", "abnormal")[label],
                folder / "images" / image,
                "",
                split,
            )


def _brats(source: Source, folder: Path) -> Iterator[Record]:
    """Layout of MedIAnomaly's BraTS2021: train/, test/{normal,tumor,annotation}/, PNG slices."""
    test = folder / "test"
    for place, split, label in (
        (folder / "train", "training", 0),
        (test / "normal", "testing", 0),
        (test / "tumor", "testing", 1),
    ):
        for image in source.images(place, deep=True):
            mask = test / "annotation" / image.name.replace("flair", "seg") if label else None
            if mask is not None and not mask.is_file():
                source.broken(image, f"its mask annotation/{mask.name} is missing")
                continue
            case = re.match(r"BraTS\d*_\d+", image.stem)
            kind = ("normal", "tumor")[label]
            yield Record(f"{kind}-{image.stem}", label, kind, image, case.group() if case else "", split, mask)


def _bmad(name: str, pattern: str) -> None:
    @builder(name)
    def build(source: Source) -> Iterator[Record]:
        yield from _good_and_bad(source, source.find("train", "test"), pattern)


def _medianomaly(name: str, folder: str, layout: Callable[[Source, Path], Iterator[Record]]) -> None:
    @builder(f"medianomaly_{name}")
    def build(source: Source) -> Iterator[Record]:
        above = source.find(folder, optional=True)  # the raw folder may be that of all seven, or of one
        yield from layout(source, source.child(above, folder) if above.is_dir() else source.raw)


for _name, _pattern in (*_BMAD.items(), ("camelyon16_patches", "")):
    _bmad(_name, _pattern)
for _folder in ("RSNA", "VinCXR", "BrainTumor", "LAG"):
    _medianomaly(_folder.lower(), _folder, _data_json)
_medianomaly("camelyon16", "Camelyon16", _good_and_bad)
_medianomaly("brats2021", "BraTS2021", _brats)


@builder("medianomaly_isic2018")
def _isic2018(source: Source) -> Iterator[Record]:
    yield from isic2018_task3(source)
