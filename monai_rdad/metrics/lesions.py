# SPDX-License-Identifier: Apache-2.0
"""What stands out in the anomaly map of a volume, as a list."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Lesion", "find_lesions"]


class Lesion(NamedTuple):
    """A connected part of a map above a threshold.

    Attributes:
        x: of the centre (the mean of the voxels' centres) in mm, towards the patient's right.
        y: towards the front.
        z: towards the head.
        volume_ml: number of voxels times their volume, in millilitres.
        peak: largest map value.
        voxels: their number.
        peak_voxel: place of the largest value, as indices into the map's array.
    """

    x: float
    y: float
    z: float
    volume_ml: float
    peak: float
    voxels: int
    peak_voxel: tuple[int, int, int]


def find_lesions(anomaly_map: NDArray[Any], affine: NDArray[Any], threshold: float) -> list[Lesion]:
    """Connected parts of a map at or above a threshold, the one with the highest peak first.

    Voxels belong together through faces, edges and corners (26 neighbours), as the regions of AUPRO do.

    Args:
        anomaly_map: (X, Y, Z).
        affine: (4, 4), from voxel indices to mm in RAS+.
        threshold: map value; infinite for no lesion.
    """
    if not math.isfinite(threshold):
        return []
    labels, count = ndimage.label(anomaly_map >= threshold, ndimage.generate_binary_structure(3, 3))
    if not count:
        return []
    where = np.flatnonzero(labels)
    label = labels.ravel()[where] - 1
    values = anomaly_map.ravel()[where]
    voxels = np.bincount(label)
    indices = np.stack(np.unravel_index(where, anomaly_map.shape))
    centres = np.stack([np.bincount(label, weights=i) for i in indices], axis=1) / voxels[:, None]
    centres = centres @ affine[:3, :3].T + affine[:3, 3]
    millilitres = voxels * abs(np.linalg.det(affine[:3, :3])) / 1000
    # the last entry of each label in ascending order of values is its peak
    order = np.lexsort((values, label))
    peaks = order[np.cumsum(voxels) - 1]
    result = []
    for k in np.argsort(-values[peaks], kind="stable"):
        x, y, z = map(float, centres[k])
        i, j, m = map(int, indices[:, peaks[k]])
        result.append(Lesion(x, y, z, float(millilitres[k]), float(values[peaks[k]]), int(voxels[k]), (i, j, m)))
    return result
