# SPDX-License-Identifier: Apache-2.0
"""Image-level figures from one score per image."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_rdad.metrics import curves

__all__ = ["IMAGE_METRICS", "check_scores", "image_curve_figures", "image_metrics", "misordered", "score_histograms"]

IMAGE_METRICS = ("image_auroc", "image_ap", "oracle_f1", "oracle_accuracy", "sensitivity_at_95_specificity")


def check_scores(
    scores: ArrayLike, labels: ArrayLike, names: Sequence[str] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores as float64 (N,) and labels as bool (N,).

    Raises:
        ValueError: on different lengths, a label other than 0 or 1, or a NaN or infinite score; names the image.
    """
    scores, labels = np.asarray(scores, dtype=np.float64).reshape(-1), np.asarray(labels).reshape(-1)
    if scores.size != labels.size:
        raise ValueError(f"{scores.size} scores but {labels.size} labels: give one of each per image.")
    for bad, what in (
        (~np.isfinite(scores), "its score is not finite; look at its anomaly map"),
        (~np.isin(labels, (0, 1)), "its label is neither 0 (normal) nor 1 (abnormal)"),
    ):
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(f"Image {names[i] if names is not None else i!r} cannot be evaluated: {what}.")
    return scores, labels.astype(bool)


def image_metrics(scores: ArrayLike, labels: ArrayLike, names: Sequence[str] | None = None) -> dict[str, float]:
    """Image-level figures; higher scores mean more abnormal.

    `image_auroc` and `image_ap` need no threshold. `oracle_f1` is the largest F1 over all thresholds and
    `oracle_accuracy` the accuracy at that same threshold, the convention of the reverse-distillation papers' code; both
    choose the threshold on the labels they are measured with, hence "oracle". `sensitivity_at_95_specificity` is the
    largest sensitivity of a threshold with at most 5 % false positives.

    Args:
        scores: one finite number per image, (N,).
        labels: 0 normal, 1 abnormal, (N,).
        names: names for error messages, N of them.

    Returns:
        a float for each of `IMAGE_METRICS`; all NaN, with one warning, if only one class is present.

    Raises:
        ValueError: as in `check_scores`.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    values, abnormal = check_scores(scores, labels, names)
    if abnormal.all() or not abnormal.any():
        count = f"{int(abnormal.sum())} abnormal of {abnormal.size} images"
        warnings.warn(f"Image metrics need both classes and are NaN: {count}.", stacklevel=2)
        return dict.fromkeys(IMAGE_METRICS, float("nan"))
    figures = {k: float(v) for k, v in image_curve_figures(*score_histograms(values, abnormal)).items()}
    figures["image_auroc"] = float(roc_auc_score(abnormal, values))
    figures["image_ap"] = float(average_precision_score(abnormal, values))
    return figures


def misordered(scores: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """How wrongly each image is ranked: the fraction of the images of the other class on its wrong side, ties half.

    A normal image has 1 if its score is above that of every abnormal image, an abnormal one if it is below that of
    every normal image. The mean over either class is 1 - AUROC: these are the placement values of DeLong, DeLong and
    Clarke-Pearson, Biometrics 44, 1988.

    Args:
        scores: one finite number per image, (N,); higher means more abnormal.
        labels: 0 normal, 1 abnormal, (N,).

    Returns:
        float64 (N,) in [0, 1]; NaN where there is no image of the other class.

    Raises:
        ValueError: as in `check_scores`.
    """
    values, abnormal = check_scores(scores, labels)
    result = np.full(values.size, np.nan)
    for mine, sign in ((abnormal, -1.0), (~abnormal, 1.0)):
        others = np.sort(sign * values[~mine])
        if others.size:
            below, up_to = (np.searchsorted(others, sign * values[mine], side=side) for side in ("left", "right"))
            result[mine] = (below + up_to) / (2 * others.size)
    return result


def score_histograms(
    scores: NDArray[np.float64], abnormal: NDArray[np.bool_], weights: NDArray[np.floating[Any]] | None = None
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Weights of normal and abnormal images over the distinct scores, ascending: two arrays (..., distinct scores).

    Args:
        scores: (N,).
        abnormal: (N,).
        weights: (..., N), default 1 each.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    by_score = (np.ones(scores.size) if weights is None else weights)[..., order]
    is_abnormal = abnormal[order]
    parts = [np.add.reduceat(by_score * part, starts, axis=-1) for part in (~is_abnormal, is_abnormal)]
    return parts[0], parts[1]


def image_curve_figures(
    normal: NDArray[np.floating[Any]], abnormal: NDArray[np.floating[Any]]
) -> dict[str, NDArray[np.float64]]:
    """The figures `IMAGE_METRICS`, each of shape (...), from histograms (..., bins); vectorised over resamples."""
    f1, accuracy = curves.best_f1(normal, abnormal)
    return {
        "image_auroc": curves.auroc(normal, abnormal),
        "image_ap": curves.average_precision(normal, abnormal),
        "oracle_f1": f1,
        "oracle_accuracy": accuracy,
        "sensitivity_at_95_specificity": curves.sensitivity_at_specificity(normal, abnormal),
    }
