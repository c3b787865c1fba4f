# SPDX-License-Identifier: Apache-2.0
"""Equal and nearly equal images in a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from monai_rdad.data.measure import Measures
from monai_rdad.data.probe import content_digest

__all__ = ["MAX_BITS", "MIN_CORRELATION", "connected", "exact_duplicates", "near_duplicates"]

MAX_BITS = 7
"""Bits in which the hashes of near duplicates may differ. Below 8, two such hashes share one of their eight bytes."""
MIN_CORRELATION = 0.995
"""Least correlation of the 24-pixel thumbnails of near duplicates."""

_BLOCK = 1024  # rows of one comparison of hashes, and
_PAIRS = 50_000  # pairs of one comparison of thumbnails: bound the memory


def exact_duplicates(paths: Sequence[str], sizes: Sequence[int]) -> list[list[int]]:
    """Groups of two and more files with the same bytes, as indices in ascending order.

    Args:
        paths: of the files, or of folders with a DICOM series.
        sizes: their sizes; only files of one size are read.
    """
    by_size: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    by_content: dict[bytes, list[int]] = {}
    for members in by_size.values():
        if len(members) > 1:
            for index in members:
                by_content.setdefault(content_digest(paths[index]), []).append(index)
    return sorted(members for members in by_content.values() if len(members) > 1)


def near_duplicates(measures: Sequence[Measures]) -> NDArray[np.intp]:
    """Pairs of images that look the same: copies that were compressed anew, resized or brightened, but not cropped.

    A pair has perceptual hashes that differ in at most 7 of 64 bits *and* thumbnails of 24 pixels whose correlation is
    at least 0.995. The first condition is cheap: only images that share one byte of the hash at the same place are
    compared. The second keeps different patients in the same position apart: on radiographs, brain slices, fundus and
    ultrasound images, such copies reach 0.998, and different images 0.990 among those whose hashes agree.

    Args:
        measures: of the images, N of them.

    Returns:
        (pairs, 2), first index below the second, sorted.
    """
    if len(measures) < 2:
        return np.empty((0, 2), np.intp)
    codes = np.array([m.code for m in measures], np.uint64)
    octets = codes[:, None].view(np.uint8)
    small = np.stack([m.small.ravel() for m in measures]).astype(np.float32)
    small -= small.mean(1, keepdims=True)
    small /= np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)
    found = [np.empty((0, 2), np.intp)]
    for place in range(8):
        order = np.argsort(octets[:, place], kind="stable")
        starts = np.flatnonzero(np.diff(octets[order, place].astype(np.int16), prepend=-1))
        for members in np.split(order, starts[1:]):
            for start in range(0, members.size, _BLOCK):
                rows = members[start : start + _BLOCK]
                a, b = np.nonzero(_ones(codes[rows][:, None] ^ codes[members]) <= MAX_BITS)
                pairs = np.stack([rows[a], members[b]], axis=1)
                pairs = pairs[pairs[:, 0] < pairs[:, 1]]
                # In parts, for in a uniform set most hashes may agree.
                for part in np.array_split(pairs, len(pairs) // _PAIRS + 1):
                    likeness = np.einsum("ij,ij->i", small[part[:, 0]], small[part[:, 1]])
                    found.append(part[likeness >= MIN_CORRELATION])
    return np.unique(np.concatenate(found), axis=0)


def _ones(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Number of bits that are set."""
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.asarray(np.bitwise_count(values), np.uint8)
    return _BITS[values.view(np.uint8).reshape(*values.shape, 8)].sum(-1, dtype=np.uint8)


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def connected(pairs: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Number of the connected component of each of ``count`` nodes, (count,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.intp)
