# SPDX-License-Identifier: Apache-2.0
"""What is particular to SCRD: scale weights that work, and a student that never sees corrupted images."""

from __future__ import annotations

import pytest
import torch

from monai_rdad.features import FeaturePairs
from monai_rdad.inferers import AnomalyMap
from monai_rdad.losses import ScaleContrastiveLoss
from monai_rdad.networks.nets import RD4AD, SCRD


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SCRD("resnet18", "none", precision="fp32")


def test_weights_are_a_distribution_per_image(network):
    weights = network.eval()(torch.rand(5, 1, 64, 64)).weights
    assert weights.shape == (5, 3) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    assert weights.std(0).max() > 0


def test_weights_do_not_saturate_in_the_first_steps(network):
    image = torch.rand(4, 1, 64, 64)
    corrupted = image.clone()
    corrupted[:, :, 8:24, 8:24] = torch.rand(4, 1, 16, 16)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    loss = ScaleContrastiveLoss("sums", balance=0.0)
    for _ in range(8):
        optimizer.zero_grad()
        pairs = network.train()(image, corrupted)
        loss(pairs).backward()
        optimizer.step()
    assert pairs.weights.min() > 0.15 and pairs.weights.max() < 0.6


def test_map_changes_with_the_weights(network):
    anomaly_map = AnomalyMap(network).eval()
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        maps = []
        for scale in range(3):
            network.scale_weights.weight.zero_()
            network.scale_weights.bias.copy_(20.0 * torch.nn.functional.one_hot(torch.tensor(scale), 3))
            maps.append(anomaly_map(image))
        network.scale_weights.bias.zero_()
        equal = anomaly_map(image)
    assert not torch.allclose(maps[0], maps[1], atol=1e-2) and not torch.allclose(maps[1], maps[2], atol=1e-2)
    torch.testing.assert_close(sum(maps) / 3, equal, rtol=1e-4, atol=1e-4)


def test_equal_weights_give_the_map_of_rd4ad(network):
    plain = RD4AD("resnet18", "none", precision="fp32")
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("scale_weights")})
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        network.scale_weights.weight.zero_()
        network.scale_weights.bias.zero_()
        torch.testing.assert_close(
            AnomalyMap(network).eval()(image), AnomalyMap(plain).eval()(image), rtol=0, atol=1e-5
        )


def test_corrupted_image_touches_negatives_only(network):
    image = torch.rand(3, 1, 64, 64)
    corrupted = image.clone()
    corrupted[:, :, 16:32, 16:32] += 0.2
    copies = [SCRD("resnet18", "none", precision="fp32") for _ in range(2)]
    for copy in copies:
        copy.load_state_dict(network.state_dict())
        copy.train()
    clean, both = copies[0](image), copies[1](image, corrupted)
    for a, b in zip(clean.predictions, both.predictions, strict=True):
        assert torch.equal(a, b)
    assert clean.negatives is None
    assert not torch.allclose(both.negatives[0], both.targets[0])
    assert all(torch.equal(a, b) for a, b in zip(copies[0].buffers(), copies[1].buffers(), strict=True))


def _pairs(weights, seed=0):
    g = torch.Generator().manual_seed(seed)
    maps = [[torch.randn(2, 4, s, s, generator=g) for s in (8, 4, 2)] for _ in range(3)]
    return FeaturePairs(maps[0], maps[1], weights, maps[2])


def _distances(pairs):
    def distance(a, b):
        return 1 - torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))

    positive = torch.stack([distance(t, p) for t, p in zip(pairs.targets, pairs.predictions, strict=True)], 1)
    negative = torch.stack([distance(n, p) for n, p in zip(pairs.negatives, pairs.predictions, strict=True)], 1)
    return positive, negative


def test_none_is_the_released_loss():
    pairs = _pairs(None)
    positive, negative = _distances(pairs)
    torch.testing.assert_close(ScaleContrastiveLoss("none")(pairs), positive.mean(0).sum() / negative.mean(0).sum())


@pytest.mark.parametrize("weighting", ["sums", "ratios"])
def test_loss_depends_on_the_weights(weighting):
    loss = ScaleContrastiveLoss(weighting, balance=0.0)
    weights = torch.full((2, 3), 1 / 3, requires_grad=True)
    value = loss(_pairs(weights))
    value.backward()
    # the direction inside the simplex is not flat
    assert (weights.grad - weights.grad.mean(1, keepdim=True)).abs().max() > 1e-4
    other = torch.tensor([[0.8, 0.1, 0.1]]).expand(2, 3)
    assert abs(loss(_pairs(other)).item() - value.item()) > 1e-3


def test_equal_weights_in_sums_are_the_released_loss():
    weights = torch.full((2, 3), 1 / 3)
    torch.testing.assert_close(
        ScaleContrastiveLoss("sums")(_pairs(weights)), ScaleContrastiveLoss("none")(_pairs(None))
    )


@pytest.mark.parametrize("weighting", ["sums", "ratios"])
def test_balance_keeps_the_weights_from_collapsing(weighting):
    entropies = []
    for balance in (0.0, 1.0):
        logits = torch.zeros(2, 3, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.1)
        loss = ScaleContrastiveLoss(weighting, balance)
        for _ in range(300):
            optimizer.zero_grad()
            loss(_pairs(logits.softmax(1))).backward()
            optimizer.step()
        w = logits.softmax(1).detach()
        entropies.append(-(w * w.log()).sum(1).mean().item())
    assert entropies[0] < 0.1  # the degenerate corner
    assert entropies[1] > 0.9 * torch.log(torch.tensor(3.0))


def test_missing_parts_are_named():
    pairs = _pairs(None)
    with pytest.raises(ValueError, match="needs the corrupted image"):
        ScaleContrastiveLoss()(pairs._replace(negatives=None))
    with pytest.raises(ValueError, match="scale_weights: true"):
        ScaleContrastiveLoss("sums")(pairs)
    with pytest.raises(ValueError, match="Unknown scale_weighting"):
        ScaleContrastiveLoss("sum")
