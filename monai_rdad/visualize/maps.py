# SPDX-License-Identifier: Apache-2.0
"""Anomaly maps as PNG files that hold the scale of their values."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from monai_rdad.utils import atomic_path

__all__ = ["read_map", "write_map"]

TEXT_KEY = "monai_rdad max_value"


def write_map(path: str | os.PathLike[str], values: NDArray[np.floating], max_value: float, bits: int = 16) -> None:
    """Write a map as a grey PNG: value = pixel / (2 ** ``bits`` - 1) * ``max_value``, which stands in the file.

    The file is complete or not there at all.

    Args:
        path: of the PNG.
        values: (H, W); below 0 and above ``max_value`` they are clipped.
        max_value: value of a white pixel, above 0.
        bits: 16, or 8 for a picture.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    levels = np.rint(np.clip(values.astype(np.float32) / max_value, 0, 1) * (2**bits - 1))
    pixels = levels.astype(np.uint8 if bits == 8 else np.uint16)
    info = PngInfo()
    info.add_text(TEXT_KEY, repr(float(max_value)))
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info)


def read_map(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """The anomaly map (H, W) of a PNG of :func:`write_map`, in the unit of the map.

    Raises:
        ValueError: the file was not written by this package.
    """
    from PIL import Image

    with Image.open(path) as image:
        if TEXT_KEY not in image.info:
            raise ValueError(f"{path}: no '{TEXT_KEY}' in it, so it is no map of PredictionWriter.")
        white = 255 if image.mode == "L" else 65535
        return np.asarray(image, dtype=np.float32) * (float(image.info[TEXT_KEY]) / white)
