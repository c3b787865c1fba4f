# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from monai_rdad.features import FeaturePairs
from monai_rdad.losses import (
    PrototypeLoss,
    alignment_loss,
    cosine_distance,
    diversity_loss,
    prototype_similarity,
    soft_mining,
)


def _tokens(assignment: list[int], distance: float, prototypes: torch.Tensor) -> torch.Tensor:
    """Tokens at one cosine distance from the prototype that each is assigned to, off in a direction of their own."""
    cosine = 1 - distance
    own = torch.zeros(len(assignment), prototypes.shape[1])
    own[:, -1] = 1  # orthogonal to every prototype
    return (cosine * prototypes[assignment] + math.sqrt(1 - cosine**2) * own)[None]


@given(st.integers(2, 8), st.floats(0.01, 0.6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_collapsed_assignment_never_scores_better_than_a_balanced_one(m, distance, each):
    prototypes = torch.eye(m, m + 1)
    balanced = prototype_similarity(_tokens(list(range(m)) * each, distance, prototypes), prototypes[None])
    collapsed = prototype_similarity(_tokens([0] * m * each, distance, prototypes), prototypes[None])
    assert alignment_loss(collapsed) >= alignment_loss(balanced) - 1e-5
    assert diversity_loss(collapsed, prototypes[None]) > diversity_loss(balanced, prototypes[None]) + 0.1


def test_identical_prototypes_score_worse_than_different_ones():
    tokens = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    different = torch.eye(3, 8)[None].expand(2, -1, -1)
    same = different[:, :1].expand(-1, 3, -1)
    worse, better = (diversity_loss(prototype_similarity(tokens, p), p) for p in (same, different))
    assert worse > better + 0.3


def test_ideal_prototypes_cost_nothing():
    prototypes = torch.eye(4, 6)[None]
    tokens = torch.eye(4, 6)[[0, 1, 2, 3] * 5][None]
    similarity = prototype_similarity(tokens, prototypes)
    assert diversity_loss(similarity, prototypes).abs() < 1e-6
    assert alignment_loss(similarity).abs() < 1e-6


def test_alignment_counts_small_clusters_as_much_as_large_ones_and_no_empty_ones():
    """By hand: nine tokens at 0.1 from the first prototype, one at 0.5 from the second, none at the third."""
    prototypes = torch.eye(3, 4)
    far = _tokens([1], 0.5, prototypes)
    tokens = torch.cat([_tokens([0] * 9, 0.1, prototypes), far], 1)
    similarity = prototype_similarity(tokens, prototypes[None])
    assert alignment_loss(similarity).item() == pytest.approx((0.1 + 0.5) / 2, abs=1e-5)


def test_every_prototype_gets_a_gradient_also_an_empty_one():
    generator = torch.Generator().manual_seed(0)
    tokens = normalize(torch.randn(2, 30, 8, generator=generator) * 0.1 + torch.eye(8)[0], dim=2)
    prototypes = torch.eye(5, 8)[None].repeat(2, 1, 1).requires_grad_()
    similarity = prototype_similarity(tokens, prototypes)
    assert similarity.argmax(2).unique().tolist() == [0]
    gradient = torch.autograd.grad(alignment_loss(similarity), prototypes, retain_graph=True)[0]
    assert not gradient[:, 1:].any()  # alignment alone leaves the empty ones alone
    gradient = torch.autograd.grad(diversity_loss(similarity, prototypes), prototypes)[0]
    assert (gradient.norm(dim=2) > 1e-3).all()
    # and it draws the empty ones towards the tokens
    assert (gradient[:, 1:] * tokens.mean(1, keepdim=True)).sum(2).max() < 0


def test_diversity_spreads_collapsed_prototypes():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, 200, 6, generator=generator)
    prototypes = (torch.eye(6)[:1] + 0.05 * torch.randn(4, 6, generator=generator))[None].requires_grad_()

    def entropy() -> float:
        usage = prototype_similarity(tokens, prototypes).argmax(2).flatten().bincount(minlength=4) / 200
        return -(usage * usage.clamp_min(1e-9).log()).sum().item() / math.log(4)

    optimizer = torch.optim.Adam([prototypes], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        diversity_loss(prototype_similarity(tokens, prototypes), prototypes).backward()
        optimizer.step()
    unit = normalize(prototypes.detach(), dim=2)[0]
    assert (unit @ unit.T - torch.eye(4)).abs().max() < 0.3
    assert entropy() > 0.8


def test_far_prototypes_do_not_underflow():
    similarity = torch.tensor([1.0, -1.0]).expand(1, 10, 2).clone().requires_grad_()
    prototypes = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    loss = diversity_loss(similarity, prototypes, temperature=0.01)
    loss.backward()
    assert loss.isfinite() and similarity.grad.isfinite().all() and similarity.grad.any()


def test_soft_mining_changes_the_gradient_and_not_the_value():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 5, 3, 3, generator=generator)
    prediction = (target + 0.5 * torch.randn(2, 5, 3, 3, generator=generator)).requires_grad_()
    mined = soft_mining(target, prediction, 3.0)
    assert torch.equal(mined, prediction)
    plain = torch.autograd.grad(cosine_distance(target, prediction).sum(), prediction)[0]
    scaled = torch.autograd.grad(cosine_distance(target, mined).sum(), prediction)[0]
    distance = 1 - torch.nn.functional.cosine_similarity(target, prediction.detach())
    torch.testing.assert_close(scaled, plain * ((distance / distance.mean()) ** 3)[:, None], rtol=1e-4, atol=1e-6)
    none = torch.autograd.grad(cosine_distance(target, soft_mining(target, prediction, 0.0)).sum(), prediction)[0]
    torch.testing.assert_close(none, plain)


def _pairs(seed: int = 0) -> FeaturePairs:
    g = torch.Generator().manual_seed(seed)
    maps = [[torch.randn(2, c, 3, 3, generator=g) for c in (4, 6)] for _ in range(2)]
    return FeaturePairs(
        maps[0], maps[1], tokens=torch.randn(2, 9, 8, generator=g), prototypes=torch.randn(2, 5, 8, generator=g)
    )


def test_the_loss_is_the_sum_of_its_parts():
    pairs = _pairs()
    similarity = prototype_similarity(pairs.tokens, pairs.prototypes)
    maps = zip(pairs.targets, pairs.predictions, strict=True)
    rebuilt = sum(1 - torch.nn.functional.cosine_similarity(t.flatten(1), p.flatten(1)).mean() for t, p in maps) / 2
    torch.testing.assert_close(PrototypeLoss(0, 0)(pairs), rebuilt)
    torch.testing.assert_close(PrototypeLoss(0.2, 0)(pairs), rebuilt + 0.2 * alignment_loss(similarity))
    expected = rebuilt + 0.3 * diversity_loss(similarity, pairs.prototypes, 0.5)
    torch.testing.assert_close(PrototypeLoss(0, 0.3, temperature=0.5)(pairs), expected)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="temperature is 0"):
        PrototypeLoss(temperature=0)
    with pytest.raises(ValueError, match="needs a network with tokens and prototypes"):
        PrototypeLoss()(_pairs()._replace(tokens=None))
