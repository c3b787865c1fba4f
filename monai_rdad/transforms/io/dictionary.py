# SPDX-License-Identifier: Apache-2.0
"""Dictionary versions of the readers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform

from monai_rdad.transforms.io.array import ReadImage, ReadMask

__all__ = ["ReadImaged", "ReadMaskd"]

UNKNOWN = 255  # mask value of pixels whose truth is not known


class ReadImaged(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`~monai_rdad.transforms.io.array.ReadImage`; the keys hold paths.

    ``monai.transforms.Invertd`` with a chain that starts with this transform gives an anomaly map the voxel order and
    the affine of the file.

    Args:
        keys: of the paths, replaced by the images.
        channels: 1 or 3, see there.
        volumes: whether volumes are welcome.
        axis: of the body across the slices of a volume, see there.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        channels: int = 1,
        volumes: bool = True,
        axis: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.reader = ReadImage(channels, volumes, axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its images."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.reader(d[key])
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its images (or what took their place) in the voxel order of their files."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.reader.inverse(d[key])
        return d


class ReadMaskd(MapTransform):
    """Fills the mask of an item, uint8 (1, H, W) or (1, H, W, D): 0 normal, 1 abnormal, 255 unknown.

    A missing mask (or None) is all 0 for a normal item and all 255 for an abnormal one. Belongs right behind
    :class:`ReadImaged`, before anything changes the image's size.

    Args:
        keys: of the mask paths.
        ref_key: of the image, already read, whose size the mask must have.
        label_key: of the label, 0 normal or 1 abnormal. None for masks that have nothing to do with it: items without
            one are left as they are, and an empty one is fine.
        axis: of the body across the slices of a volume, as for the image.

    Raises:
        FileNotFoundError: (on call) no such file.
        ValueError: (on call) mask and image differ in size or, as volumes, in position; the mask contradicts the
            label; the mask file cannot be read.
    """

    def __init__(
        self, keys: KeysCollection, ref_key: str = "image", label_key: str | None = "label", axis: int = 2
    ) -> None:
        super().__init__(keys)
        self.reader = ReadMask(axis)
        self.ref_key = ref_key
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its masks."""
        d = dict(data)
        image = d[self.ref_key]
        abnormal = None if self.label_key is None else int(d[self.label_key]) == 1
        for key in self.keys:
            if d.get(key) is None:
                if abnormal is None:
                    continue
                fill = UNKNOWN if abnormal else 0
                values = torch.full((1, *image.shape[1:]), fill, dtype=torch.uint8)
                d[key] = MetaTensor(values, affine=image.affine)
                continue
            path = d[key]
            d[key] = mask = self.reader(path)
            if mask.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"{path}: the mask has size {tuple(mask.shape[1:])}, its image {tuple(image.shape[1:])}. "
                    "Make the mask from the very file that the manifest names as the image."
                )
            if image.ndim == 4 and _displacement(mask, image) > 0.5:
                raise ValueError(
                    f"{path}: the mask's affine puts it elsewhere than its image. Copy the image's affine to the mask."
                )
            if abnormal is not None and bool(mask.any()) != abnormal:
                content = "is empty" if abnormal else "marks pixels"
                raise ValueError(
                    f"{path}: the mask {content}, but the item's label is {int(abnormal)}. Correct the manifest: the "
                    "label, or leave the mask out."
                )
        return d


def _displacement(mask: MetaTensor, image: MetaTensor) -> float:
    """Largest distance between the corners of two volumes of one shape, in voxels of the smallest edge."""
    grid = np.stack(np.meshgrid(*[(0, n - 1) for n in image.shape[1:]], [1.0], indexing="ij"), axis=-1).reshape(-1, 4)
    affine = np.asarray(image.affine)
    moved = grid @ (np.asarray(mask.affine) - affine).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max() / np.linalg.norm(affine[:3, :3], axis=0).min())
