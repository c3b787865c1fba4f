# SPDX-License-Identifier: Apache-2.0
"""Dictionary version of the split into slices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.transforms.transform import Transform
from monai.utils.type_conversion import convert_to_tensor

from monai_rdad.transforms.slices.array import SplitSlices

__all__ = ["SplitSlicesd"]


class SplitSlicesd(Transform):
    """Dictionary version of :class:`~monai_rdad.transforms.slices.array.SplitSlices`: an item becomes a list of items.

    A volume gives an item per slice, with the axis and the index in its "name"; a 2D image is the only item of its
    list. :class:`monai_rdad.data.SliceCacheDataset` joins the lists.

    Args:
        key: of the image, (C, H, W) or (C, H, W, D).
        axes: see there.
        min_foreground: see there.
        slices_per_volume: see there.
        exclude_key: of the mask, if an item has one, whose slices are left out.
        name_key: of the item's name, for error messages and for the names of the slices.

    Raises:
        ValueError: (on call) no slice qualifies, or a 2D image has slices to exclude; the message names the item.
    """

    def __init__(
        self,
        key: Hashable = "image",
        axes: Sequence[int] = (2,),
        min_foreground: float = 0.05,
        slices_per_volume: int | None = None,
        exclude_key: Hashable = "exclude",
        name_key: Hashable = "name",
    ) -> None:
        self.split = SplitSlices(axes, min_foreground, slices_per_volume)
        self.key = key
        self.exclude_key = exclude_key
        self.name_key = name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """The items of the slices."""
        d = dict(data)
        name, exclude = d.get(self.name_key, "an image"), d.pop(self.exclude_key, None)
        if d[self.key].ndim == 3:
            if exclude is not None:
                raise ValueError(f"{name}: it is a 2D image and has no slices to exclude. Remove its 'exclude'.")
            return [d]
        try:
            exclude = None if exclude is None else convert_to_tensor(exclude, track_meta=False)
            slices = self.split(convert_to_tensor(d[self.key], track_meta=False), exclude)
        except ValueError as error:
            raise ValueError(f"{name}: {error}.") from error
        return [d | {self.key: s, self.name_key: f"{name} axis {axis} slice {k}"} for axis, k, s in slices]
