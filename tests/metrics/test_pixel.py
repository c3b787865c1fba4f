# SPDX-License-Identifier: Apache-2.0
"""Streamed pixel metrics against brute force and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.measure import label
from sklearn.metrics import average_precision_score, roc_auc_score

from monai_rdad.metrics import PixelAccumulator


def make(seed, count=6, size=32, levels=None):
    """Maps and masks: several regions per abnormal image, every third image normal, some unknown pixels."""
    generator = np.random.default_rng(seed)
    blobs = gaussian_filter(generator.normal(size=(count, size, size)), (0, 2, 2))
    masks = (blobs > 1.3 * blobs.std()).astype(np.uint8)
    masks[::3] = 0
    noise = gaussian_filter(generator.normal(size=masks.shape), (0, 1, 1))
    maps = 0.1 * np.exp(2 * noise + 0.8 * masks)
    if levels:
        maps = np.ceil(maps * levels / maps.max()) / levels
    masks[1, :5] = 255
    return maps.astype(np.float32), masks


def accumulate(maps, masks, **kwargs):
    pixels = PixelAccumulator(**kwargs)
    for i, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels.update(anomaly_map, mask, group=str(i // 2), name=str(i))
    return pixels


def brute_force_aupro(maps, masks, limit=0.3):
    """Every distinct value a threshold, every region visited at each; regions by scikit-image."""
    regions = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        labels = label(mask == 1, connectivity=2)
        regions += [anomaly_map[labels == r] for r in range(1, labels.max() + 1)]
    normal = maps[masks == 0]
    x, y = [0.0], [0.0]
    for threshold in np.unique(maps[masks <= 1])[::-1]:
        x.append(float(np.mean(normal >= threshold)))
        y.append(float(np.mean([np.mean(region >= threshold) for region in regions])))
    area = 0.0
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            area += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return area / limit, len(regions)


@pytest.mark.parametrize(("seed", "levels"), [(0, None), (1, None), (2, 12), (3, 40)])
def test_figures_equal_brute_force_and_sklearn_with_and_without_ties(seed, levels):
    maps, masks = make(seed, levels=levels)
    pixels = accumulate(maps, masks)
    figures = pixels.compute()
    expected, regions = brute_force_aupro(maps, masks)
    assert pixels.regions == regions > 8
    assert figures["aupro_0.3"] == pytest.approx(expected, abs=1e-4)
    truth, values = masks[masks <= 1], maps[masks <= 1]
    assert figures["pixel_auroc"] == pytest.approx(roc_auc_score(truth, values), abs=1e-4)
    assert figures["pixel_ap"] == pytest.approx(average_precision_score(truth, values), abs=1e-4)
    dice = [
        2 * np.sum(truth[values >= t]) / (np.sum(values >= t) + truth.sum())
        for t in np.quantile(values, np.linspace(0, 1, 2000))
    ]
    assert figures["oracle_dice"] == pytest.approx(max(dice), abs=2e-3)


def test_regions_connect_through_corners():
    mask = np.eye(8, dtype=np.uint8)
    pixels = PixelAccumulator()
    pixels.update(np.ones((8, 8), np.float32), mask)
    assert pixels.regions == 1


def test_volumes_are_taken_too():
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[1:3, 1:3, 1:3] = mask[4:, 4:, 4:] = 1
    pixels = PixelAccumulator()
    pixels.update(mask + np.float32(0.5), mask)
    assert pixels.regions == 2
    assert pixels.compute() == {"pixel_auroc": 1, "pixel_ap": 1, "aupro_0.3": 1, "oracle_dice": 1}


def test_small_and_large_regions_count_alike_in_aupro_only():
    anomaly_map, mask = np.full((20, 20), 0.1, np.float32), np.zeros((20, 20), np.uint8)
    mask[:10, :10] = mask[15, 15] = 1
    anomaly_map[:10, :10] = 1.0  # the large region is found, the single pixel is not
    pixels = PixelAccumulator()
    pixels.update(anomaly_map, mask)
    figures = pixels.compute()
    # PRO is 0.5 at rate 0, then rises straight to 1 at rate 1: 0.65 at the limit
    assert figures["aupro_0.3"] == pytest.approx((0.5 + 0.65) / 2, abs=1e-6)
    assert figures["oracle_dice"] > 0.99


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-10, 10), levels=st.sampled_from([None, 3, 20]))
def test_bounds_and_invariances(seed, exponent, levels):
    maps, masks = make(seed, count=4, size=16, levels=levels)
    if not (masks == 1).any():
        return
    figures = accumulate(maps, masks).compute()
    assert all(-1e-12 <= v <= 1 + 1e-12 for v in figures.values())
    scaled = accumulate(maps * np.float32(2.0**exponent), masks).compute()
    assert scaled == figures
    order = np.random.default_rng(seed).permutation(4)
    assert accumulate(maps[order], masks[order]).compute() == pytest.approx(figures, abs=1e-12)
    first, second = accumulate(maps[:1], masks[:1]), accumulate(maps[1:], masks[1:])
    first.merge(second)
    assert first.compute() == pytest.approx(figures, abs=1e-12)
    assert first.images == 4
    flipped = accumulate(maps[:, ::-1], masks[:, ::-1]).compute()
    assert flipped == pytest.approx(figures, abs=1e-12)


def test_unknown_pixels_and_images_do_not_count():
    maps, masks = make(4)
    hidden = masks.copy()
    hidden[2] = 255
    with_unknown = accumulate(maps, hidden)
    assert with_unknown.images == 5
    wild = maps.copy()
    wild[hidden == 255] *= 1000
    assert accumulate(wild, hidden).compute() == with_unknown.compute()


@pytest.mark.parametrize("value", [0, 1, 255])
def test_no_figures_without_both_kinds_of_pixel(value):
    maps, masks = make(5)
    assert accumulate(maps, np.full_like(masks, value)).compute() == {}
    assert PixelAccumulator().compute() == {}


def test_memory_does_not_grow_with_the_number_of_images():
    maps, masks = make(6, count=8)
    pixels = PixelAccumulator()
    sizes = []
    for _ in range(30):
        for i, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
            pixels.update(anomaly_map, mask, group=str(i))
        sizes.append(pixels.nbytes)
    assert len(set(sizes)) == 1
    assert pixels.images == 240


def test_the_widest_range_of_values_takes_four_megabytes():
    generator = np.random.default_rng(0)
    pixels = PixelAccumulator(by_group=False)
    for exponent in range(-45, 38, 3):
        values = (generator.random((32, 32)) * 10.0**exponent).astype(np.float32)
        pixels.update(values, (generator.random((32, 32)) < 0.5).astype(np.uint8))
    assert 3 << 20 < pixels.nbytes < 4 << 20


def test_many_groups_stay_within_their_budget():
    maps, masks = make(7, count=8)
    pixels = PixelAccumulator(group_bytes=1 << 18)
    reference = PixelAccumulator()
    for i in range(200):
        for accumulator in (pixels, reference):
            accumulator.update(maps[i % 8], masks[i % 8], group=str(i))
    assert pixels.nbytes - pixels.total.counts.nbytes <= 1 << 18 < reference.nbytes
    names, dense = pixels.dense_groups()
    assert len(names) == 200 and dense.nbytes <= 1 << 18
    np.testing.assert_allclose(dense.sum((0, 2)), reference.total.counts.sum(1), rtol=1e-5)
    merged = PixelAccumulator(group_bytes=1 << 18)
    merged.update(maps[0], masks[0], group="another")
    merged.merge(pixels)
    assert merged.coarsening == pixels.coarsening and len(merged.groups) == 201


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (np.nan, (4, 4), "'scan3' spans nan"),
        (np.inf, (4, 4), "'scan3' spans 0 to inf"),
        (-0.5, (4, 4), "'scan3' spans -0.5"),
        (0.5, (4, 5), "'scan3' differ in shape"),
    ],
)
def test_broken_maps_are_refused_by_name(value, shape, message):
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[1, 1] = value
    with pytest.raises(ValueError, match=message):
        PixelAccumulator().update(anomaly_map, np.zeros(shape, np.uint8), name="scan3")


def test_negative_rounding_counts_as_zero():
    pixels = PixelAccumulator()
    pixels.update(np.array([[-1e-7, 0.0, 1.0]], np.float32), np.array([[0, 0, 1]], np.uint8))
    assert pixels.compute()["pixel_auroc"] == 1
