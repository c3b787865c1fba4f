# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from monai_rdad.data.sets.pixels import (
    boxes_mask,
    fundus_crop,
    read_mask,
    relative_rle_mask,
    tumour_free,
    union_mask,
)


def _encode(mask: np.ndarray) -> str:  # type: ignore[type-arg]
    """Relative run-length code of a mask: distances between its edges, down the columns."""
    edges = np.flatnonzero(np.diff(np.r_[0, mask.T.ravel().astype(int), 0]))
    return " ".join(map(str, np.diff(edges, prepend=0)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_run_lengths_round_trip(rows: int, columns: int, seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < density
    assert np.array_equal(relative_rle_mask([_encode(mask)], rows, columns) > 0, mask)


def test_overlapping_runs_and_wrong_codes() -> None:
    both = relative_rle_mask(["0 3", "2 2"], 4, 2)
    assert both.T.ravel().tolist() == [255] * 4 + [0] * 4
    with pytest.raises(ValueError, match="come in pairs"):
        relative_rle_mask(["1 2 3"], 4, 4)
    with pytest.raises(ValueError, match="ends at 17 of 16 pixels"):
        relative_rle_mask(["10 7"], 4, 4)


def test_boxes_may_leave_the_image() -> None:
    mask = boxes_mask([(1, 0, 2, 2), (3, 3, 9, 9)], 4, 4)
    assert (mask > 0).astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(("margin", "free"), [(0, [1, 1, 1, 0, 0, 1, 1]), (1, [1, 1, 0, 0, 0, 0, 1]), (9, [0] * 7)])
def test_slices_away_from_tumour(margin: int, free: list[int]) -> None:
    assert tumour_free([0, 0, 0, 5, 1, 0, 0], margin).astype(int).tolist() == free


def test_no_slices() -> None:
    assert tumour_free([], 2).size == 0


def test_masks_from_pictures(tmp_path: Path) -> None:
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 1:5] = 7
    Image.fromarray(mask).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([mask] * 3 + [mask * 0 + 255])).save(tmp_path / "alpha.png")
    Image.fromarray(mask > 0).save(tmp_path / "bit.png")
    for name in ("grey.png", "alpha.png", "bit.png"):
        assert np.array_equal(read_mask(tmp_path / name), mask > 0)
    Image.fromarray(mask[:, :4]).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="its masks have the sizes"):
        union_mask([tmp_path / "grey.png", tmp_path / "small.png"])
    (tmp_path / "grey.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_mask(tmp_path / "grey.png")


@pytest.mark.parametrize("scale", [1, 5])
def test_fundus_crop_beyond_the_photograph(scale: int, tmp_path: Path) -> None:
    """A retina cut off above and below: the square is as wide as the retina, black where there is no photograph."""
    yy, xx = np.mgrid[: 100 * scale, : 300 * scale]
    disc = (yy - 50 * scale) ** 2 + (xx - 180 * scale) ** 2 < (80 * scale) ** 2
    Image.fromarray(np.uint8(200 * disc)[..., None].repeat(3, -1)).save(tmp_path / "eye.png")
    square = fundus_crop(tmp_path / "eye.png", 170)[..., 0] > 100
    assert square.shape == (170, 170)
    rows, columns = np.flatnonzero(square.any(1)), np.flatnonzero(square.any(0))
    margin = 5 / scale
    assert abs(columns[0] - margin) <= 4 and abs(columns[-1] - (169 - margin)) <= 4
    assert abs(rows[0] - 35) <= 4 and abs(rows[-1] - 134) <= 4
