# SPDX-License-Identifier: Apache-2.0
"""An anomaly map over its image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLORMAP", "CONTOUR", "colorize", "overlay", "to_rgb"]

COLORMAP = "inferno"
"""Name of matplotlib's colour map of all anomaly maps: dark to bright, also in grey print and for the colour-blind."""

CONTOUR = (0, 230, 255)
"""Colour (R, G, B) of the lesion's outline; cyan does not occur in the colour map."""


def to_rgb(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Picture (H, W, 3), uint8, of an image (H, W), (1, H, W) or (3, H, W): uint8, or float, clipped to [0, 1]."""
    planes = image[None] if image.ndim == 2 else image
    if planes.ndim != 3 or planes.shape[0] not in (1, 3):
        raise ValueError(f"A picture needs an image (H, W), (1, H, W) or (3, H, W), this one is {image.shape}.")
    if planes.dtype != np.uint8:
        planes = np.rint(np.clip(planes.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(planes, (3, *planes.shape[1:])).transpose(1, 2, 0))


def colorize(anomaly_map: NDArray[Any], vmin: float, vmax: float) -> NDArray[np.uint8]:
    """Colours (H, W, 3), uint8, of a map (H, W): ``vmin`` and below is black, ``vmax`` and above is light yellow."""
    from matplotlib import colormaps

    return np.asarray(colormaps[COLORMAP](_level(anomaly_map, vmin, vmax), bytes=True))[..., :3]


def overlay(
    image: NDArray[Any],
    anomaly_map: NDArray[Any],
    vmin: float,
    vmax: float,
    alpha: float = 0.7,
    mask: NDArray[Any] | None = None,
) -> NDArray[np.uint8]:
    """The map's colours over the image, the more opaque the higher the map, so that normal tissue stays visible.

    Args:
        image: (H, W), (1, H, W) or (3, H, W); uint8, or float in [0, 1].
        anomaly_map: (H, W), any unit.
        vmin: value of the map that is transparent, and everything below.
        vmax: value of the map that has the brightest colour and the opacity ``alpha``, and everything above.
        alpha: largest opacity, in [0, 1].
        mask: (H, W); the outline of the pixels equal to 1 is drawn, inside of them. 255 means unknown.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: sizes differ, or ``vmax`` is not above ``vmin``.
    """
    picture = to_rgb(image)
    for what, array in (("map", anomaly_map), ("mask", mask)):
        if array is not None and array.shape != picture.shape[:2]:
            raise ValueError(f"The image is {picture.shape[:2]}, its {what} is {array.shape}; they must be equal.")
    opacity = alpha * _level(anomaly_map, vmin, vmax)[..., None]
    mixed = picture * (1 - opacity) + colorize(anomaly_map, vmin, vmax) * opacity
    result = np.rint(mixed).astype(np.uint8)
    if mask is not None:
        result[_outline(mask == 1)] = CONTOUR
    return result


def _level(anomaly_map: NDArray[Any], vmin: float, vmax: float) -> NDArray[np.float32]:
    if not vmax > vmin:
        raise ValueError(f"vmax is {vmax}, it must be above vmin = {vmin}.")
    return np.clip((anomaly_map.astype(np.float32) - vmin) / (vmax - vmin), 0, 1)


def _outline(lesion: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_erosion

    return lesion & ~binary_erosion(lesion, border_value=1)
