# SPDX-License-Identifier: Apache-2.0
"""Covariance of AUROCs measured on the same images, without resampling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_rdad.metrics.image import check_scores

__all__ = ["delong_covariance"]


def delong_covariance(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROCs of several scores of the same images, and the covariance of these estimates.

    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44 (1988), by the midranks of Sun and Xu, "Fast implementation of DeLong's
    algorithm", IEEE Signal Processing Letters 21 (2014): a sort instead of all pairs of images. Ties count half. The
    images are taken as independent; where patients have several, the covariance comes out too small.

    Args:
        scores: finite, (K, N): K scores of N images; higher means more abnormal.
        labels: 0 normal, 1 abnormal, (N,); at least two of each.

    Returns:
        AUROCs, float64 (K,), and their covariance, float64 (K, K).

    Raises:
        ValueError: as `monai_rdad.metrics.image_metrics`, or fewer than two images of a class.
    """
    from scipy.stats import rankdata

    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    abnormal = np.zeros(0, dtype=bool)
    for row in rows:
        abnormal = check_scores(row, labels)[1]
    m, n = int(abnormal.sum()), int((~abnormal).sum())
    if min(m, n) < 2:
        raise ValueError(f"DeLong's covariance needs two images of each class; here are {n} normal and {m} abnormal.")
    ranks = rankdata(rows, axis=1)
    # Share of normal images below each abnormal one, and of abnormal images above each normal one: the rank among all
    # less the rank within the class.
    below = (ranks[:, abnormal] - rankdata(rows[:, abnormal], axis=1)) / n
    above = 1 - (ranks[:, ~abnormal] - rankdata(rows[:, ~abnormal], axis=1)) / m
    covariance: NDArray[Any] = np.atleast_2d(np.cov(below)) / m + np.atleast_2d(np.cov(above)) / n
    return below.mean(1), covariance
