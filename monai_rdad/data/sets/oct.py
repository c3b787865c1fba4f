# SPDX-License-Identifier: Apache-2.0
"""Optical coherence tomography of the retina."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rdad.data.measure import to_bytes
from monai_rdad.data.sets.source import Record, Source, builder

__all__ = ["duke_dme", "oct2017", "retouch"]

_MIN_AREA = 16  # pixels; slices with less fluid than that are neither normal nor of use as abnormal


@builder("oct2017")
def oct2017(source: Source) -> Iterator[Record]:
    """OCT2017 of Kermany et al.: JPEG files in folders by split and class, named CLASS-patient-number.jpeg.

    Args:
        source: folder with train/ and test/ (Kaggle's copy also val/), each with CNV/, DME/, DRUSEN/ and NORMAL/.
    """
    folder = source.find("train", "test")
    for place, split in (("train", "training"), ("val", "validation"), ("test", "testing")):
        for kind in ("NORMAL", "CNV", "DME", "DRUSEN"):
            for image in source.images(source.child(source.child(folder, place), kind)):
                parts = image.stem.split("-")
                group = parts[1] if len(parts) == 3 else ""
                yield Record(f"{place}-{image.stem}", int(kind != "NORMAL"), kind, image, group, split)


@builder("duke_dme")
def duke_dme(source: Source) -> Iterator[Record]:
    """Diabetic macular oedema (Chiu et al. 2015): MATLAB files; the B-scans that both experts annotated, as PNG.

    Abnormal is a B-scan in which either expert marks fluid; its mask is what either marks.

    Args:
        source: folder with Subject_01.mat to Subject_10.mat, each with images (rows, columns, B-scans), manualFluid1
            and manualFluid2, NaN in the B-scans without annotation.
    """
    from scipy.io import loadmat

    files = [path for path in source.images(source.raw, (".mat",), deep=True) if path.stem.startswith("Subject_")]
    if not files:
        source.find("Subject_01.mat")  # says what is missing
    for path in files:
        keys = ("images", "manualFluid1", "manualFluid2")
        try:
            content = loadmat(path, variable_names=list(keys))
            scans, *graders = (np.asarray(content[key]) for key in keys)
        except Exception as error:  # scipy raises many types
            source.broken(path, f"cannot be read ({' '.join(str(error).split())[:120]}). Unpack it again.")
            continue
        annotated = ~np.isnan(np.stack([grader.astype(np.float32) for grader in graders])).all((0, 1, 2))
        fluid = (np.nan_to_num(graders[0]) > 0) | (np.nan_to_num(graders[1]) > 0)
        for k in np.flatnonzero(annotated):
            yield from _slice(f"{path.stem}_{k:02d}", path.stem, scans[..., k], fluid[..., k])


@builder("retouch")
def retouch(source: Source, device: str = "", step: int = 1) -> Iterator[Record]:
    """RETOUCH: OCT volumes in MetaImage format; their B-scans as PNG.

    Args:
        source: folder with RETOUCH-TrainingSet-{Cirrus,Spectralis,Topcon}/TRAIN*/{oct,reference}.{mhd,raw}; the test
            volumes have no published reference.
        device: only "Cirrus", "Spectralis" or "Topcon"; empty: all. Devices are easier to tell apart than fluid.
        step: take every ``step``-th B-scan.
    """
    import SimpleITK

    scans = [path for path in source.images(source.raw, (".mhd",), deep=True) if path.name == "oct.mhd"]
    if not scans:
        source.find("oct.mhd")  # says what is missing
    for path in scans:
        case, vendor = path.parent.name, path.parent.parent.name.rpartition("-")[2]
        if device and vendor.lower() != device.lower():
            continue
        reference = path.with_name("reference.mhd")
        if not reference.is_file():
            source.broken(path, "its reference.mhd is missing")
            continue
        try:
            image, labels = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(p))) for p in (path, reference))
        except RuntimeError as error:
            source.broken(path, f"cannot be decoded ({' '.join(str(error).split())[-120:]}). Unpack it again.")
            continue
        if image.shape != labels.shape:
            source.broken(path, f"the volume has the size {image.shape}, its reference {labels.shape}")
            continue
        scaled = to_bytes(image)
        for k in range(0, image.shape[0], step):
            yield from _slice(f"{vendor}_{case}_{k:03d}", f"{vendor}_{case}", scaled[k], labels[k] > 0)


def _slice(name: str, group: str, image: NDArray[Any], fluid: NDArray[np.bool_]) -> Iterator[Record]:
    """Record of a B-scan and the mask of its fluid."""
    area = int(fluid.sum())
    if 0 < area < _MIN_AREA:
        return
    pixels = np.ascontiguousarray(to_bytes(image))
    mask = fluid.astype(np.uint8) * np.uint8(255) if area else None
    yield Record(name, int(area > 0), "fluid" if area else "no fluid", group=group, pixels=pixels, mask_pixels=mask)
