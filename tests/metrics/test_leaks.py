# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from monai_rdad.data.measure import LEVELS, SMALL, Measures
from monai_rdad.metrics.leaks import TRIVIAL_SCORES, leak_figures, trivial_scores


def _images(n: int, seed: int, **changes: Any) -> list[Measures]:
    rng = np.random.default_rng(seed)
    return [
        Measures(
            rows=100 + changes.get("rows", 0),
            columns=120,
            channels=1,
            file_bytes=int(rng.integers(900, 1100)),
            mean=float(rng.normal(100 + changes.get("mean", 0), 10)),
            deviation=float(rng.normal(40, 5)),
            jpeg_bytes=int(rng.integers(2000, 3000)),
            small=np.clip(rng.normal(100 + changes.get("small", 0), 20, (SMALL, SMALL)), 0, 255).astype(np.uint8),
            code=0,
            histogram=np.zeros(LEVELS, np.uint16),
        )
        for _ in range(n)
    ]


def _figures(normal: list[Measures], abnormal: list[Measures]) -> dict[str, dict[str, Any]]:
    scores = trivial_scores(normal + abnormal, _images(30, 99))
    labels = [0] * len(normal) + [1] * len(abnormal)
    return leak_figures(scores, labels, [str(i) for i in range(len(labels))], resamples=200)


def test_no_leak() -> None:
    figures = _figures(_images(150, 1), _images(150, 2))
    assert set(figures) == set(TRIVIAL_SCORES)
    assert {values["level"] for values in figures.values()} == {"none"}
    assert figures["rows"] == {"auroc": 0.5, "low": 0.5, "high": 0.5, "level": "none"}  # all alike


@pytest.mark.parametrize(
    ("change", "score", "level", "above"),
    [
        ({"mean": 20}, "mean", "leak", True),
        ({"mean": -20}, "mean", "leak", False),  # darker is as telling as brighter
        ({"mean": 7}, "mean", "doubt", True),
        ({"rows": -1}, "rows", "leak", False),
        ({"small": 30}, "nearest", "leak", True),
    ],
)
def test_planted_leak(change: dict[str, int], score: str, level: str, above: bool) -> None:
    figures = _figures(_images(150, 3), _images(150, 4, **change))
    assert figures[score]["level"] == level
    assert (figures[score]["auroc"] > 0.5) == above
    assert figures[score]["low"] <= figures[score]["auroc"] <= figures[score]["high"]
    assert {name for name, values in figures.items() if values["level"] != "none"} == {score}


def test_few_images_give_no_warning() -> None:
    """AUROC 0.78, yet the interval says that it may be chance; with one class there is none."""
    values = {"mean": np.array([1.0, 5.0, 2.0, 3.0, 4.0, 6.0])}
    figures = leak_figures(values, [0, 0, 0, 1, 1, 1], list("abcdef"), resamples=200)["mean"]
    assert figures["auroc"] == pytest.approx(7 / 9)
    assert figures["low"] <= 0.5 and figures["level"] == "none"
    assert leak_figures(values, [1] * 6, list("abcdef")) == {}


def test_few_groups_give_no_warning() -> None:
    """A hundred images of four patients are no evidence about a fifth."""
    values = {"mean": np.arange(100.0)}
    labels = [0] * 50 + [1] * 50
    few = leak_figures(values, labels, [str(i // 25) for i in range(100)], resamples=50)["mean"]
    many = leak_figures(values, labels, [str(i // 10) for i in range(100)], resamples=50)["mean"]
    assert few["auroc"] == many["auroc"] == 1
    assert (few["level"], many["level"]) == ("none", "leak")


def test_nearest_is_the_mean_of_the_three_nearest() -> None:
    queries, known = _images(7, 5), _images(9, 6)
    score = trivial_scores(queries, known)["nearest"]
    for query, value in zip(queries, score, strict=True):
        distances = sorted(
            float(np.linalg.norm(query.small.astype(float) - other.small.astype(float))) for other in known
        )
        assert value == pytest.approx(np.mean(distances[:3]), rel=1e-4)
    assert "nearest" not in trivial_scores(queries, [])
    assert trivial_scores(queries, queries[:1])["nearest"][0] == pytest.approx(0, abs=0.1)
