# SPDX-License-Identifier: Apache-2.0
"""Masks and pictures that have to be made from what a download holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["boxes_mask", "fundus_crop", "read_mask", "relative_rle_mask", "tumour_free", "union_mask"]


def relative_rle_mask(codes: Iterable[str], rows: int, columns: int) -> NDArray[np.uint8]:
    """Union of masks in the run-length code of the SIIM-ACR challenge.

    A code is "gap length gap length ...": each gap counts from the end of the run before, down the columns.

    Args:
        codes: of the objects in one image.
        rows: of the image.
        columns: of the image.

    Returns:
        uint8 (rows, columns), 0 or 255.

    Raises:
        ValueError: an odd count of numbers, or a run beyond the image.
    """
    steps = np.zeros(rows * columns + 1, np.int32)
    for code in codes:
        numbers = np.array(code.split(), np.int64)
        if numbers.size % 2:
            raise ValueError(f"its run-length code has {numbers.size} numbers; they come in pairs")
        ends = np.cumsum(numbers)
        starts, stops = ends[0::2], ends[1::2]
        if numbers.size and (numbers.min() < 0 or stops[-1] > rows * columns):
            raise ValueError(f"its run-length code ends at {stops[-1]} of {rows * columns} pixels")
        np.add.at(steps, starts, 1)
        np.add.at(steps, stops, -1)
    inside = np.cumsum(steps[:-1]) > 0
    return inside.reshape(columns, rows).T.astype(np.uint8) * np.uint8(255)


def boxes_mask(boxes: Sequence[tuple[float, float, float, float]], rows: int, columns: int) -> NDArray[np.uint8]:
    """Rectangles (left, top, width, height) in pixels, filled: uint8 (rows, columns), 0 or 255."""
    mask = np.zeros((rows, columns), np.uint8)
    for left, top, width, height in boxes:
        mask[round(top) : round(top + height), round(left) : round(left + width)] = 255
    return mask


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Mask from a picture: whatever is not 0 in any channel but alpha, (H, W).

    Raises:
        ValueError: not a whole picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            values = np.asarray(file.convert("RGB") if file.mode in ("P", "RGBA", "LA", "PA") else file)
    except Exception as error:  # decoders raise many types
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split())})") from error
    return np.asarray(values.any(-1) if values.ndim == 3 else values != 0)


def union_mask(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Union of several masks of one image, uint8, 0 or 255.

    Raises:
        ValueError: a file is broken, or sizes differ.
    """
    masks = [read_mask(path) for path in paths]
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError(f"its masks have the sizes {sorted({mask.shape for mask in masks})}")
    return np.logical_or.reduce(masks).astype(np.uint8) * np.uint8(255)


def tumour_free(areas: Sequence[int], margin: int) -> NDArray[np.bool_]:
    """Slices of a scan at least ``margin`` slices away from every slice with a lesion.

    Args:
        areas: lesion pixels of each slice, in order.
        margin: 0: the slice itself has none; n: nor have its n neighbours on either side.
    """
    lesion = np.asarray(areas, np.int64) > 0
    if not lesion.size:
        return lesion
    near = np.convolve(lesion, np.ones(2 * margin + 1), mode="full")[margin : margin + lesion.size]
    return near == 0


def fundus_crop(path: Path, edge: int, threshold: int = 30, margin: int = 5) -> NDArray[np.uint8]:
    """Square around the retina of a fundus photograph, (edge, edge, 3).

    The retina is the largest connected region whose red, green and blue add up to more than ``threshold``; the square
    has its centre of mass and its longer side plus ``margin`` pixels, and what lies outside the photograph is black.
    The parameters are those that ReContrast and, after it, DNP-ConFormer prepare APTOS 2019 with. The region is found
    on a copy reduced to at most 512 pixels, to which these lengths are scaled: 20 times faster, and the square differs
    by at most two pixels of that copy.

    Raises:
        ValueError: not a whole picture, or nothing but black.
    """
    from PIL import Image
    from scipy import ndimage

    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except Exception as error:  # decoders raise many types
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split())}). Replace the file.") from error
    step = max(1, -(-max(picture.size) // 512))
    coarse = np.asarray(picture.reduce(step) if step > 1 else picture, np.int32).sum(-1) > threshold
    regions, count = ndimage.label(coarse)
    if count == 0:
        raise ValueError("it is black throughout. Leave it out.")
    largest = 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    box = ndimage.find_objects(regions, largest)[largest - 1]
    centre = [(c + 0.5) * step for c in ndimage.center_of_mass(regions == largest)]
    half = step * max(part.stop - part.start for part in box) / 2 + margin
    corners = (centre[1] - half, centre[0] - half, centre[1] + half, centre[0] + half)
    square: Any = picture.crop(tuple(round(c) for c in corners))
    return np.asarray(square.resize((edge, edge), Image.Resampling.BILINEAR, reducing_gap=2.0))
