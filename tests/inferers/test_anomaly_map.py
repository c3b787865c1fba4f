# SPDX-License-Identifier: Apache-2.0
"""The map against SciPy and torch, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import nn

from monai_rdad.features import FeaturePairs
from monai_rdad.inferers import AnomalyMap, SlicewiseInferer
from monai_rdad.inferers.anomaly_map import blur_matrix, upsample_matrix

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """A network that returns given pairs, repeated for the batch."""

    def __init__(self, pairs):
        super().__init__()
        self.pairs = pairs
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image):
        return self.pairs


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 70), st.integers(2, 40))
def test_upsampling_is_linear_interpolation_with_aligned_corners(size_out, size_in):
    x = torch.rand(1, 1, size_in, generator=torch.Generator().manual_seed(size_in))
    expected = nn.functional.interpolate(x, size=size_out, mode="linear", align_corners=True)
    torch.testing.assert_close(upsample_matrix(size_out, size_in, CPU) @ x[0, 0], expected[0, 0], rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 200), st.floats(0.5, 4.0))
def test_blur_is_scipys(size, sigma):
    x = np.random.default_rng(size).random(size).astype(np.float32)
    expected = gaussian_filter1d(x, sigma)
    actual = blur_matrix(size, sigma, CPU) @ torch.from_numpy(x)
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("with_weights", [False, True])
def test_whole_map_against_interpolate_and_scipy(with_weights):
    g = torch.Generator().manual_seed(0)
    targets = [torch.randn(2, c, s, s + 2, generator=g) for c, s in ((4, 16), (8, 8), (16, 4))]
    predictions = [torch.randn(t.shape, generator=g) for t in targets]
    weights = torch.rand(2, 3, generator=g).softmax(1) if with_weights else None
    actual = AnomalyMap(Fixed(FeaturePairs(targets, predictions, weights)), sigma=4.0)(torch.zeros(2, 1, 64, 72))
    expected = torch.zeros(2, 64, 72)
    for scale, (t, p) in enumerate(zip(targets, predictions, strict=True)):
        distance = (1 - nn.functional.cosine_similarity(t, p))[:, None]
        up = nn.functional.interpolate(distance, size=(64, 72), mode="bilinear", align_corners=True)[:, 0]
        expected += up if weights is None else up * 3 * weights[:, scale, None, None]
    blurred = np.stack([gaussian_filter(m, 4.0) for m in expected.numpy()])
    np.testing.assert_allclose(actual[:, 0].numpy(), blurred, atol=1e-5)


def test_blur_never_crosses_images():
    distances = torch.zeros(3, 1, 8, 8)
    distances[1] = 1.0
    target = torch.cat([1 - distances, distances], dim=1)
    prediction = torch.cat([torch.ones_like(distances), torch.zeros_like(distances)], dim=1)
    maps = AnomalyMap(Fixed(FeaturePairs([target], [prediction])), sigma=4.0)(torch.zeros(3, 1, 64, 64))
    assert maps[0].max() < 1e-5 and maps[2].max() < 1e-5
    assert maps[1].min() > 1 - 1e-5


def test_state_dict_is_the_networks_also_when_nested():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    anomaly_map = AnomalyMap(network)
    assert set(anomaly_map.state_dict()) == set(network.state_dict())
    outer = nn.ModuleDict({"inner": anomaly_map})
    assert set(outer.state_dict()) == {f"inner.{k}" for k in network.state_dict()}
    other = AnomalyMap(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.network[0].weight, network[0].weight)
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.bias"):
        other.load_state_dict({k: v for k, v in network.state_dict().items() if k != "1.bias"})


def test_volume_slices_equal_single_images():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x[:, :1]

    volume = torch.rand(1, 3, 32, 40, 11)
    result = SlicewiseInferer(slice_batch_size=4)(volume, Double())
    assert result.shape == (1, 1, 32, 40, 11)
    for k in range(11):
        torch.testing.assert_close(result[..., k], 2 * volume[:, :1, :, :, k])
    image = torch.rand(2, 3, 32, 40)
    assert torch.equal(SlicewiseInferer()(image, Double()), 2 * image[:, :1])
