# SPDX-License-Identifier: Apache-2.0
"""What inference leaves of a volume: its map as NIfTI, rows of its slices and lesions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from monai_rdad.formats import file_kind
from monai_rdad.metrics import find_lesions
from monai_rdad.utils import atomic_path

__all__ = ["LesionRow", "SliceRow", "axis_across", "lesion_rows", "slice_indices", "volume_record", "write_nifti"]


class SliceRow(NamedTuple):
    """One row of slices.csv: a slice of a volume.

    Attributes:
        name: of the input.
        slice: index into the input's own array, along its axis that is closest to the one across the slices.
        score: reduced from the slice's map; empty for a slice without enough foreground, which was left out.
    """

    name: str
    slice: int
    score: float | str


class LesionRow(NamedTuple):
    """One row of lesions.csv: a connected part of a volume's map above the threshold.

    Attributes:
        name: of the input.
        lesion: its number in the input, from 1, that with the highest peak first.
        x_mm: of its centre, towards the patient's right, in the input's world coordinates (RAS+, as in NIfTI; DICOM
            counts x and y the other way).
        y_mm: towards the front.
        z_mm: towards the head.
        volume_ml: its volume in millilitres.
        peak: largest value of the map in it.
        slice: that the largest value is in, counted as in slices.csv.
        voxels: their number.
    """

    name: str
    lesion: int
    x_mm: float
    y_mm: float
    z_mm: float
    volume_ml: float
    peak: float
    slice: int
    voxels: int


def axis_across(affine: NDArray[np.float64], axis: int) -> tuple[int, int]:
    """The array's axis that is closest to an axis of the body, and 1 if both grow the same way, else -1."""
    orientation = io_orientation(affine)
    k = int(np.flatnonzero(orientation[:, 0] == axis)[0])
    return k, int(orientation[k, 1])


def slice_indices(affine: NDArray[np.float64], axis: int, count: int) -> list[int]:
    """Per slice of the view its index in the input, whose axis may count the other way."""
    order = list(range(count))
    return order if axis_across(affine, axis)[1] > 0 else order[::-1]


def lesion_rows(
    name: str, values: NDArray[np.float32], affine: NDArray[np.float64], axis: int, threshold: float
) -> list[LesionRow]:
    """Rows of the lesions in the map of a volume, see :func:`~monai_rdad.metrics.find_lesions`."""
    across = axis_across(affine, axis)[0]
    return [
        LesionRow(name, i, f.x, f.y, f.z, f.volume_ml, f.peak, f.peak_voxel[across], f.voxels)
        for i, f in enumerate(find_lesions(values, affine, threshold), 1)
    ]


def volume_record(
    slices: Sequence[SliceRow], lesions: Sequence[LesionRow], axis: int, threshold: float
) -> dict[str, Any]:
    """Slices and lesions of a volume for JSON, which has null where the tables are empty."""
    return {
        "space": "RAS",
        "axis": axis,
        "threshold": threshold if math.isfinite(threshold) else None,
        "slices": [{"slice": row.slice, "score": None if row.score == "" else row.score} for row in slices],
        "lesions": [{k: v for k, v in row._asdict().items() if k != "name"} for row in lesions],
    }


def write_nifti(
    path: str | os.PathLike[str], values: NDArray[Any], affine: NDArray[np.float64], source: str = ""
) -> None:
    """Write an array (X, Y, Z) as NIfTI of the same type, complete or not at all.

    Args:
        path: of the NIfTI file.
        values: of the voxels.
        affine: in mm, RAS+.
        source: the input, whose frame of reference it is: sform and qform have its codes, for DICOM the scanner's.
    """
    import nibabel

    image: Any = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    if source and file_kind(source) == "nifti":
        header: Any = nibabel.load(source).header
        sform, qform = int(header["sform_code"]), int(header["qform_code"])
        if sform or qform:
            image.set_qform(header.get_qform(), qform)
            image.set_sform(header.get_sform(), sform)
    else:
        image.set_qform(affine, "scanner")
        image.set_sform(affine, "scanner")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
