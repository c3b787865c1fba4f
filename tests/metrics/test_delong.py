# SPDX-License-Identifier: Apache-2.0
"""DeLong's covariance and what is built on it, against references written from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare, norm
from sklearn.metrics import roc_auc_score

from monai_rdad.metrics import (
    bootstrap_image_metrics,
    compare_auroc,
    compare_resampled,
    delong_covariance,
    friedman_p_value,
    holm,
    mean_ranks,
    resample_image_metrics,
    resampled_intervals,
)


def structural_components(scores, labels):
    """AUROCs and covariance from all pairs of images, as DeLong et al. define them (1988, equations 4 to 7)."""
    normal = [row[labels == 0] for row in scores]
    abnormal = [row[labels == 1] for row in scores]
    psi = np.array(
        [(x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None]) for x, y in zip(abnormal, normal, strict=True)]
    )
    aurocs, m, n = psi.mean((1, 2)), psi.shape[1], psi.shape[2]
    ten, one = psi.mean(2) - aurocs[:, None], psi.mean(1) - aurocs[:, None]
    return aurocs, ten @ ten.T / (m - 1) / m + one @ one.T / (n - 1) / n


@given(
    seed=st.integers(0, 2**32 - 1),
    abnormal=st.integers(2, 30),
    normal=st.integers(2, 30),
    values=st.sampled_from([2, 5, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_covariance_is_that_of_all_pairs_with_few_and_many_ties(seed, abnormal, normal, values):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([1, 0], [abnormal, normal]))
    scores = rng.integers(0, values, (3, labels.size)) + labels * rng.integers(0, 2)
    expected, covariance = structural_components(scores, labels)
    found, estimate = delong_covariance(scores, labels)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found == pytest.approx([roc_auc_score(labels, row) for row in scores])
    assert estimate == pytest.approx(covariance, abs=1e-12)


def test_small_case_by_hand():
    # abnormal 0.9, 0.4; normal 0.5, 0.4, 0.1: wins 3 of 3 and 1.5 of 3
    # V10 = (1, 0.5), variance 0.125; V01 = (0.5, 0.75, 1), variance 0.0625
    aurocs, covariance = delong_covariance([[0.9, 0.4, 0.5, 0.4, 0.1]], [1, 1, 0, 0, 0])
    assert aurocs[0] == pytest.approx(0.75)
    assert covariance[0, 0] == pytest.approx(0.125 / 2 + 0.0625 / 3)


def test_variance_is_that_of_repeated_samples():
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [40, 60])
    found = []
    for _ in range(1500):
        common = rng.normal(size=100)
        pair = np.stack([common + rng.normal(size=100) + labels, common + rng.normal(size=100) + 0.5 * labels])
        found.append(delong_covariance(pair, labels))
    aurocs, estimates = np.array([a for a, _ in found]), np.array([c for _, c in found])
    assert aurocs[:, 0].mean() == pytest.approx(norm.cdf(1 / 2), abs=0.005)  # d' = 1 / sqrt(2), over sqrt(2)
    assert estimates.mean(0) == pytest.approx(np.cov(aurocs.T), rel=0.12)


def test_comparison_of_means_over_seeds():
    rng = np.random.default_rng(1)
    labels = np.arange(120) % 2
    first = rng.normal(size=(3, 120)) + 1.2 * labels
    second = rng.normal(size=(2, 120)) + 0.4 * labels
    result = compare_auroc(first, second, labels)
    aurocs = [[roc_auc_score(labels, row) for row in rows] for rows in (first, second)]
    assert result.difference == pytest.approx(np.mean(aurocs[0]) - np.mean(aurocs[1]))
    z = result.difference / ((result.high - result.low) / 2 / 1.959964)
    assert result.p_value == pytest.approx(2 * norm.sf(abs(z)), rel=1e-4) and result.p_value < 0.01
    swapped = compare_auroc(second, first, labels)
    assert (swapped.difference, swapped.low, swapped.high) == pytest.approx(
        (-result.difference, -result.high, -result.low)
    )


def test_same_order_is_no_difference():
    scores = np.random.default_rng(2).normal(size=30)
    assert compare_auroc([scores], [np.exp(scores)], np.arange(30) % 2) == (0, 0, 0, 1)


def test_bootstrap_and_delong_agree_where_images_are_independent():
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 150)
    common = rng.normal(size=300)
    rows = [common + rng.normal(size=300) + 1.0 * labels, common + rng.normal(size=300) + 0.7 * labels]
    exact = compare_auroc([rows[0]], [rows[1]], labels)
    drawn = resample_image_metrics(rows, labels, [str(i) for i in range(300)], 3000)["image_auroc"]
    resampled = compare_resampled(exact.difference, drawn[:, 0] - drawn[:, 1])
    assert resampled[1:3] == pytest.approx(exact[1:3], abs=0.006)
    assert resampled.p_value == pytest.approx(exact.p_value, abs=0.02)


def test_resampling_two_scores_at_once_is_resampling_each():
    rng = np.random.default_rng(4)
    rows, labels, groups = rng.normal(size=(2, 40)), np.arange(40) % 2, [f"p{i // 3}" for i in range(40)]
    drawn = resample_image_metrics(rows, labels, groups, 120, seed=1)
    for k in range(2):
        alone = bootstrap_image_metrics(rows[k], labels, groups, 120, seed=1)
        assert resampled_intervals({name: values[:, k] for name, values in drawn.items()}) == alone


def test_resampled_p_value_goes_with_the_interval():
    rng = np.random.default_rng(5)
    for shift in np.linspace(0, 4, 17):
        values = rng.normal(shift, 1, 999)
        result = compare_resampled(shift, values)
        assert (result.p_value < 0.05) == (result.low > 0)
    assert compare_resampled(5.0, np.full(999, 5.0)).p_value == 2 / 1000
    assert compare_resampled(0.0, np.zeros(999)).p_value == 1


def test_holm():
    # Holm (1979): sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, never falling
    assert holm([0.5, 0.01, np.nan, 0.03, 0.02]) == pytest.approx([0.5, 0.04, np.nan, 0.06, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert holm([]).size == 0


def test_ranks_share_ties():
    figures = [[0.9, 0.8, 0.8], [0.5, 0.6, 0.7]]
    assert mean_ranks(figures) == pytest.approx([(1 + 3) / 2, (2.5 + 2) / 2, (2.5 + 1) / 2])


def test_friedman_is_that_of_scipy_where_its_approximation_holds():
    rng = np.random.default_rng(6)
    figures = rng.normal(size=(30, 4)) + np.array([0, 0, 0.2, 0.4])
    figures[3, 1] = figures[3, 0]
    assert friedman_p_value(figures) == pytest.approx(friedmanchisquare(*figures.T).pvalue, abs=0.02)
    # three data sets with the same order of three methods: 6 of 6^3 permutations are as extreme
    assert friedman_p_value([[1, 2, 3]] * 3) == pytest.approx(1 / 36, abs=0.005)
    assert np.isnan(friedman_p_value([[1, 2, 3]] * 2)) and np.isnan(friedman_p_value([[1, 2]] * 9))


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1, 0, 0, 0], "3 normal and 1 abnormal"), ([0, 0, 1, 2], "neither 0"), ([0, 1], "4 scores but 2 labels")],
)
def test_what_cannot_be_compared_is_an_error(labels, message):
    with pytest.raises(ValueError, match=message):
        delong_covariance([[0.1, 0.2, 0.3, 0.4]], labels)
