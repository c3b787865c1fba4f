# SPDX-License-Identifier: Apache-2.0
"""Brain MR and head CT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from monai_rdad.data.measure import to_bytes
from monai_rdad.data.sets.pixels import read_mask, tumour_free
from monai_rdad.data.sets.source import Record, Source, builder

__all__ = ["br35h", "brain_tumor_mri", "brats2021", "head_ct_hemorrhage", "lgg_segmentation"]


@builder("brain_tumor_mri")
def brain_tumor_mri(source: Source, pituitary: bool = False) -> Iterator[Record]:
    """Brain tumour MRI (Kaggle, Nickparvar): JPEG files in folders by split and class.

    Args:
        source: folder with Training/ and Testing/, each with glioma/, meningioma/, notumor/ and pituitary/.
        pituitary: count pituitary tumours as abnormal; SCRD4AD and D2-4FAD take gliomas and meningiomas only.
    """
    folder = source.find("Training", "Testing")
    for place, split in (("Training", "training"), ("Testing", "testing")):
        for kind in ("notumor", "glioma", "meningioma", "pituitary"):
            if kind == "pituitary" and not pituitary:
                continue
            for image in source.images(source.child(source.child(folder, place), kind)):
                yield Record(f"{place}-{kind}-{image.stem}", int(kind != "notumor"), kind, image, split=split)


@builder("br35h")
def br35h(source: Source) -> Iterator[Record]:
    """Br35H (Kaggle): JPEG files in two folders.

    Args:
        source: folder with yes/ (tumour) and no/. The published split is that of DNP-ConFormer: the numbers below
            1000 in no/ are for training.
    """
    folder = source.find("yes", "no")
    for image in source.images(source.child(folder, "no")):
        number = int("".join(re.findall(r"\d", image.stem)) or 0)
        yield Record(f"no-{image.stem}", 0, "no", image, split="training" if number < 1000 else "testing")
    for image in source.images(source.child(folder, "yes")):
        yield Record(f"yes-{image.stem}", 1, "yes", image, split="testing")


@builder("brats2021")
def brats2021(
    source: Source, sequence: str = "flair", first: int = 60, last: int = 100, step: int = 4, margin: int = 0
) -> Iterator[Record]:
    """BraTS 2021: axial slices of one sequence, written as PNG.

    Intensities are those between the percentiles 0.5 and 99.5 of a scan's voxels above 0. A slice is abnormal if the
    reference marks 16 voxels or more in it; with fewer it is left out.

    Args:
        source: folder with BraTS2021_*/BraTS2021_*_{flair,t1,t1ce,t2,seg}.nii.gz at any depth.
        sequence: flair, t1, t1ce or t2.
        first: first axial slice, from below.
        last: last axial slice.
        step: distance of the slices.
        margin: a normal slice is at least this many slices away from any slice with tumour.
    """
    import nibabel

    scans = source.images(source.raw, (f"_{sequence}.nii.gz", f"_{sequence}.nii"), deep=True)
    if not scans:
        source.find(f"BraTS2021_00000_{sequence}.nii.gz")  # says what is missing
    for path in scans:
        reference = path.with_name(path.name.replace(f"_{sequence}.nii", "_seg.nii"))
        case = path.name.split(f"_{sequence}.nii")[0]
        if not reference.is_file():
            source.broken(path, f"its reference {reference.name} is missing")
            continue
        try:
            image, labels = (np.asarray(_canonical(nibabel, p).dataobj) for p in (path, reference))
        except Exception as error:  # nibabel, gzip and zlib raise many types
            source.broken(path, f"cannot be decoded ({' '.join(str(error).split())[:120]}). Unpack it again.")
            continue
        if image.shape != labels.shape:
            source.broken(path, f"the scan has the size {image.shape}, its reference {labels.shape}")
            continue
        scaled = to_bytes(image.astype(np.float32), above=0.0)
        areas = np.count_nonzero(labels, axis=(0, 1))
        free = tumour_free(areas, margin)
        for k in range(first, min(last, image.shape[2] - 1) + 1, step):
            if not image[:, :, k].any() or (not free[k] and areas[k] < 16):
                continue
            marked = (labels[:, :, k] > 0).astype(np.uint8) * np.uint8(255)
            yield Record(
                f"{case}_{sequence}_{k:03d}",
                int(not free[k]),
                "no tumour" if free[k] else "tumour",
                group=case,
                pixels=_axial(scaled[:, :, k]),
                mask_pixels=None if free[k] else _axial(marked),
            )


def _canonical(nibabel: Any, path: Path) -> Any:
    return nibabel.as_closest_canonical(nibabel.load(path))


def _axial(plane: Any) -> Any:
    """A slice (right, anterior) as a radiological picture: anterior up, the patient's left on the right."""
    return np.ascontiguousarray(np.rot90(plane[::-1]))


@builder("lgg_segmentation")
def lgg_segmentation(source: Source, flair: bool = False, margin: int = 0, head: float = 0.1) -> Iterator[Record]:
    """LGG segmentation (Kaggle, Buda): TIFF slices of three sequences as colours, with masks.

    Args:
        source: folder kaggle_3m with TCGA_*/TCGA_*_<slice>.tif and ..._mask.tif.
        flair: write the second channel, FLAIR, as PNG instead of naming the TIFF files.
        margin: a normal slice is at least this many slices away from any slice with tumour.
        head: least part of a slice that is brighter than 20 of 255; the ends of a stack show next to nothing.
    """
    cases = sorted({path.parent for path in source.images(source.raw, ("_mask.tif",), deep=True)})
    if not cases:
        source.find("kaggle_3m")  # says what is missing
    seen: set[str] = set()
    for folder in cases:
        if folder.name in seen:  # Kaggle's archive holds everything twice
            continue
        seen.add(folder.name)
        scan = []
        for path in source.images(folder, (".tif",)):
            if path.stem.endswith("_mask"):
                continue
            mask = path.with_name(f"{path.stem}_mask.tif")
            if not mask.is_file():
                source.broken(path, "its mask is missing")
                continue
            try:
                scan.append((int(path.stem.rpartition("_")[2]), path, mask, int(read_mask(mask).sum()), _channel(path)))
            except ValueError as error:
                source.broken(path, str(error))
        scan.sort(key=lambda entry: entry[0])
        free = tumour_free([area for *_, area, _ in scan], margin)
        for (_, path, mask, area, picture), normal in zip(scan, free, strict=True):
            if (picture > 20).mean() < head or (not normal and area == 0):
                continue
            kind = "no tumour" if normal else "tumour"
            record = Record(path.stem, int(not normal), kind, path, folder.name, mask=None if normal else mask)
            if flair:
                record.image, record.pixels = None, picture
            yield record


def _channel(path: Path) -> Any:
    """FLAIR of a slice with three sequences."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            return np.ascontiguousarray(np.asarray(file.convert("RGB"))[..., 1])
    except Exception as error:  # decoders raise many types
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split())}). Replace the file.") from error


@builder("head_ct_hemorrhage")
def head_ct_hemorrhage(source: Source) -> Iterator[Record]:
    """Head CT haemorrhage (Kaggle, Kitamura): 200 PNG files and a table.

    Args:
        source: folder with head_ct/*.png (at any depth) and labels.csv.
    """
    files = {int(path.stem): path for path in source.images(source.raw, deep=True) if path.stem.isdigit()}
    for row in source.table(source.find("labels.csv") / "labels.csv", "id", "hemorrhage"):
        number, label = int(row["id"]), int(row["hemorrhage"])
        if number not in files:
            source.broken(f"{number:03d}.png", "labels.csv lists it, but there is no such file")
            continue
        yield Record(f"{number:03d}", label, "haemorrhage" if label else "normal", files[number])
