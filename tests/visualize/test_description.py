# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from monai_rdad.visualize.description import Example, Part, _strip, description_page
from monai_rdad.visualize.overlay import CONTOUR


def _description(**changes: Any) -> dict[str, Any]:
    split = {"images": 3, "abnormal": 1, "groups": 2, "masks": 1}
    score = {"auroc": 0.9, "low": 0.8, "high": 1.0, "level": "leak", "meaning": "mean intensity"}
    return {
        "title": "A set",
        "manifest_sha256": "0" * 64,
        "splits": {"testing": split},
        "trivial_scores": {"mean": score},
        "warnings": ["mean intensity tells normal from abnormal"],
    } | changes


def _part(name: str) -> Part:
    return Part(name, np.array([[9, 8]] * 3), np.full(64, 1 / 64), np.array([1, 2]), np.ones((3, 2)))


def _page(path: Path, **changes: Any) -> np.ndarray[Any, Any]:
    example = Example("testing, abnormal", np.full((20, 30), 90, np.uint8), None)
    description_page(_description(**changes), [_part("testing, abnormal")], [example], path)
    return np.asarray(Image.open(path).convert("RGB"), int)


def test_warnings_stand_out(tmp_path: Path) -> None:
    """The page says nothing in red where there is nothing to warn of."""
    quiet = {"auroc": 0.5, "low": 0.4, "high": 0.6, "level": "none", "meaning": "mean intensity"}
    warned = _page(tmp_path / "a.png")
    calm = _page(tmp_path / "b.png", warnings=[], trivial_scores={"mean": quiet})
    assert warned.shape == calm.shape

    def red(page: np.ndarray[Any, Any]) -> int:
        return int(((page[..., 0] > 180) & (page[..., 1] < 110) & (page[..., 2] < 110)).sum())

    assert red(warned) > red(calm) + 200


def test_many_warnings_and_nothing_else(tmp_path: Path) -> None:
    """No scores, no parts, no pictures: the page is still made, of the same width."""
    description = _description(
        warnings=[f"warning {i} " + "long " * 90 for i in range(9)], trivial_scores={}, splits={}
    )
    description_page(description, [], [], tmp_path / "page.png")
    assert Image.open(tmp_path / "page.png").width == _page(tmp_path / "a.png").shape[1]


def test_strip_outlines_lesions() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:10, 6:16] = True
    strip = _strip(
        [Example("x", np.full((20, 30), 90, np.uint8), mask), Example("x", np.zeros((30, 10), np.uint8), None)]
    )
    outline = (strip == np.array(CONTOUR)).all(-1)
    assert outline.sum() == 2 * 10 + 2 * 3  # the border pixels of 5 x 10
    assert (strip[:5] == 255)[:, :30].all()  # white above a picture that is less high than others
    rows, columns = np.nonzero(outline)
    assert (rows.min(), columns.min()) == (5 + 5, 6)
