# SPDX-License-Identifier: Apache-2.0
"""Dictionary versions of the changes of size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import ensure_tuple_rep

from monai_rdad.transforms.spatial.array import ResizeInPlane

__all__ = ["ResizeInPlaned"]


class ResizeInPlaned(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`~monai_rdad.transforms.spatial.array.ResizeInPlane`.

    Args:
        keys: of the images and masks.
        size: height and width of the result.
        nearest: whether to copy nearest values, one for all keys or one per key.
        divisor: of which the size has to be a multiple, and at least twice.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: int,
        nearest: bool | Sequence[bool] = False,
        divisor: int = 32,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.resizers = [ResizeInPlane(size, n, divisor) for n in ensure_tuple_rep(nearest, len(self.keys))]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its images resized."""
        d = dict(data)
        for key, resizer in self.key_iterator(d, self.resizers):
            d[key] = resizer(d[key])
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its images (or what took their place) in the size that they had."""
        d = dict(data)
        for key, resizer in self.key_iterator(d, self.resizers):
            d[key] = resizer.inverse(d[key])
        return d
