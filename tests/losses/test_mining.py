# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from monai_rdad.features import FeaturePairs
from monai_rdad.losses import CosineDistillationLoss, GlobalCosineMiningLoss


def _pairs(seed=0, batch=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    maps = [
        [torch.randn(batch, c, s, s, generator=g).to(dtype) for c, s in ((4, 8), (8, 4), (4, 8), (8, 4))]
        for _ in range(2)
    ]
    return FeaturePairs(maps[0], [p.requires_grad_() for p in maps[1]])


def _gradients(loss, pairs):
    value = loss(pairs)
    return value, torch.autograd.grad(value, pairs.predictions)


def test_gradient_by_hand():
    # 2x2 positions whose distances to (1, 0) are 0, 0.29, 1 and 2; mean 0.82, standard deviation 0.89
    target = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]]).view(1, 2, 2, 2)
    prediction = torch.tensor([[1.0, 1, 0, -1], [0, 1, 1, 0]]).view(1, 2, 2, 2).requires_grad_()
    pairs = FeaturePairs([target], [prediction])
    value, (gradient,) = _gradients(GlobalCosineMiningLoss(warmup=0), pairs)
    # the maps as vectors: product 1, lengths 2 and sqrt(5); d(1 - cos)/dp = -(t / (2 sqrt(5)) - cos * p / 5)
    cos = 1 / (2 * math.sqrt(5))
    assert value.item() == pytest.approx(1 - cos)
    expected = torch.zeros(1, 2, 2, 2)
    expected[0, 0, 1, 1] = -(cos + cos / 5)
    torch.testing.assert_close(gradient, expected)
    # alpha -1: the threshold lies below all distances
    loss = GlobalCosineMiningLoss(warmup=2)
    loss.iteration.fill_(1)
    gradient = _gradients(loss, pairs)[1][0]
    torch.testing.assert_close(gradient[0, 0], torch.tensor([[-0.8 * cos, -0.8 * cos], [-cos, -1.2 * cos]]))
    torch.testing.assert_close(gradient[0, 1], torch.tensor([[0.0, 0.2 * cos], [0.2 * cos, 0.0]]))


def test_alpha_rises_linearly_then_stays():
    loss = GlobalCosineMiningLoss(warmup=10)
    pairs = _pairs()
    alphas = []
    for _ in range(13):
        alphas.append(loss.alpha.item())
        loss(pairs)
        with torch.no_grad():
            loss(pairs)  # takes part in no gradient: not an iteration
    assert alphas == pytest.approx([-3 + 0.4 * min(i, 10) for i in range(13)])
    assert GlobalCosineMiningLoss(warmup=0).alpha.item() == 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 4), iteration=st.integers(0, 12))
def test_easy_positions_get_nothing_and_hard_ones_all(seed, batch, iteration):
    pairs = _pairs(seed, batch)
    loss = GlobalCosineMiningLoss(warmup=10)
    loss.iteration.fill_(iteration)
    alpha = -3 + 0.4 * min(iteration, 10)
    value, mined = _gradients(loss, pairs)
    plain_value, plain = _gradients(CosineDistillationLoss(), pairs)
    assert torch.equal(value, plain_value)
    shares = []
    for t, p, g, full in zip(pairs.targets, pairs.predictions, mined, plain, strict=True):
        distance = (1 - cosine_similarity(t, p)).detach()
        excess = (distance - distance.mean() - alpha * distance.std())[:, None].expand_as(g)
        assert (g[excess < -1e-5] == 0).all()
        assert torch.equal(g[excess > 1e-5], full[excess > 1e-5])
        shares.append((excess < 0).float().mean().item())
    if iteration == 0:
        assert max(shares) < 0.05
    if iteration >= 10:
        assert min(shares) > 0.5


def test_statistics_are_those_of_the_batch():
    """An image that is easy as a whole gets no gradient beside a hard one."""
    pairs = _pairs(batch=2)
    with torch.no_grad():
        for t, p in zip(pairs.targets, pairs.predictions, strict=True):
            p[0] = t[0] + 0.1 * p[0]
    _, gradients = _gradients(GlobalCosineMiningLoss(warmup=0), pairs)
    assert all((g[0] == 0).all() and g[1].abs().sum() > 0 for g in gradients)


def test_without_mining_it_is_cosine_distillation():
    pairs = _pairs()
    value, gradients = _gradients(GlobalCosineMiningLoss(warmup=0, mining=False), pairs)
    expected, plain = _gradients(CosineDistillationLoss(), pairs)
    assert torch.equal(value, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain, strict=True))


def test_other_uses_of_the_predictions_keep_their_gradient():
    pairs = _pairs()
    loss = GlobalCosineMiningLoss(warmup=0)
    mined, plain = _gradients(loss, pairs)[1], _gradients(CosineDistillationLoss(), pairs)[1]
    both = _gradients(lambda p: loss(p) + CosineDistillationLoss()(p), pairs)[1]
    for total, a, b in zip(both, mined, plain, strict=True):
        torch.testing.assert_close(total, a + b)


def test_no_gradient_flows_into_targets_by_mining_and_none_is_needed():
    pairs = _pairs()
    with torch.no_grad():
        value = GlobalCosineMiningLoss(warmup=0)(pairs)
    assert not value.requires_grad
    constant = pairs._replace(predictions=[p.detach() for p in pairs.predictions])
    assert torch.equal(GlobalCosineMiningLoss(warmup=0)(constant), value)


def test_bfloat16_gradients():
    pairs = _pairs(dtype=torch.bfloat16)
    value, gradients = _gradients(GlobalCosineMiningLoss(warmup=0), pairs)
    assert value.dtype == torch.float32
    assert all(g.dtype == torch.bfloat16 and (g == 0).any() and (g != 0).any() for g in gradients)


def test_the_count_is_in_the_state():
    loss, resumed = GlobalCosineMiningLoss(warmup=10), GlobalCosineMiningLoss(warmup=10)
    for _ in range(4):
        loss(_pairs())
    resumed.load_state_dict(loss.state_dict())
    assert resumed.alpha.item() == loss.alpha.item() == pytest.approx(-3 + 0.4 * 4)


def test_negative_warmup_is_refused():
    with pytest.raises(ValueError, match="at least 0"):
        GlobalCosineMiningLoss(warmup=-1)
