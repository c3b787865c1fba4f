# SPDX-License-Identifier: Apache-2.0
"""Equal and nearly equal images on the way to a manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_rdad.data import load_manifest
from monai_rdad.data.sets import BuildReport, build_manifest

Array = np.ndarray[Any, Any]


def _picture(seed: int) -> Array:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(96, 96)), 6)
    return np.uint8(np.clip(128 + 50 * noise / noise.std(), 0, 255))


@pytest.fixture
def br35h(tmp_path: Path) -> Path:
    """Training numbers 0 to 5, testing numbers 1000 to 1003, four tumours; no copies."""
    for i, name in enumerate([f"no/no{n}" for n in (*range(6), *range(1000, 1004))] + [f"yes/y{n}" for n in range(4)]):
        path = tmp_path / "raw" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_picture(i)).save(path)
    return tmp_path / "raw"


def _build(raw: Path, **settings: Any) -> tuple[BuildReport, dict[str, list[str]]]:
    report = build_manifest("br35h", raw, raw.parent / "out", counts="warn", progress=False, **settings)
    splits = load_manifest(report.manifest)
    return report, {name: [Path(item["name"]).stem for item in items] for name, items in splits.items()}


def _dropped(report: BuildReport, words: str) -> list[str]:
    return next((names for reason, names in report.examples.items() if words in reason), [])


def test_nothing_to_find(br35h: Path) -> None:
    report, names = _build(br35h)
    assert report.dropped == {} and report.notes == []
    assert [len(names[key]) for key in ("training", "testing")] == [6, 8]


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_set_aside_does_not_look_like_what_stays(br35h: Path, keep: bool) -> None:
    twins = [("no0", "no1"), ("no2", "no3"), ("no4", "no5")]
    for i, (name, twin) in enumerate(twins):
        darker = np.uint8(_picture(i).astype(float) * 0.97)
        Image.fromarray(_picture(i)).save(br35h / "no" / f"{name}.png")
        Image.fromarray(darker).save(br35h / "no" / f"{twin}.png")
    _, names = _build(br35h, calibration=0.34, keep_duplicates=keep)
    assert names["calibration"] and names["training"]
    for name, twin in twins:
        assert (name in names["calibration"]) == (twin in names["calibration"])


def test_equal_across_splits_leaves_training(br35h: Path) -> None:
    shutil.copy(br35h / "no" / "no1000.png", br35h / "no" / "no3.png")
    report, names = _build(br35h)
    assert _dropped(report, "equal to another") == ["no-no3"]
    assert "no3" not in names["training"] and "no1000" in names["testing"]
    # not a matter of choice: such a manifest would not load
    report, names = _build(br35h, keep_duplicates=True)
    assert "no3" not in names["training"]


def test_equal_within_a_split(br35h: Path) -> None:
    shutil.copy(br35h / "no" / "no1.png", br35h / "no" / "no3.png")
    report, _ = _build(br35h)
    assert _dropped(report, "equal to another") == ["no-no3"]
    report, names = _build(br35h, keep_duplicates=True)
    assert report.dropped == {} and {"no1", "no3"} <= set(names["training"])


def test_equal_with_different_labels(br35h: Path) -> None:
    shutil.copy(br35h / "yes" / "y2.png", br35h / "no" / "no1002.png")
    report, names = _build(br35h)
    assert sorted(_dropped(report, "different labels")) == ["no-no1002", "yes-y2"]
    assert not {"y2", "no1002"} & set(names["testing"])


def test_alike_across_splits_leaves_training(br35h: Path) -> None:
    """The same picture, smaller and saved anew as a JPEG."""
    picture = Image.open(br35h / "no" / "no1000.png").resize((70, 70), Image.Resampling.BILINEAR)
    (br35h / "no" / "no3.png").unlink()
    picture.save(br35h / "no" / "no3.jpg", quality=60)
    report, names = _build(br35h)
    assert _dropped(report, "look the same") == ["no-no3"]
    assert len(names["testing"]) == 8
    report, names = _build(br35h, keep_duplicates=True)
    assert "no3" in names["training"]


def test_alike_stay_together_in_a_drawn_split(br35h: Path) -> None:
    for i in range(3):
        shutil.copy(br35h / "no" / "no2.png", br35h / "no" / f"no{10 + i}.png")
        picture = Image.open(br35h / "no" / "no2.png")
        picture.point([min(255, v + 8 * i + 8) for v in range(256)]).save(br35h / "no" / f"no{10 + i}.png")
    for seed in range(4):
        _, names = _build(br35h, split="drawn", seed=seed)
        family = {"no2", "no10", "no11", "no12"}
        assert sum(bool(family & set(members)) for members in names.values()) == 1


def test_a_chain_of_lookalikes_is_a_warning(br35h: Path) -> None:
    picture = Image.open(br35h / "no" / "no2.png")
    for i in range(24):
        picture.point([min(255, v + i + 1) for v in range(256)]).save(br35h / "no" / f"no{10 + i}.png")
    report, _ = _build(br35h, split="drawn")
    assert any("25 images look the same link by link" in warning for warning in report.warnings)
    report, _ = _build(br35h, split="drawn", keep_duplicates=True)
    assert not any("link by link" in warning for warning in report.warnings)
