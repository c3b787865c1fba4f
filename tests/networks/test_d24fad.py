# SPDX-License-Identifier: Apache-2.0
"""What is particular to D2-4FAD: supports, their weights, and what the two distillations do to the student."""

from __future__ import annotations

import math

import pytest
import torch

from monai_rdad.features import FeaturePairs
from monai_rdad.inferers import AnomalyMap
from monai_rdad.losses import DualDistillationLoss, cosine_distance
from monai_rdad.networks.blocks.matching import nearest, unit
from monai_rdad.networks.nets import D24FAD


def build(seed=0, **options):
    torch.manual_seed(seed)
    return D24FAD("resnet18", "none", **{"start": "bottleneck", "precision": "fp32"} | options)


def images(n, seed=0, size=64):
    coarse = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


FORMS = [
    {},
    {"weighting": "features", "logits": "published"},
    {"weighting": "none", "compare": "whitened", "pooled": True, "window": 1},
    {"weighting": "nearest", "compare": "whitened", "pooled": True, "window": None},
    {"weighting": "nearest", "compare": "teacher", "window": 1, "reconstruction": True},
    {"start": "stage4", "window": 1},
]


@pytest.mark.parametrize("options", FORMS)
def test_score_does_not_depend_on_the_batch_or_its_order(options):
    network = build(**options).eval()
    anomaly_map = AnomalyMap(network).eval()
    query, support = images(5), images(3, seed=1)
    network.set_support(support)
    with torch.no_grad():
        together = anomaly_map(query)
        assert len(together) == 5  # every image gets a map, whatever the batch
        order = torch.tensor([3, 0, 4, 1, 2])
        torch.testing.assert_close(anomaly_map(query[order]), together[order], rtol=0, atol=2e-5)
        for i in range(5):
            torch.testing.assert_close(anomaly_map(query[i : i + 1])[0], together[i], rtol=0, atol=2e-5)


@pytest.mark.parametrize("options", FORMS)
def test_supports_that_are_set_equal_supports_that_are_passed(options):
    network = build(**options).eval()
    query, support = images(3), images(4, seed=1)
    with torch.no_grad():
        passed = network(query, support[None].expand(3, -1, -1, -1, -1))
        network.set_support(support)
        kept = network(query)
    for a, b in zip(passed.targets + passed.predictions, kept.targets + kept.predictions, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_map_does_not_depend_on_the_order_of_the_supports():
    network = build().eval()
    anomaly_map = AnomalyMap(network).eval()
    query, support = images(2), images(4, seed=1)
    maps = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        network.set_support(support[order])
        with torch.no_grad():
            maps.append(anomaly_map(query))
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=2e-5)


def test_a_query_that_is_its_own_support_has_no_anomaly():
    network = build(weighting="nearest").eval()
    query = images(2)
    network.set_support(query)
    with torch.no_grad():
        assert AnomalyMap(network).eval()(query).max() < 1e-4


def test_pair_of_distances_is_the_weighted_mean_of_the_cosine_distances():
    network = build().eval()
    query, support = torch.rand(2, 8, 4, 4), torch.rand(2, 3, 8, 4, 4)
    weights = torch.rand(2, 3).softmax(1)
    target, prediction = network.pair(query, support, weights, 0)
    single = torch.stack([cosine_distance(support[:, k], query, per_position=True) for k in range(3)], 1)
    expected = (weights[:, :, None, None] * single).sum(1)
    torch.testing.assert_close(cosine_distance(target, prediction, per_position=True), expected)
    network.weighting = "features"
    target, prediction = network.pair(query, support, weights, 0)
    average = (weights[:, :, None, None, None] * support).sum(1)
    torch.testing.assert_close(target, average)
    assert prediction is query


def step(network, n=4, k=3, rounds=1, loss=None, lr=1e-3):
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=lr)
    loss = loss or DualDistillationLoss()
    support = images(n * k, seed=2).view(n, k, 1, 64, 64)
    for _ in range(rounds):
        network.train()
        optimizer.zero_grad()
        loss(network(images(n), support)).backward()
        optimizer.step()


def test_the_weighting_module_learns():
    network = build()
    before = [p.clone() for p in network.keys.parameters()]
    step(network)
    assert all(p.grad.abs().sum() > 0 for p in network.keys.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, network.keys.parameters(), strict=True))


def test_normalised_weights_do_not_saturate_and_published_ones_do():
    entropies = {}
    for logits in D24FAD.LOGITS:
        network = build(logits=logits)
        step(network, rounds=3)
        entropies[logits] = float(network.entropy)
    assert entropies["normalised"] > 0.8 and entropies["published"] < 0.3


def test_normalised_weights_do_not_depend_on_the_resolution():
    network = build()
    query, key = torch.rand(2, 64, 4, 4), torch.rand(2, 3, 64, 4, 4)
    network.keys = torch.nn.ModuleList()
    small = network.support_weights(query, key, 3)
    large = network.support_weights(query.repeat(1, 1, 4, 4), key.repeat(1, 1, 1, 4, 4), 3)
    torch.testing.assert_close(small, large)
    network.logits = "published"
    small = network.support_weights(query, key, 3)
    assert not torch.allclose(small, network.support_weights(query.repeat(1, 1, 4, 4), key.repeat(1, 1, 1, 4, 4), 3))


def test_entropy_is_that_of_the_weights():
    network = build().train()
    support = images(1).expand(4, 3, 1, 64, 64)  # equal supports: nothing to choose
    network(images(4), support)
    assert float(network.entropy) == pytest.approx(1, abs=1e-5)
    network.keys = None
    network.weighting = "none"
    network(images(4), support)
    assert float(network.entropy) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("weighting", ["distances", "features", "nearest"])
def test_whole_maps_are_one_vector_and_positions_many(weighting):
    network = build(weighting=weighting, whole_maps=True).train()
    generator = torch.Generator().manual_seed(0)
    query = torch.rand(2, 8, 4, 4, generator=generator) * torch.rand(2, 1, 4, 4, generator=generator)
    support = torch.rand(2, 3, 8, 4, 4, generator=generator)
    weights = torch.rand(2, 3, generator=generator).softmax(1)
    averaged = (weights[:, :, None, None, None] * support).sum(1)
    for whole in (True, False):
        network.whole_maps = whole
        if weighting == "distances":
            single = [cosine_distance(support[:, k], query, not whole) for k in range(3)]
            single = [d if whole else d.mean([1, 2]) for d in single]
            expected = (weights * torch.stack(single, 1)).sum(1)
        else:
            found = averaged if weighting == "features" else nearest(query, support, 0)
            expected = cosine_distance(found, query, not whole)
            expected = expected if whole else expected.mean([1, 2])
        torch.testing.assert_close(cosine_distance(*network.pair(query, support, weights, 0)), expected)


def test_whitening_learns_from_matched_differences_of_the_teacher():
    network = build(compare="whitened", weighting="nearest", window=None, pooled=True).train()
    query, support = images(4), images(8, seed=1).view(4, 2, 1, 64, 64)
    network(query, support)
    with torch.no_grad():
        q, s = (network.pool(network.teacher(x)) for x in (query, support.flatten(0, 1)))
    for i, whiten in enumerate(network.whitening):
        a = unit(nearest(q[i], s[i].unflatten(0, [4, 2]), -1), [1])
        rows = (a - unit(q[i], [1])).permute(0, 2, 3, 1).flatten(0, 2)
        torch.testing.assert_close(whiten.moment, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    before = network.whitening[0].moment.clone()
    network.eval()
    network(query, support)
    assert torch.equal(before, network.whitening[0].moment)  # queries teach it nothing


def test_a_shifted_copy_is_found_everywhere_only():
    query = images(1, size=96)
    support = torch.roll(query, (48, 32), (2, 3))
    far = {}
    for window in (0, None):
        network = build(weighting="nearest", compare="teacher", pooled=True, window=window).eval()
        network.set_support(support)
        with torch.no_grad():
            far[window] = float(AnomalyMap(network).eval()(query).mean())
    assert far[None] < 0.6 * far[0]  # the borders are not copies


def test_self_distillation_alone_makes_the_student_a_constant():
    """The trivial optimum of the published loss; the distillation term and its factor hold the student off it."""
    spreads = []
    for loss in (DualDistillationLoss(1.0, 0.0), DualDistillationLoss(0.1, 1.0)):
        network = build()
        step(network, rounds=25, loss=loss, lr=2e-3)
        spreads.append(float(network.spread))
    assert spreads[0] < 0.25 * spreads[1]


@pytest.mark.parametrize("stop", D24FAD.STOPS)
def test_stop_gradient_cuts_the_branch_that_it_names(stop):
    network = build(stop_gradient=stop).train()
    query, support = images(4), images(8, seed=1).view(4, 2, 1, 64, 64)
    maps = {}
    divide = network.divide

    def watch(teacher, student, b, k):
        parts = {"query": [x[:b] for x in student], "support": [x[b:] for x in student]}
        maps.update({name: [p.detach().requires_grad_() for p in part] for name, part in parts.items()})
        joined = [torch.cat([q, s]) for q, s in zip(maps["query"], maps["support"], strict=True)]
        return divide(teacher, joined, b, k)

    network.divide = watch
    DualDistillationLoss(1.0, 0.0)(network(query, support)).backward()
    for branch in ("query", "support"):
        stopped = stop in (branch, "both")
        assert all((m.grad is None or not m.grad.abs().sum() > 0) == stopped for m in maps[branch])
    assert all(p.grad.abs().sum() > 0 for p in network.keys.parameters())


def test_training_forgets_the_supports():
    network = build().eval()
    network.set_support(images(2))
    network.train()
    network.eval()
    with pytest.raises(ValueError, match="no supports to compare with"):
        network(images(1))


def test_supports_are_not_in_the_state_dict():
    network = build()
    keys = set(network.state_dict())
    network.set_support(images(2))
    assert set(network.state_dict()) == keys


def test_wrong_sizes_and_options_are_named():
    network = build().eval()
    network.set_support(images(2, size=96))
    with pytest.raises(ValueError, match="another size"):
        network(images(1))
    with pytest.raises(ValueError, match="Unknown weighting 'mean'"):
        build(weighting="mean")
    with pytest.raises(ValueError, match="window is -1"):
        build(window=-1)


def test_loss_is_the_sum_of_both_distillations():
    maps = [[torch.randn(2, 4, s, s) for s in (8, 4, 2)] * 2 for _ in range(2)]
    distances = [cosine_distance(a, b).mean() for a, b in zip(*maps, strict=True)]
    expected = 2.0 * sum(distances[:3]) + 0.5 * sum(distances[3:])
    torch.testing.assert_close(DualDistillationLoss(2.0, 0.5)(FeaturePairs(*maps)), expected)
    with pytest.raises(ValueError, match="is the network in training"):
        DualDistillationLoss()(FeaturePairs(maps[0][:3], maps[1][:3]))


def test_published_start_reads_the_fourth_stage():
    network = build(start="stage4")
    assert network.bottleneck is None and network.teacher.layer4 is not None
    assert build().teacher.layer4 is None
    assert math.isclose(len(network.teacher(torch.rand(1, 3, 64, 64))), 4)


def test_a_cached_support_costs_a_query_no_pass_of_its_own():
    network = build().eval()
    network.set_support(images(4))
    seen = []
    network.teacher.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    network(images(1))
    network(images(1), images(4)[None])
    assert seen == [1, 5]
