# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import precision_recall_curve, roc_curve

from monai_rdad.metrics import (
    IMAGE_METRICS,
    PIXEL_METRICS,
    PixelAccumulator,
    bootstrap_curve_bands,
    bootstrap_image_metrics,
    bootstrap_pixel_metrics,
    group_strata,
    image_metrics,
    resampling_weights,
)


def images(seed, count=80, shift=1.0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return generator.normal(size=count) + shift * labels, labels, [f"p{i:03d}" for i in range(count)]


def pixels_of(groups, seed=0):
    """Small maps with one square lesion in every odd group's images."""
    generator = np.random.default_rng(seed)
    accumulator, maps, masks = PixelAccumulator(), [], []
    for i, group in enumerate(groups):
        mask = np.zeros((12, 12), np.uint8)
        mask[2:5, 2 : 5 + i % 3] = i % 2
        maps.append(generator.gamma(3 + 2 * mask).astype(np.float32))
        masks.append(mask)
        accumulator.update(maps[-1], mask, group)
    return accumulator, maps, masks


def test_strata_keep_their_size_and_mixed_groups_are_whole():
    strata = group_strata(["a", "b", "b", "c", "d", "e"], [0, 0, 1, 1, 0, 1])
    assert strata == {"a": 0, "b": 2, "c": 1, "d": 0, "e": 1}
    blocks = list(resampling_weights(list(strata.values()), resamples=120))
    weights = np.concatenate(blocks)
    assert weights.shape == (120, 5) and len(blocks[0]) == 50
    stratum = np.array(list(strata.values()))
    for s, size in ((0, 2), (1, 2), (2, 1)):
        assert (weights[:, stratum == s].sum(1) == size).all()
    assert set(np.unique(weights)) == {0, 1, 2}


def test_intervals_hold_the_point_and_are_reproducible():
    scores, labels, groups = images(0)
    figures = image_metrics(scores, labels)
    intervals = bootstrap_image_metrics(scores, labels, groups, seed=3)
    assert list(intervals) == list(IMAGE_METRICS)
    for name, (low, high) in intervals.items():
        assert 0 <= low <= figures[name] <= high <= 1 and high - low > 0.02, name
    assert bootstrap_image_metrics(scores, labels, groups, seed=3) == intervals
    order = np.random.default_rng(0).permutation(len(scores))
    assert bootstrap_image_metrics(scores[order], labels[order], [groups[i] for i in order], seed=3) == intervals
    assert bootstrap_image_metrics(scores, labels, groups, seed=4) != intervals


def test_every_resample_is_sklearn_on_the_drawn_images():
    scores, labels, groups = images(1, count=24)
    groups = [f"p{i // 4}" for i in range(24)]
    drawn = next(resampling_weights(list(group_strata(groups, labels).values()), 50, seed=5))
    values = []
    for row in drawn:
        index = np.repeat(np.arange(24), np.repeat(row.astype(int), 4))
        values.append(image_metrics(scores[index], labels[index])["image_ap"])
    low, high = bootstrap_image_metrics(scores, labels, groups, 50, seed=5)["image_ap"]
    assert (low, high) == pytest.approx(tuple(np.percentile(values, (2.5, 97.5))))


def test_copies_within_a_group_add_no_certainty():
    scores, labels, groups = images(2)
    once = bootstrap_image_metrics(scores, labels, groups)
    four = bootstrap_image_metrics(np.repeat(scores, 4), np.repeat(labels, 4), np.repeat(groups, 4).tolist())
    naive = bootstrap_image_metrics(np.repeat(scores, 4), np.repeat(labels, 4), [str(i) for i in range(320)])
    assert four["image_auroc"] == pytest.approx(once["image_auroc"])
    assert np.diff(naive["image_auroc"]) < 0.7 * np.diff(once["image_auroc"])


def test_coverage_of_a_known_auroc():
    truth = norm.cdf(1 / np.sqrt(2))
    inside = 0
    for seed in range(200):
        low, high = bootstrap_image_metrics(*images(seed), resamples=200, seed=seed)["image_auroc"]
        inside += low <= truth <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_one_class_gives_nan():
    intervals = bootstrap_image_metrics([0.1, 0.2], [0, 0], ["a", "b"], 20)
    assert np.isnan(list(intervals.values())).all()


def test_pixel_intervals_equal_a_loop_over_resamples():
    groups = [f"p{i % 10}" for i in range(20)]
    accumulator, maps, masks = pixels_of(groups)
    strata = group_strata(groups, np.arange(20) % 2)
    intervals = bootstrap_pixel_metrics(accumulator, strata, 50, seed=1)
    values = {name: [] for name in PIXEL_METRICS}
    for row in next(resampling_weights(list(strata.values()), 50, seed=1)):
        drawn = PixelAccumulator(by_group=False)
        for i, group in enumerate(groups):
            for _ in range(int(row[list(strata).index(group)])):
                drawn.update(maps[i], masks[i])
        for name, value in drawn.compute().items():
            values[name].append(value)
    for name in PIXEL_METRICS:
        assert intervals[name] == pytest.approx(tuple(np.percentile(values[name], (2.5, 97.5))), abs=2e-3), name
        assert intervals[name][0] <= accumulator.compute()[name] <= intervals[name][1], name


def test_without_masks_there_are_no_pixel_intervals():
    assert bootstrap_pixel_metrics(PixelAccumulator(), {}) == {}


def test_curve_bands_against_resampling_one_by_one():
    """The same resamples, spelled out as repeated images and given to scikit-learn."""
    scores, labels, groups = images(3, 30)
    groups = [f"p{i // 3}" for i in range(30)]
    at = np.array([0.0, 0.11, 0.5, 0.93, 1.0])
    bands = bootstrap_curve_bands(scores, labels, groups, at, resamples=60, seed=5)
    strata = group_strata(groups, labels)
    weights = np.concatenate(list(resampling_weights(list(strata.values()), 60, 5)))
    of_image = [list(strata).index(group) for group in groups]
    sensitivities, precisions = [], []
    for row in weights:
        drawn = np.repeat(np.arange(30), row[of_image].astype(int))
        false_rate, true_rate, _ = roc_curve(labels[drawn], scores[drawn], drop_intermediate=False)
        sensitivities.append([np.interp(x, false_rate, true_rate) for x in at])
        precision, recall, _ = precision_recall_curve(labels[drawn], scores[drawn])
        precision, recall = precision[-2::-1], recall[-2::-1]
        precisions.append([precision[np.flatnonzero((recall >= x - 1e-12) & (recall > 0))[0]] for x in at])
    np.testing.assert_allclose(bands["roc"], np.percentile(sensitivities, (2.5, 97.5), axis=0))
    np.testing.assert_allclose(bands["precision_recall"], np.percentile(precisions, (2.5, 97.5), axis=0))


def test_curve_bands_need_both_classes():
    with pytest.raises(ValueError, match="normal and abnormal"):
        bootstrap_curve_bands([0.1, 0.2], [0, 0], ["a", "b"], [0.5])
