# SPDX-License-Identifier: Apache-2.0
"""What the transforms that corrupt a patch of an image have in common."""

from __future__ import annotations

import math

import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor


def side_range(side: int, fractions: tuple[float, float]) -> tuple[int, int]:
    """Smallest and largest patch side in pixels.

    Args:
        side: of the image in pixels.
        fractions: smallest and largest patch side as fractions of it.

    Raises:
        ValueError: no whole number of pixels lies between them.
    """
    # The small number keeps a product that is whole but for rounding on its integer.
    low = max(1, math.ceil(fractions[0] * side - 1e-6))
    high = math.floor(fractions[1] * side + 1e-6)
    if high < low:
        raise ValueError(
            f"An image side of {side} pixels is too small for a patch of {fractions[0]:.4f} to {fractions[1]:.4f} of "
            "it: no whole number of pixels lies in that range. Use larger images or larger patches."
        )
    return low, high


def copy_unit_image(img: NdarrayOrTensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of a float image in [0, 1] to be painted on.

    Args:
        img: float (C, H, W) with values in [0, 1].
        name: of the corruption, for the messages.

    Returns:
        The copy, with the input's metadata if it has any, and a plain view of the same storage: a MetaTensor would
        carry its metadata through every step.

    Raises:
        ValueError: the image is anything else.
    """
    image = img if isinstance(img, torch.Tensor) else torch.as_tensor(img)
    result = image.clone()
    values = result.as_tensor() if isinstance(result, MetaTensor) else result
    if values.ndim != 3 or not values.is_floating_point():
        raise ValueError(
            f"{name} needs a float image (C, H, W), got {values.dtype} of shape {tuple(values.shape)}. "
            "Scale it to [0, 1] first."
        )
    low, high = (float(v) for v in values.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"{name} needs values in [0, 1], got {low:.4g} to {high:.4g}. Scale the image first.")
    return result, values
