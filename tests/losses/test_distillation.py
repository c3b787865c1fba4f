# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from monai_rdad.features import FeaturePairs
from monai_rdad.losses import CosineDistillationLoss, cosine_distance


def _maps(seed):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(3, c, s, s, generator=g) for c, s in ((4, 8), (8, 4))]


def test_distances_are_one_minus_cosine():
    a, b = _maps(0)[0], _maps(1)[0]
    torch.testing.assert_close(cosine_distance(a, b), 1 - cosine_similarity(a.flatten(1), b.flatten(1)))
    torch.testing.assert_close(cosine_distance(a, b, per_position=True), 1 - cosine_similarity(a, b))
    channels_last = a.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(cosine_distance(channels_last, b), cosine_distance(a, b))


def test_extremes_and_zero_maps():
    a = _maps(0)[0]
    torch.testing.assert_close(cosine_distance(a, 3 * a), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine_distance(a, -a), torch.full((3,), 2.0))
    zero = torch.zeros_like(a, requires_grad=True)
    distance = cosine_distance(a, zero).sum()
    distance.backward()
    assert torch.isfinite(distance) and torch.isfinite(zero.grad).all()


def test_bfloat16_maps_are_compared_in_float32():
    a, b = _maps(0)[0].bfloat16(), _maps(1)[0].bfloat16()
    assert cosine_distance(a, b).dtype == torch.float32


def test_loss_sums_scales_and_averages_images():
    pairs = FeaturePairs(_maps(0), _maps(1))
    expected = sum((1 - cosine_similarity(t.flatten(1), p.flatten(1))).mean() for t, p in zip(*pairs[:2], strict=True))
    torch.testing.assert_close(CosineDistillationLoss()(pairs, None), expected)
    local = sum((1 - cosine_similarity(t, p)).mean() for t, p in zip(*pairs[:2], strict=True))
    torch.testing.assert_close(CosineDistillationLoss(per_position=True)(pairs), local)
