# SPDX-License-Identifier: Apache-2.0
"""Resizing of images, and of volumes slice by slice."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["ResizeInPlane"]


class ResizeInPlane(InvertibleTransform):
    """Resizes the first two spatial axes to a square; the slices of a volume stay as many as they are.

    Bilinear with anti-aliasing, as Pillow and torchvision do it: the images that ImageNet teachers saw were made so.
    A 2D network reads slices, so a volume's spacing plays no part here and its affine is left alone;
    ``monai.transforms.Invertd`` brings a map back to the size that the image had.

    Args:
        size: height and width of the result.
        nearest: copy the nearest value instead, for masks.
        divisor: of which the size has to be a multiple, and at least twice: 32 for networks that halve it five times,
            the edge of a patch for transformers.
    """

    def __init__(self, size: int, nearest: bool = False, divisor: int = 32) -> None:
        if size < 2 * divisor or size % divisor:
            raise ValueError(
                f"The image size is {size}, it must be a multiple of {divisor} and at least {2 * divisor} "
                "for this network."
            )
        self.size = int(size)
        self.nearest = nearest

    def __call__(self, img: Any) -> Tensor:
        """(C, H, W) or (C, H, W, D) of any type to the same type with H = W = size."""
        image = convert_to_tensor(img, track_meta=get_track_meta())
        result = self._resize(image, (self.size, self.size))
        if isinstance(result, MetaTensor):
            self.push_transform(result, orig_size=tuple(image.shape[1:3]))
        return result

    def inverse(self, img: MetaTensor) -> MetaTensor:
        """The tensor with the height and width of the image that the transform was applied to."""
        height, width = self.pop_transform(img)["orig_size"]
        return self._resize(img, (int(height), int(width)))

    def _resize(self, image: Any, size: tuple[int, int]) -> Any:
        if tuple(image.shape[1:3]) == size:
            return image
        values = image.as_tensor() if isinstance(image, MetaTensor) else image
        slices = values[None] if values.ndim == 3 else values.movedim(-1, 0)
        if self.nearest:
            slices = interpolate(slices.float(), size=size, mode="nearest-exact").to(values.dtype)
        else:
            # float64 in between: the result does not depend on the order of summation, and an exported graph rounds to
            # the same bytes
            slices = interpolate(slices.double(), size=size, mode="bilinear", antialias=True, align_corners=False)
            slices = slices.to(values.dtype) if torch.is_floating_point(values) else slices.round().to(values.dtype)
        result = slices[0] if values.ndim == 3 else slices.movedim(0, -1)
        return MetaTensor(result).copy_meta_from(image) if isinstance(image, MetaTensor) else result
