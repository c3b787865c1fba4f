# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from monai_rdad.visualize.overlay import CONTOUR, colorize, overlay, to_rgb
from monai_rdad.visualize.reduce import color_scale, fit_map, fit_mask, fit_picture
from monai_rdad.visualize.sheet import Case, contact_sheet

RNG = np.random.default_rng(0)


@given(
    image=hnp.arrays(np.uint8, (7, 9)),
    levels=hnp.arrays(np.float32, (7, 9), elements=st.floats(-1, 3, width=32, allow_subnormal=False)),
)
@settings(max_examples=40, deadline=None)
def test_the_higher_the_map_the_more_of_it_is_seen(image: Any, levels: Any) -> None:
    result = overlay(image, levels, vmin=0.0, vmax=2.0, alpha=0.7)
    assert result.shape == (7, 9, 3) and result.dtype == np.uint8
    grey, color = to_rgb(image).astype(int), colorize(levels, 0.0, 2.0).astype(int)
    assert (result[levels <= 0] == grey[levels <= 0]).all()  # normal tissue is untouched
    top = levels >= 2
    assert np.abs(result[top] - (0.3 * grey[top] + 0.7 * color[top])).max(initial=0) < 0.501
    assert ((result >= np.minimum(grey, color)) & (result <= np.maximum(grey, color))).all()


def test_colours_and_floats() -> None:
    image = RNG.random((3, 5, 6)).astype(np.float32)
    rgb = to_rgb(image)
    assert np.abs(rgb / 255 - image.transpose(1, 2, 0)).max() <= 0.5 / 255 + 1e-6
    assert (to_rgb(image[:1]) == to_rgb(image[0])).all()
    assert to_rgb(np.array([[-1.0, 2.0]])).tolist() == [[[0] * 3, [255] * 3]]
    scale = colorize(np.linspace(0, 1, 50)[None], 0, 1).astype(int).sum(-1)[0]
    assert (np.diff(scale) >= 0).all()  # ever brighter


def test_outline_marks_the_edge_of_the_lesion_only() -> None:
    mask = np.zeros((12, 12), np.uint8)
    mask[3:8, 4:9] = 1
    mask[10:] = 255  # unknown is no lesion
    plain = overlay(np.full((12, 12), 99, np.uint8), np.zeros((12, 12)), 0, 1)
    outlined = overlay(np.full((12, 12), 99, np.uint8), np.zeros((12, 12)), 0, 1, mask=mask)
    marked = (outlined == CONTOUR).all(-1)
    edge = mask == 1
    edge[4:7, 5:8] = False
    assert (marked == edge).all()
    assert (outlined[~marked] == plain[~marked]).all()


@pytest.mark.parametrize(
    ("image", "levels", "vmax", "mask", "message"),
    [
        ((4, 4), (4, 5), 1.0, None, r"image is \(4, 4\), its map is \(4, 5\)"),
        ((4, 4), (4, 4), 1.0, (5, 4), "its mask is"),
        ((4, 4), (4, 4), 0.0, None, "vmax is 0.0"),
        ((4, 4), (4, 4), float("nan"), None, "vmax is nan"),
        ((2, 4, 4), (4, 4), 1.0, None, r"this one is \(2, 4, 4\)"),
    ],
)
def test_overlay_refuses(image: Any, levels: Any, vmax: float, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(np.zeros(image), np.zeros(levels), 0.0, vmax, mask=None if mask is None else np.zeros(mask))


def test_small_copies() -> None:
    image = np.zeros((3, 100, 50), np.float32)
    image[0] = 1.0
    small = fit_picture(image, 20)
    assert small.shape == (3, 20, 10) and small.dtype == np.uint8
    assert (small[0] == 255).all() and not small[1:].any()
    assert fit_picture(image, 200).shape == (3, 100, 50)
    assert fit_map(np.full((30, 60), 2.5), 20).shape == (10, 20)
    assert fit_map(np.full((30, 60), 2.5), 20) == pytest.approx(2.5)
    mask = np.zeros((40, 40), np.uint8)
    mask[:20], mask[30:] = 1, 255
    reduced = fit_mask(mask, 8)
    assert reduced is not None and set(np.unique(reduced)) == {0, 1, 255}
    assert fit_mask(None, 8) is None
    values = np.arange(1000.0)
    assert color_scale([values[:500], values[500:].reshape(2, -1)]) == pytest.approx((499.5, 998.001))
    low, high = color_scale([np.zeros(3)])
    assert high > low == 0


def case(name: str = "a.png", group: str = "", color: bool = False, size: int = 32, **kwargs: Any) -> Case:
    image = RNG.integers(0, 255, (3, size, size) if color else (size, size), dtype=np.uint8)
    mask = np.zeros((size, size), np.uint8)
    mask[4:12, 4:12] = 1
    values = {"label": 1, "score": 0.5, "mask": mask} | kwargs
    return Case(name, image=image, anomaly_map=RNG.random((size, size)).astype(np.float16), group=group, **values)


def test_sheet(tmp_path: Path) -> None:
    cases = [case(group="one"), case("b" * 200, "one", color=True), case(group="one"), case(group="two", mask=None)]
    contact_sheet(cases, tmp_path / "sheet.png", 0, 1)
    contact_sheet(cases[:2], tmp_path / "short.png", 0, 1)
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(tmp_path / "short.png") as short:
        assert sheet.width == short.width
        assert sheet.height > 2 * short.height  # three lines and two headings against one and one
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert (pixels == CONTOUR).all(-1).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sheet.png", "short.png"]
    with pytest.raises(ValueError, match="at least one case"):
        contact_sheet([], tmp_path / "none.png", 0, 1)


def test_sheet_uses_one_scale_for_all_cases(tmp_path: Path) -> None:
    """A calm map looks the same whatever stands beside it."""
    image = np.zeros((32, 32), np.uint8)
    calm = Case("calm", 0, 0.1, image, np.full((32, 32), 0.1))
    wild = Case("wild", 1, 0.9, image, np.full((32, 32), 1.0))

    def pixel(cases: list[Case]) -> Any:
        contact_sheet(cases, tmp_path / "sheet.png", 0, 1)
        with Image.open(tmp_path / "sheet.png") as sheet:
            return np.asarray(sheet.convert("RGB"))[150, 350]  # inside the first case's map

    assert (pixel([calm]) == pixel([calm, wild])).all()
    assert (pixel([calm]) == colorize(np.array([[0.1]]), 0, 1)[0, 0]).all()
