# SPDX-License-Identifier: Apache-2.0
"""Volumes as stacks of slices along any of the three axes of the body."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms.transform import Transform
from nibabel.orientations import axcodes2ornt, ornt_transform
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate

from monai_rdad.transforms.io.array import VIEW_AXCODES

__all__ = ["FOREGROUND_LEVEL", "SliceView", "SplitSlices", "check_axes", "foreground_fraction", "through_slices"]

FOREGROUND_LEVEL = 0.05  # of the intensity range after the preset: what is darker counts as background


def check_axes(axes: Sequence[int]) -> tuple[int, ...]:
    """The axes along which volumes are cut, as a tuple.

    Raises:
        ValueError: none, one twice, or one that is not 0, 1 or 2.
    """
    result = tuple(axes)
    if not result or len(set(result)) < len(result) or not set(result) <= {0, 1, 2}:
        raise ValueError(
            f"axes is {list(axes)}: name one or more of 0 (sagittal slices), 1 (coronal) and 2 (axial), each once."
        )
    return result


def foreground_fraction(slices: Tensor) -> Tensor:
    """Fraction (N,) of the pixels of slices (N, C, H, W) that are foreground.

    Foreground is what is brighter than 0.05 in any channel; uint8 counts as 255 times that range.
    """
    level = int(255 * FOREGROUND_LEVEL) if slices.dtype == torch.uint8 else FOREGROUND_LEVEL
    return (slices.amax(1) > level).float().mean((1, 2))


def through_slices(volume: Tensor) -> Tensor:
    """Slices (N, C, H, W) of volumes (B, C, H, W, D), N = B * D with the slices of a volume in a row."""
    return volume.movedim(-1, 1).flatten(0, 1)


class SliceView:
    """Turns a volume from the view in which its last axis crosses one kind of slice to that of another.

    Each kind looks like a radiological picture: axial with the anterior side up, sagittal and coronal with the
    superior side up (:class:`~monai_rdad.transforms.ReadImage`).

    Args:
        source: axis of the body (0, 1, 2 of RAS) across the slices of the volume as it is.
        target: axis across the slices of the result.
    """

    def __init__(self, source: int, target: int) -> None:
        turn = ornt_transform(axcodes2ornt(VIEW_AXCODES[source]), axcodes2ornt(VIEW_AXCODES[target])).astype(int)
        self._order = np.argsort(turn[:, 0]).tolist()  # target axis i is source axis order[i]
        self._back = np.argsort(self._order).tolist()
        self._flips = [axis - 3 for axis in range(3) if turn[self._order[axis], 1] < 0]

    def __call__(self, volume: Tensor) -> Tensor:
        """Volume (..., H, W, D) in the other view."""
        return _permuted(volume, self._order).flip(self._flips)

    def inverse(self, volume: Tensor) -> Tensor:
        """Back to the view of the source."""
        return _permuted(volume.flip(self._flips), self._back)


def _permuted(volume: Tensor, order: Sequence[int]) -> Tensor:
    leading = list(range(volume.ndim - 3))
    return volume.permute(*leading, *(len(leading) + axis for axis in order))


class SplitSlices(Transform):
    """The slices of a volume that a 2D network trains on.

    Args:
        axes: of the body, along which the volume is cut; the volume comes in the view of the first one. Slices along
            the others are resized to the size that those along the first have.
        min_foreground: fraction of a slice that has to be foreground, see :func:`foreground_fraction`; 0 takes all.
        slices_per_volume: number of slices per axis, evenly spread over those that qualify; None for all.

    Raises:
        ValueError: wrong arguments; (on call) no slice qualifies.
    """

    def __init__(
        self, axes: Sequence[int] = (2,), min_foreground: float = 0.05, slices_per_volume: int | None = None
    ) -> None:
        if not 0 <= min_foreground < 1:
            raise ValueError(f"min_foreground is {min_foreground}, it must lie in [0, 1).")
        if slices_per_volume is not None and slices_per_volume < 1:
            raise ValueError(f"slices_per_volume is {slices_per_volume}, it must be at least 1, or null for all.")
        self.axes = check_axes(axes)
        self.min_foreground = min_foreground
        self.slices_per_volume = slices_per_volume

    def __call__(self, volume: Tensor, exclude: Tensor | None = None) -> list[tuple[int, int, Tensor]]:
        """Slices of a volume.

        Args:
            volume: uint8, or float in [0, 1], (C, H, W, D).
            exclude: of the same field of view, any size, (1, H', W', D): a slice with a value that is not 0 is left
                out, along every axis.

        Returns:
            (axis, index, slice (C, H, W)) of each slice, the index counting towards right, anterior or superior.
        """
        size = (volume.shape[1], volume.shape[2])
        if exclude is not None:
            # the largest value of each cell: no voxel is lost in a smaller size
            exclude = adaptive_max_pool2d(exclude.movedim(-1, 0).float(), size).movedim(0, -1)
        result = []
        for axis in self.axes:
            view = SliceView(self.axes[0], axis)
            planes = resized(through_slices(view(volume)[None]), size)
            kept = foreground_fraction(planes) >= self.min_foreground
            if exclude is not None:
                kept &= ~view(exclude).flatten(0, 2).any(0)
            chosen = kept.nonzero().flatten()
            if self.slices_per_volume is not None and len(chosen) > self.slices_per_volume:
                steps = (torch.arange(self.slices_per_volume) + 0.5) * len(chosen) / self.slices_per_volume
                chosen = chosen[steps.long()]
            result += [(axis, k, planes[k].clone()) for k in chosen.tolist()]
        if not result:
            raise ValueError(
                f"none of its slices along the axes {list(self.axes)} qualifies: at least {self.min_foreground:g} of a "
                "slice has to be foreground, and nothing of it excluded. Leave the volume out, or lower min_foreground"
            )
        return result


def resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Planes (N, C, H, W) of any type in another size, bilinear with anti-aliasing as in ``ResizeInPlane``."""
    if tuple(planes.shape[2:]) == tuple(size):
        return planes
    result = interpolate(planes.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return result if torch.is_floating_point(planes) else result.round().to(planes.dtype)
