# SPDX-License-Identifier: Apache-2.0
"""Figures of merit from two (or three) weighted histograms over the same ascending score bins.

Every function takes arrays of shape (..., bins): `normal[..., i]` and `abnormal[..., i]` are the weights of the normal
and of the abnormal units (images or pixels) whose score lies in bin i, scores ascending with i. Leading axes are
independent problems, so that 1000 bootstrap resamples are one call. All units of a bin are tied, and ties are treated
as in scikit-learn: a threshold takes a bin as a whole, "positive" meaning "score at or above the threshold".
Results are float64 of shape (...), NaN where a class has no weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.floating[Any]]
Figures = NDArray[np.float64]

__all__ = [
    "aupro",
    "auroc",
    "average_precision",
    "best_f1",
    "precision_recall",
    "roc",
    "sensitivity_at_specificity",
]


def _at_or_above(weights: Weights) -> Figures:
    """Weight at or above each bin, highest bin first: (..., bins)."""
    return np.cumsum(weights[..., ::-1], axis=-1, dtype=np.float64)


def _ratio(numerator: Figures, denominator: Figures) -> Figures:
    """Quotient that is NaN, without a warning, where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def auroc(normal: Weights, abnormal: Weights) -> Figures:
    """Area under the ROC curve, ties counted half (the Mann-Whitney statistic)."""
    below = np.cumsum(normal, axis=-1, dtype=np.float64)
    wins = (abnormal * (below - 0.5 * normal)).sum(-1)
    return _ratio(wins, below[..., -1] * abnormal.sum(-1, dtype=np.float64))


def roc(normal: Weights, abnormal: Weights) -> tuple[Figures, Figures]:
    """False-positive rates and sensitivities of all thresholds, highest first: two arrays (..., bins + 1), 0 to 1."""
    rates = []
    for weights in (normal, abnormal):
        above = _at_or_above(weights)
        rates.append(_ratio(np.concatenate([np.zeros_like(above[..., :1]), above], axis=-1), above[..., -1:]))
    return rates[0], rates[1]


def precision_recall(normal: Weights, abnormal: Weights) -> tuple[Figures, Figures]:
    """Sensitivities (recall) and precisions of all thresholds, highest first: two arrays (..., bins).

    The precision is NaN where nothing lies at or above a threshold.
    """
    hits, alarms = _at_or_above(abnormal), _at_or_above(normal)
    return _ratio(hits, hits[..., -1:]), _ratio(hits, hits + alarms)


def average_precision(normal: Weights, abnormal: Weights) -> Figures:
    """Average precision: sum over thresholds of (recall step) x precision, without interpolation."""
    hits, alarms = _at_or_above(abnormal), _at_or_above(normal)
    precision = hits / np.maximum(hits + alarms, np.finfo(np.float64).tiny)
    ap = _ratio((abnormal[..., ::-1] * precision).sum(-1), hits[..., -1])
    return np.where(alarms[..., -1] > 0, ap, np.nan)


def best_f1(normal: Weights, abnormal: Weights) -> tuple[Figures, Figures]:
    """Largest F1 (= Dice) over all thresholds, and the accuracy at that threshold.

    Of several thresholds with the same F1 the lowest counts, which is what an argmax over scikit-learn's ascending
    `precision_recall_curve` gives.
    """
    hits, alarms = _at_or_above(abnormal), _at_or_above(normal)
    positives, negatives = hits[..., -1:], alarms[..., -1:]
    f1 = _ratio(2 * hits, hits + alarms + positives)
    best = f1.shape[-1] - 1 - np.argmax(f1[..., ::-1], axis=-1, keepdims=True)
    accuracy = _ratio(hits + negatives - alarms, positives + negatives)
    both = (positives > 0) & (negatives > 0)
    f1, accuracy = (np.where(both, np.take_along_axis(x, best, -1), np.nan)[..., 0] for x in (f1, accuracy))
    return f1, accuracy


def sensitivity_at_specificity(normal: Weights, abnormal: Weights, specificity: float = 0.95) -> Figures:
    """Largest sensitivity of any threshold whose specificity is at least `specificity` (no interpolation)."""
    hits, alarms = _at_or_above(abnormal), _at_or_above(normal)
    # The slack keeps 1 false alarm in 20 admissible although 0.05 is not a binary number.
    allowed = alarms <= (1 - specificity + 1e-9) * alarms[..., -1:]
    sensitivity = _ratio(np.where(allowed, hits, 0.0).max(-1), hits[..., -1])
    return np.where(alarms[..., -1] > 0, sensitivity, np.nan)


def aupro(normal: Weights, abnormal_by_region: Weights, limit: float = 0.3) -> Figures:
    """Area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5. PRO(t) is the mean over regions of the
    fraction of the region at or above t; with each abnormal pixel weighing 1 / (size of its region) it is a ratio of
    sums. The curve starts at (0, 0), is linear between thresholds, and is interpolated at the limit.

    Args:
        normal: weights of the normal pixels, (..., bins).
        abnormal_by_region: weights of the abnormal pixels, each divided by the size of its region, (..., bins).
        limit: largest false-positive rate, in (0, 1].
    """
    alarms, overlap = _at_or_above(normal), _at_or_above(abnormal_by_region)
    fpr, pro = _ratio(alarms, alarms[..., -1:]), _ratio(overlap, overlap[..., -1:])
    before = [np.concatenate([np.zeros_like(x[..., :1]), x[..., :-1]], axis=-1) for x in (fpr, pro)]
    step, rise = fpr - before[0], pro - before[1]
    used = np.minimum(fpr, limit) - np.minimum(before[0], limit)
    share = np.divide(used, step, out=np.zeros_like(step), where=step > 0)  # of this segment left of the limit
    return (used * (before[1] + 0.5 * share * rise)).sum(-1) / limit
