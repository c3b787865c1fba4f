# SPDX-License-Identifier: Apache-2.0
"""Conformal p-values, thresholds and areas against their definitions and their guarantees."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_rdad.metrics import AreaRisk, ConformalScores, false_positive_band

# few values, so that ties are common
VALUES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(scores=VALUES, data=st.data(), new=st.integers(-5, 5).map(float), percent=st.integers(1, 99))
def test_p_value_and_decision_by_their_definition(scores, data, new, percent):
    groups = data.draw(st.lists(st.sampled_from("abcde"), min_size=len(scores), max_size=len(scores)))
    members = {g: [s for s, h in zip(scores, groups, strict=True) if h == g] for g in set(groups)}
    mass = sum(Fraction(sum(s >= new for s in m), len(m)) for m in members.values())
    expected = (1 + mass) / (len(members) + 1)
    calibration = ConformalScores(scores, groups)
    assert calibration.p_values(new) == pytest.approx(float(expected))
    alpha = Fraction(percent, 100)
    assert (new > calibration.threshold(float(alpha))) == (expected <= alpha)


@settings(max_examples=50, deadline=None)
@given(scores=VALUES, new=st.integers(-5, 5).map(float))
def test_groups_of_one_are_no_groups(scores, new):
    alone = ConformalScores(scores)
    named = ConformalScores(scores, [f"patient{i}" for i in range(len(scores))])
    assert alone.p_values(new) == named.p_values(new)
    assert alone.p_values(new) == pytest.approx((1 + sum(s >= new for s in scores)) / (len(scores) + 1))


def test_too_few_images_for_the_rate_call_nothing_abnormal():
    nineteen = ConformalScores(np.arange(19.0))
    assert nineteen.threshold(0.05) == 18.0  # above all of them
    assert nineteen.threshold(0.049) == math.inf
    assert ConformalScores([1.0]).p_values([0.0, 2.0]).tolist() == [1.0, 0.5]


def test_rate_on_new_normals_lies_in_its_band():
    rng = np.random.default_rng(0)
    n, m, alpha, runs = 60, 100, 0.1, 2000
    rates = np.empty(runs)
    for i in range(runs):
        scores = rng.gamma(2.0, size=n + m)
        rates[i] = (scores[n:] > ConformalScores(scores[:n]).threshold(alpha)).mean()
    # k = floor(0.1 * 61) = 6: the mean rate is 6 / 61
    assert rates.mean() == pytest.approx(6 / 61, abs=4 * rates.std() / math.sqrt(runs))
    low, high = false_positive_band(n, alpha, m)
    assert 0.93 <= ((rates >= low) & (rates <= high)).mean() <= 0.98
    wide = false_positive_band(n, alpha)
    assert low <= wide[0] and wide[1] <= high


def test_groups_keep_the_rate_where_images_of_a_patient_are_alike():
    rng = np.random.default_rng(1)
    alpha, runs = 0.1, 3000
    false = {"grouped": 0, "pooled": 0}
    for _ in range(runs):
        patients = rng.normal(size=13)
        # the patients of unusual scores have one image, the others nine: pooling them underestimates the tail
        counts = np.where(patients > 0.7, 1, 9)
        groups = np.repeat(np.arange(13), counts)
        scores = patients[groups] + 0.05 * rng.normal(size=groups.size)
        old = groups < 12
        new = scores[groups == 12][0]
        false["grouped"] += new > ConformalScores(scores[old], groups[old].astype(str)).threshold(alpha)
        false["pooled"] += new > ConformalScores(scores[old]).threshold(alpha)
    margin = 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert false["grouped"] / runs <= alpha + margin
    assert false["pooled"] / runs > alpha + 2 * margin


def test_band_of_a_rate_that_cannot_be_reached_is_nothing():
    assert false_positive_band(10, 0.05) == (0.0, 0.0)
    assert false_positive_band(10, 0.05, 50) == (0.0, 0.0)


def test_area_threshold_is_the_lowest_that_keeps_the_risk():
    risk = AreaRisk(values=(0.1, 0.2, 0.3, 0.4), fractions=(0.5, 0.05, 0.01, 0.0), n_groups=99)
    # (99 * 0.05 + 1) / 100 = 0.0595, (99 * 0.01 + 1) / 100 = 0.0199, 1 / 100
    assert risk.threshold(0.06) == 0.2
    assert risk.threshold(0.05) == 0.3
    assert risk.threshold(0.01) == 0.4
    assert risk.threshold(0.009) == math.inf


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_a_rate_is_between_zero_and_one(alpha):
    with pytest.raises(ValueError, match="between 0 and 1"):
        ConformalScores([1.0]).threshold(alpha)
    with pytest.raises(ValueError, match="between 0 and 1"):
        AreaRisk((0.0,), (0.0,), 1).threshold(alpha)
    with pytest.raises(ValueError, match="between 0 and 1"):
        false_positive_band(10, alpha)


def test_broken_scores_are_refused():
    with pytest.raises(ValueError, match="at least one score"):
        ConformalScores([])
    with pytest.raises(ValueError, match="finite"):
        ConformalScores([1.0, math.nan])
    with pytest.raises(ValueError, match="2 scores but 1 groups"):
        ConformalScores([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="not finite"):
        ConformalScores([1.0]).p_values([math.inf])
    with pytest.raises(ValueError, match="at least 1"):
        false_positive_band(0, 0.1)
