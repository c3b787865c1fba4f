# SPDX-License-Identifier: Apache-2.0
"""95 % intervals by stratified bootstrap over groups (patients, scans, slides).

Images of one patient are not independent, so whole groups are drawn with replacement. Groups that hold only normal
images, only abnormal images, or both form three strata, each resampled to its own size: every resample has both classes
if the data have. A resample is a vector of group weights (how often each group was drawn), so that 1000 resamples of
all histograms are a matrix product and the figures of all resamples are a few cumulative sums.

The intervals are percentile intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). The
oracle figures maximise over thresholds anew in each resample, which lifts them a little: their intervals lean upward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_rdad.metrics import curves
from monai_rdad.metrics.image import check_scores, image_curve_figures, score_histograms
from monai_rdad.metrics.pixel import PixelAccumulator, pixel_curve_figures

__all__ = [
    "bootstrap_curve_bands",
    "bootstrap_image_metrics",
    "bootstrap_pixel_metrics",
    "bootstrap_rate",
    "group_strata",
    "resampling_weights",
    "resample_image_metrics",
    "resample_pixel_metrics",
    "resampled_intervals",
]

Intervals = dict[str, tuple[float, float]]
Resampled = dict[str, NDArray[np.float64]]

_CHUNK = 50  # resamples at a time: bounds the memory of their curves to tens of megabytes


def group_strata(groups: Sequence[str], labels: ArrayLike) -> dict[str, int]:
    """Stratum of every group, sorted by group: 0 normal images only, 1 abnormal images only, 2 both.

    Args:
        groups: group of each image, N of them.
        labels: 0 normal, 1 abnormal, (N,).
    """
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    abnormal = np.bincount(index, weights=np.asarray(labels, dtype=np.float64).reshape(-1), minlength=names.size)
    images = np.bincount(index, minlength=names.size)
    strata = np.where(abnormal == 0, 0, np.where(abnormal == images, 1, 2))
    return dict(zip(names.tolist(), strata.tolist(), strict=True))


def resampling_weights(strata: Sequence[int], resamples: int = 1000, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """How often each group is drawn in each resample, in blocks of up to 50 resamples.

    Args:
        strata: stratum of each group, G of them.
        resamples: number of resamples in all.
        seed: the weights are a function of strata, resamples and seed.

    Yields:
        float32 (block, G), whole numbers; in each row the weights of a stratum sum to its number of groups.
    """
    generator = np.random.default_rng(seed)
    of_group = np.asarray(strata)
    members = [np.flatnonzero(of_group == s) for s in np.unique(of_group)]
    for start in range(0, resamples, _CHUNK):
        weights = np.zeros((min(_CHUNK, resamples - start), of_group.size), dtype=np.float32)
        for member in members:
            share = np.full(member.size, 1 / member.size)
            weights[:, member] = generator.multinomial(member.size, share, size=weights.shape[0])
        yield weights


def bootstrap_image_metrics(
    scores: ArrayLike, labels: ArrayLike, groups: Sequence[str], resamples: int = 1000, seed: int = 0
) -> Intervals:
    """95 % intervals of `monai_rdad.metrics.IMAGE_METRICS`.

    Args:
        scores: one finite number per image, (N,).
        labels: 0 normal, 1 abnormal, (N,).
        groups: group of each image, N of them; an image's own name where it has no group.
        resamples: number of resamples.
        seed: seed of the resamples.

    Returns:
        (lower, upper) by name; NaN where only one class is present.

    Raises:
        ValueError: as `monai_rdad.metrics.image_metrics`.
    """
    resampled = resample_image_metrics([scores], labels, groups, resamples, seed)
    return resampled_intervals({name: values[:, 0] for name, values in resampled.items()})


def resample_image_metrics(
    scores: Sequence[ArrayLike], labels: ArrayLike, groups: Sequence[str], resamples: int = 1000, seed: int = 0
) -> Resampled:
    """`monai_rdad.metrics.IMAGE_METRICS` of several scores of the same images in each resample.

    Args:
        scores: K rows of N finite numbers. All are resampled alike, so that differences between them are paired.
        labels: 0 normal, 1 abnormal, (N,).
        groups: group of each image, N of them; an image's own name where it has no group.
        resamples: number of resamples.
        seed: seed of the resamples.

    Returns:
        float64 (resamples, K) by name.

    Raises:
        ValueError: as `monai_rdad.metrics.image_metrics`.
    """
    rows = [check_scores(row, labels) for row in scores]
    strata = group_strata(groups, labels)
    of_image = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    blocks: list[Resampled] = []
    for weights in resampling_weights(list(strata.values()), resamples, seed):
        drawn = weights[:, of_image]
        figures = [image_curve_figures(*score_histograms(values, abnormal, drawn)) for values, abnormal in rows]
        blocks.append({name: np.stack([f[name] for f in figures], axis=1) for name in figures[0]})
    return _joined(blocks)


def bootstrap_curve_bands(
    scores: ArrayLike,
    labels: ArrayLike,
    groups: Sequence[str],
    at: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """95 % bands, point by point, of the ROC and of the precision-recall curve.

    Args:
        scores: one finite number per image, (N,).
        labels: 0 normal, 1 abnormal, (N,), both of them present.
        groups: group of each image, N of them.
        at: false-positive rates, and sensitivities, at which to give the bands, (M,), in [0, 1].
        resamples: number of resamples.
        seed: seed of the resamples.

    Returns:
        "roc": lower and upper end of the sensitivity at each false-positive rate, (2, M), linear between thresholds;
        "precision_recall": of the precision at each sensitivity, (2, M), of the highest threshold that reaches it.

    Raises:
        ValueError: as `monai_rdad.metrics.image_metrics`, or only one class is present.
    """
    values, abnormal = check_scores(scores, labels)
    if abnormal.all() or not abnormal.any():
        raise ValueError("Curves need normal and abnormal images.")
    points = np.asarray(at, dtype=np.float64)
    strata = group_strata(groups, abnormal)
    of_image = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    sensitivity, precision = [], []
    for weights in resampling_weights(list(strata.values()), resamples, seed):
        histograms = score_histograms(values, abnormal, weights[:, of_image])
        for false_rate, true_rate in zip(*curves.roc(*histograms), strict=True):
            sensitivity.append(np.interp(points, false_rate, true_rate))
        for recall, of_recall in zip(*curves.precision_recall(*histograms), strict=True):
            reached = np.searchsorted(recall, points - 1e-12)
            first_hit = np.searchsorted(recall, 0, side="right")  # above it there may be nothing, and no precision
            precision.append(of_recall[np.maximum(reached, first_hit)])
    return {
        "roc": np.percentile(sensitivity, (2.5, 97.5), axis=0),
        "precision_recall": np.percentile(precision, (2.5, 97.5), axis=0),
    }


def bootstrap_rate(
    values: ArrayLike, groups: Sequence[str], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of a value per image, for instance of a decision (0 or 1).

    Args:
        values: finite, (N,), of the images that the rate is about (all normal, or all abnormal).
        groups: group of each image, N of them.
        resamples: number of resamples.
        seed: seed of the resamples.
    """
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    totals = np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=names.size)
    sizes = np.bincount(index, minlength=names.size)
    blocks = [
        {"rate": (weights @ totals) / (weights @ sizes)}
        for weights in resampling_weights([0] * names.size, resamples, seed)
    ]
    return resampled_intervals(_joined(blocks))["rate"]


def bootstrap_pixel_metrics(
    pixels: PixelAccumulator, strata: Mapping[str, int], resamples: int = 1000, seed: int = 0
) -> Intervals:
    """95 % intervals of `monai_rdad.metrics.PIXEL_METRICS`: those of `resample_pixel_metrics`, same arguments.

    Returns:
        (lower, upper) by name; empty where the accumulator gives no figures.
    """
    return resampled_intervals(resample_pixel_metrics(pixels, strata, resamples, seed))


def resample_pixel_metrics(
    pixels: PixelAccumulator, strata: Mapping[str, int], resamples: int = 1000, seed: int = 0
) -> Resampled:
    """`monai_rdad.metrics.PIXEL_METRICS` in each resample, from the group histograms of an accumulator.

    The resamples are a function of groups, strata, number and seed alone: figures of two methods on the same images are
    paired, resample by resample.

    Args:
        pixels: an accumulator made with `by_group=True`.
        strata: stratum of every group in it, as from `group_strata`.
        resamples: number of resamples.
        seed: seed of the resamples.

    Returns:
        float64 (resamples,) by name; empty where the accumulator gives no figures.
    """
    if not pixels.compute():
        return {}
    names, dense = pixels.dense_groups()
    flat = dense.reshape(len(names), -1)
    return _joined(
        [
            pixel_curve_figures((weights @ flat).reshape(-1, *dense.shape[1:]))
            for weights in resampling_weights([strata[n] for n in names], resamples, seed)
        ]
    )


def resampled_intervals(resampled: Mapping[str, NDArray[np.floating[Any]]]) -> Intervals:
    """95 % percentile intervals of figures that were resampled.

    Args:
        resampled: (resamples,) by name; values that are NaN are left out.

    Returns:
        (lower, upper) by name; NaN where there is no value.
    """
    result = {}
    for name, values in resampled.items():
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, (2.5, 97.5)) if finite.size else (np.nan, np.nan)
        result[name] = (float(low), float(high))
    return result


def _joined(blocks: list[Resampled]) -> Resampled:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
