# SPDX-License-Identifier: Apache-2.0
"""Small copies of images and maps, for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.utils.type_conversion import convert_to_tensor
from numpy.typing import NDArray
from torch.nn.functional import interpolate

__all__ = ["color_scale", "fit_map", "fit_mask", "fit_picture"]


def _fit(array: Any, edge: int, mode: str, spacing: Sequence[float] = (1.0, 1.0)) -> torch.Tensor:
    """Planes (C, H, W) on the CPU with square pixels, of the finer spacing if that is no longer than ``edge``."""
    planes = convert_to_tensor(array, dtype=torch.float32, device="cpu", track_meta=False)
    extents = [n * step / min(spacing) for n, step in zip(planes.shape[1:], spacing, strict=True)]
    scale = min(1.0, edge / max(extents))
    size = [max(1, round(extent * scale)) for extent in extents]
    if size == list(planes.shape[1:]):
        return planes
    smooth = {"antialias": True, "align_corners": False} if mode == "bilinear" else {}
    return interpolate(planes[None], size, mode=mode, **smooth)[0]


def fit_picture(image: Any, edge: int, spacing: Sequence[float] = (1.0, 1.0)) -> NDArray[np.uint8]:
    """uint8 (C, H, W), no longer than ``edge``, of an image (C, H, W) in [0, 1] (values outside are clipped).

    ``spacing`` is the distance of rows and of columns; the result has square pixels.
    """
    return (_fit(image, edge, "bilinear", spacing).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def fit_map(anomaly_map: Any, edge: int, spacing: Sequence[float] = (1.0, 1.0)) -> NDArray[np.float32]:
    """float32 (H, W), no longer than ``edge``, of a map (H, W), made as :func:`fit_picture` does it."""
    return _fit(anomaly_map[None], edge, "bilinear", spacing)[0].numpy()


def fit_mask(mask: Any, edge: int) -> NDArray[np.uint8] | None:
    """uint8 (H, W), no longer than ``edge``, of a mask (H, W) with values 0, 1, 255; None of None."""
    return None if mask is None else _fit(mask[None], edge, "nearest-exact")[0].to(torch.uint8).numpy()


def color_scale(maps: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Ends of a colour scale for some maps: the median and the 99.9th percentile of all their values.

    Below the median an overlay shows nothing of the map: networks differ in the level of their maps on normal tissue.
    """
    values = np.concatenate([np.asarray(m, dtype=np.float32).ravel() for m in maps])
    low, high = (float(q) for q in np.percentile(values, (50, 99.9)))
    return low, max(high, low + 1e-6)
