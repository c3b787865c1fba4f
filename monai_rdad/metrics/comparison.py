# SPDX-License-Identifier: Apache-2.0
"""Are two methods different? Paired comparisons on the same images, correction for their number, ranks.

A method stands for its seeds: its figure is the mean over them, and what is compared are such means. Intervals and
p-values say what another test set of this kind would give with these trained networks; they know nothing of other
trainings, of which the range over the seeds tells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_rdad.metrics.delong import delong_covariance

__all__ = ["Comparison", "compare_auroc", "compare_resampled", "friedman_p_value", "holm", "mean_ranks"]


class Comparison(NamedTuple):
    """Figure of one method less that of another.

    Attributes:
        difference: of the means over the seeds.
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: two-sided, of the difference being 0.
    """

    difference: float
    low: float
    high: float
    p_value: float


def compare_auroc(first: ArrayLike, second: ArrayLike, labels: ArrayLike) -> Comparison:
    """Difference of two methods' mean AUROC by DeLong's covariance; the images have to be independent.

    Args:
        first: scores of one method, (seeds, N).
        second: scores of the other on the same images, (seeds, N); the seeds may differ in number.
        labels: 0 normal, 1 abnormal, (N,); at least two of each.

    Raises:
        ValueError: as `monai_rdad.metrics.delong_covariance`.
    """
    from scipy.stats import norm

    a, b = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (first, second))
    aurocs, covariance = delong_covariance(np.concatenate([a, b]), labels)
    contrast = np.concatenate([np.full(len(a), 1 / len(a)), np.full(len(b), -1 / len(b))])
    difference = float(contrast @ aurocs)
    # Rounding leaves a variance near 1e-19 where the orders are the same.
    error = float(np.sqrt(max(contrast @ covariance @ contrast, 0.0)))
    if error < 1e-9:
        return Comparison(difference, difference, difference, 1.0 if abs(difference) < 1e-9 else 0.0)
    margin = float(norm.ppf(0.975)) * error
    p_value = 2 * float(norm.sf(abs(difference) / error))
    return Comparison(difference, difference - margin, difference + margin, p_value)


def compare_resampled(difference: float, resampled: ArrayLike) -> Comparison:
    """Percentile interval of a difference, and the p-value that belongs to it.

    The p-value is twice the share of resamples on the far side of 0, each count plus one (so it is never 0): it is
    below 0.05 where the interval excludes 0. With B resamples the smallest is 2 / (B + 1).

    Args:
        difference: on all images.
        resampled: the same difference in each resample, (B,); those that are NaN are left out.
    """
    values = np.asarray(resampled, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return Comparison(difference, np.nan, np.nan, np.nan)
    low, high = np.percentile(values, (2.5, 97.5))
    fewer = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return Comparison(difference, float(low), float(high), min(1.0, 2 * (fewer + 1) / (values.size + 1)))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values adjusted for their number: those below 0.05 hold together with an error of at most 5 %.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).

    Args:
        p_values: (tests,); NaN are left out of the count and stay NaN.
    """
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    index = np.flatnonzero(np.isfinite(given))
    order = index[np.argsort(given[index], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    return adjusted


def mean_ranks(figures: ArrayLike) -> NDArray[np.float64]:
    """Mean rank of each method over data sets; 1 is the highest figure, equal figures share the mean of their ranks.

    Args:
        figures: (data sets, methods), finite.

    Returns:
        float64 (methods,).
    """
    from scipy.stats import rankdata

    ranks: NDArray[np.float64] = rankdata(-np.asarray(figures, dtype=np.float64), axis=1).mean(0)
    return ranks


def friedman_p_value(figures: ArrayLike, permutations: int = 10000, seed: int = 0) -> float:
    """P-value of Friedman's test that no method ranks differently from the others over the data sets.

    The null distribution comes from permuting the ranks within each data set: the usual chi-square needs more data
    sets than benchmarks have (Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006).

    Args:
        figures: (data sets, methods), finite.
        permutations: number of them.
        seed: of the permutations.

    Returns:
        NaN with fewer than three methods or three data sets, where the test has nothing to say.
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.asarray(figures, dtype=np.float64), axis=1)
    if min(ranks.shape) < 3:
        return float("nan")
    rng = np.random.default_rng(seed)
    # Friedman's statistic is a rising function of the spread of the rank sums, ties or not.
    spread = ranks.sum(0).var()
    permuted = rng.permuted(np.broadcast_to(ranks, (permutations, *ranks.shape)), axis=2).sum(1).var(1)
    return float((1 + (permuted >= spread - 1e-9).sum()) / (permutations + 1))
