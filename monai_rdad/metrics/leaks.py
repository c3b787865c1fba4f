# SPDX-License-Identifier: Apache-2.0
"""Scores that need no learning: what they tell apart, a detector may have "found" as well.

If normal and abnormal images differ in brightness, size or sharpness because they come from different scanners or were
saved by different people, a detector that reaches a high AUROC need not have seen a single lesion. A high AUROC here is
no proof of such a leak (pneumonia does brighten a radiograph), but what a detector has to be better than.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rdad.data.measure import Measures
from monai_rdad.metrics.bootstrap import bootstrap_image_metrics
from monai_rdad.metrics.image import image_curve_figures, score_histograms

__all__ = ["DOUBT", "LEAK", "MIN_GROUPS", "NEIGHBOURS", "TRIVIAL_SCORES", "leak_figures", "trivial_scores"]

LEAK = 0.75
"""AUROC, or one minus it, from which on a trivial score counts as a leak: a detector at this level shows nothing."""
DOUBT = 0.65
"""AUROC, or one minus it, from which on a trivial score is worth a look."""
MIN_GROUPS = 5
"""Groups below which there is no warning: a bootstrap over fewer patients says nothing about other patients."""
NEIGHBOURS = 3
"""Training images whose mean distance is the score of "nearest normals"."""

TRIVIAL_SCORES = {
    "mean": "mean intensity",
    "deviation": "standard deviation of the intensity",
    "jpeg_bytes": "size as a JPEG of 128 pixels",
    "file_bytes": "size of the file",
    "rows": "height",
    "columns": "width",
    "channels": "number of channels",
    "nearest": "distance to the 3 nearest training normals, 24 pixels",
}
"""Name and meaning of each score."""

_MAX_NORMALS = 10_000  # training images that "nearest" looks at; more change its AUROC by less than its interval
_BLOCK = 512


def trivial_scores(images: Sequence[Measures], normals: Sequence[Measures]) -> dict[str, NDArray[np.float64]]:
    """Trivial scores of images.

    Args:
        images: figures of the images to be scored, N of them.
        normals: figures of the training images; of more than 10 000 a fixed random part is used.

    Returns:
        by name of :data:`TRIVIAL_SCORES`, (N,); "nearest" is missing without training images.
    """
    names = [name for name in TRIVIAL_SCORES if name != "nearest"]
    scores = {name: np.array([getattr(image, name) for image in images], np.float64) for name in names}
    if not normals:
        return scores
    chosen = np.random.default_rng(0).permutation(len(normals))[:_MAX_NORMALS]
    known = np.stack([normals[i].small.ravel() for i in np.sort(chosen)]).astype(np.float32)
    queries = np.stack([image.small.ravel() for image in images]).astype(np.float32)
    squares = (known**2).sum(1)
    k = min(NEIGHBOURS, len(known))
    nearest = []
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        distances = (block**2).sum(1)[:, None] + squares - 2 * block @ known.T
        nearest.append(np.sqrt(np.maximum(np.partition(distances, k - 1, axis=1)[:, :k], 0)).mean(1))
    scores["nearest"] = np.concatenate(nearest).astype(np.float64)
    return scores


def leak_figures(
    scores: Mapping[str, NDArray[np.float64]],
    labels: Sequence[int],
    groups: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """AUROC of each score with its 95 % interval, and whether it is a warning.

    "leak": the interval excludes 0.5 and the AUROC is at least 0.75 or at most 0.25. "doubt": the same with 0.65 and
    0.35. A score that is the same for all images has 0.5. With fewer than 5 groups every level is "none".

    Args:
        scores: by name, each (N,).
        labels: 0 normal, 1 abnormal, N of them.
        groups: group of each image, N of them.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Returns:
        by name: "auroc", "low", "high" and "level" ("none", "doubt" or "leak"); empty where only one class is present.
    """
    abnormal = np.asarray(labels) == 1
    figures: dict[str, dict[str, Any]] = {}
    if abnormal.all() or not abnormal.any():
        return figures
    for name, values in scores.items():
        if np.ptp(values) == 0:
            figures[name] = {"auroc": 0.5, "low": 0.5, "high": 0.5, "level": "none"}
            continue
        auroc = float(image_curve_figures(*score_histograms(values, abnormal))["image_auroc"])
        low, high = bootstrap_image_metrics(values, abnormal, groups, resamples, seed)["image_auroc"]
        certain = (low > 0.5 or high < 0.5) and len(set(groups)) >= MIN_GROUPS
        strength = max(auroc, 1 - auroc) if certain else 0.5
        level = "leak" if strength >= LEAK else "doubt" if strength >= DOUBT else "none"
        figures[name] = {"auroc": auroc, "low": low, "high": high, "level": level}
    return figures
