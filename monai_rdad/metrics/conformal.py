# SPDX-License-Identifier: Apache-2.0
r"""Decisions with a guaranteed false-positive rate, calibrated on normal images alone.

Split conformal prediction (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; for anomaly
detection Laxhammar and Falkman 2015, Bates et al., Annals of Statistics 51, 2023): if a new normal image and the n
calibration images are exchangeable, then the rank of its score among theirs is uniform, and

.. math:: p = (1 + \#\{i : s_i \geq s\}) / (n + 1)

is at most alpha with probability at most alpha. Nothing is assumed about the scores, and no abnormal image is needed.
The guarantee is on average over calibration sets; how far the rate of one calibrated detector may lie from alpha tells
:func:`false_positive_band`. It is void where images differ from the calibration's in scanner, protocol or population.

Images of one patient are not exchangeable with those of others. With K groups of :math:`n_k` images each,

.. math:: p = (1 + \sum_k \#\{i : s_{ki} \geq s\} / n_k) / (K + 1)

holds for an image of a new group (Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023,
arXiv 2306.06342). Groups of one image each give the first formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["AreaRisk", "ConformalScores", "false_positive_band", "is_abnormal"]

# rounding of sums of 1 / n_k must not turn a rank that equals alpha (K + 1) into one beyond it
_TOLERANCE = 1e-9


class ConformalScores:
    """Scores of normal images that took no part in training, as the yardstick for new scores.

    Args:
        scores: of the calibration images, (N,), finite; higher is more abnormal.
        groups: patient, scan or slide of each; None if every image is a group of its own.

    Raises:
        ValueError: no score, scores that are not finite, or another number of groups.
    """

    def __init__(self, scores: ArrayLike, groups: Sequence[str] | None = None) -> None:
        values = np.asarray(scores, dtype=np.float64).reshape(-1)
        if not values.size or not np.isfinite(values).all():
            raise ValueError(
                "Calibration needs at least one score, all of them finite. Does the manifest's calibration split hold "
                "normal images?"
            )
        if groups is not None and len(groups) != values.size:
            raise ValueError(f"{values.size} scores but {len(groups)} groups: give one of each per image.")
        names = np.arange(values.size) if groups is None else np.asarray(groups, dtype=str)
        _, index, sizes = np.unique(names, return_inverse=True, return_counts=True)
        order = np.argsort(values, kind="stable")
        self.scores: NDArray[np.float64] = values[order]
        self.groups: NDArray[np.intp] = index[order]
        self.n_groups = int(sizes.size)
        # weight of the scores from each rank on, the last entry for scores above all
        weights = 1.0 / sizes[self.groups]
        self._above = np.append(np.cumsum(weights[::-1])[::-1], 0.0)

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Conformal p-values of new scores, of their shape, in [1 / (groups + 1), 1].

        Raises:
            ValueError: a score is not finite.
        """
        new = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(new).all():
            raise ValueError("A score is not finite: look at the anomaly map that it came from.")
        above = self._above[np.searchsorted(self.scores, new, side="left")]
        return np.minimum((1 + above) / (self.n_groups + 1), 1.0)

    def threshold(self, alpha: float) -> float:
        """The score above which a new image is called abnormal: ``score > threshold`` if and only if p <= ``alpha``.

        Infinite if there are fewer than ``1 / alpha - 1`` groups: then no score is rare enough.

        Raises:
            ValueError: alpha is not in (0, 1).
        """
        _check_rate(alpha)
        allowed = alpha * (self.n_groups + 1) - 1 + _TOLERANCE
        if allowed < 0:
            return math.inf
        too_many = np.flatnonzero(self._above[:-1] > allowed)
        return float(self.scores[too_many[-1]]) if too_many.size else -math.inf


def is_abnormal(p_value: float, alpha: float) -> bool:
    """The decision at the false-positive rate ``alpha``; sums of 1 / n that miss it by a rounding error count as it."""
    return p_value <= alpha + _TOLERANCE


def false_positive_band(n: int, alpha: float, images: int | None = None, level: float = 0.95) -> tuple[float, float]:
    """Central interval of the realised false-positive rate of a detector calibrated on n normal images.

    Over random calibration sets the rate on an endless supply of normal images follows a Beta(k, n + 1 - k)
    distribution with ``k = floor(alpha (n + 1))``, and the number of false positives among m images a beta-binomial one
    (Vovk, "Conditional validity of inductive conformal predictors", 2012), if scores have no ties and each image is a
    group of its own.

    Args:
        n: number of calibration images.
        alpha: nominal rate.
        images: number of new normal images over which the rate is measured, None for infinitely many.
        level: probability of the interval.

    Returns:
        Lower and upper end; (0, 0) if n is too small for alpha.

    Raises:
        ValueError: n or images is below 1, or a rate is not in (0, 1).
    """
    _check_rate(alpha)
    _check_rate(level)
    if n < 1 or (images is not None and images < 1):
        raise ValueError(f"n is {n} and images {images}, they must be at least 1.")
    from scipy import stats

    k = math.floor(alpha * (n + 1) + _TOLERANCE)
    if k == 0:
        return 0.0, 0.0
    tails = ((1 - level) / 2, (1 + level) / 2)
    if images is None:
        return tuple(float(stats.beta.ppf(t, k, n + 1 - k)) for t in tails)  # type: ignore[return-value]
    return tuple(float(stats.betabinom.ppf(t, images, k, n + 1 - k)) / images for t in tails)  # type: ignore[return-value]


class AreaRisk(NamedTuple):
    """How much of a normal image lies above a map value, on average over calibration groups.

    Conformal risk control (Angelopoulos, Bates, Fisch, Lei and Schuster, ICLR 2024, arXiv 2208.02814): the fraction of
    an image above a threshold never rises with it and is at most 1, so the lowest threshold with
    ``(K mean + 1) / (K + 1) <= alpha`` keeps the expected fraction of a new normal image at or below alpha.

    Args:
        values: map values, ascending.
        fractions: mean over the groups of the mean over their images of the fraction of pixels at or above each value.
        n_groups: K.
    """

    values: tuple[float, ...]
    fractions: tuple[float, ...]
    n_groups: int

    def threshold(self, alpha: float) -> float:
        """Lowest known map value at which the expected false-positive area of a normal image is at most ``alpha``.

        Infinite if there are fewer than ``1 / alpha - 1`` groups.

        Raises:
            ValueError: alpha is not in (0, 1).
        """
        _check_rate(alpha)
        k = self.n_groups
        good = [
            v for v, f in zip(self.values, self.fractions, strict=True) if (k * f + 1) / (k + 1) <= alpha + _TOLERANCE
        ]
        return good[0] if good else math.inf


def _check_rate(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"A rate must lie between 0 and 1, got {alpha}.")
