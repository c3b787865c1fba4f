# SPDX-License-Identifier: Apache-2.0
"""Weighted, vectorised figures against scikit-learn with sample weights."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from monai_rdad.metrics import curves
from monai_rdad.metrics.image import score_histograms


@pytest.fixture(scope="module")
def problem():
    """Forty tied scores and five rows of weights, zeros among them."""
    generator = np.random.default_rng(0)
    abnormal = generator.random(40) < 0.4
    scores = np.round(generator.normal(size=40) + abnormal, 1)
    weights = generator.integers(0, 4, size=(5, 40)).astype(float)
    return scores, abnormal, weights, score_histograms(scores, abnormal, weights)


def test_auroc_and_average_precision_equal_sklearn_with_weights(problem):
    scores, abnormal, weights, histograms = problem
    assert len(np.unique(scores)) < 40, "the problem has to hold ties"
    for ours, reference in ((curves.auroc, roc_auc_score), (curves.average_precision, average_precision_score)):
        expected = [reference(abnormal, scores, sample_weight=w) for w in weights]
        np.testing.assert_allclose(ours(*histograms), expected, atol=1e-12)


def test_best_f1_and_its_accuracy_equal_a_loop_over_thresholds(problem):
    scores, abnormal, weights, histograms = problem
    for w, f1, accuracy in zip(weights, *curves.best_f1(*histograms), strict=True):
        found = []
        for threshold in np.unique(scores):
            positive = scores >= threshold
            hits = w[positive & abnormal].sum()
            found.append((2 * hits / (w[positive].sum() + w[abnormal].sum()), w[positive == abnormal].sum() / w.sum()))
        assert (f1, accuracy) == pytest.approx(max(found, key=lambda pair: pair[0]))


def test_sensitivity_at_specificity_equals_sklearns_roc(problem):
    scores, abnormal, weights, histograms = problem
    for w, ours in zip(weights, curves.sensitivity_at_specificity(*histograms, 0.8), strict=True):
        fpr, tpr, _ = roc_curve(abnormal, scores, sample_weight=w, drop_intermediate=False)
        assert ours == pytest.approx(tpr[fpr <= 0.2 + 1e-9].max())


def test_one_false_positive_in_twenty_is_95_percent_specificity():
    normal, abnormal = np.zeros(21), np.zeros(21)
    normal[:19], normal[20], abnormal[19], abnormal[0] = 1, 1, 1, 1
    assert curves.sensitivity_at_specificity(normal, abnormal) == 0.5


def test_f1_tie_takes_the_lowest_threshold():
    # ascending bins: abnormal, two normals, abnormal: both thresholds have F1 2/3, accuracy 3/4 or 2/4
    f1, accuracy = curves.best_f1(np.array([0.0, 2.0, 0.0]), np.array([1.0, 0.0, 1.0]))
    assert (f1, accuracy) == pytest.approx((2 / 3, 2 / 4))


def test_aupro_by_hand():
    # descending: all regions' first half, then 60 % of the normals, then the rest
    by_region, normal = np.array([0.5, 0.0, 0.5]), np.array([4.0, 6.0, 0.0])
    assert curves.aupro(normal, by_region, 0.3) == pytest.approx(0.5)
    # a straight line from (0, 0) to (0.6, 0.9), cut at 0.3: a triangle of height 0.45
    assert curves.aupro(np.array([4.0, 6.0]), np.array([0.1, 0.9]), 0.3) == pytest.approx(0.225)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("empty", [0, 1])
def test_a_missing_class_is_nan_without_a_warning(empty):
    histograms = [np.ones((2, 4)), np.ones((2, 4))]
    histograms[empty] = np.zeros((2, 4))
    for figure in (curves.auroc, curves.average_precision, curves.sensitivity_at_specificity, curves.aupro):
        assert np.isnan(figure(*histograms)).all(), figure.__name__
    assert np.isnan(curves.best_f1(*histograms)).all()
