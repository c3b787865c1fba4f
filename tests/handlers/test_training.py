# SPDX-License-Identifier: Apache-2.0
"""Gradient clipping, the momentum teacher and the usage of prototypes inside MONAI's trainer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

from monai_rdad.features import FeaturePairs
from monai_rdad.handlers import GradientClipping, MomentumUpdate, PrototypeUsage
from monai_rdad.losses import PrototypeLoss
from monai_rdad.networks.nets import DNP

CPU = torch.device("cpu")


def _batches(count: int):
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.rand(2, 1, 64, 64, generator=generator)} for _ in range(count)]


def _trainer(network, optimizer, batches, handlers, epochs=1):
    return SupervisedTrainer(
        device=CPU,
        max_epochs=epochs,
        train_data_loader=batches,
        network=network,
        optimizer=optimizer,
        loss_function=PrototypeLoss(),
        train_handlers=handlers,
        decollate=False,
        optim_set_to_none=True,
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DNP("resnet18", "none", blocks=2, precision="fp32", momentum=0.9)


def test_gradients_are_clipped_together_before_the_step_and_others_left_alone(network):
    new, encoder = network.parameter_groups(1e-3, 1e-5)
    handler = GradientClipping(new["params"], 1e-3)
    trainer = _trainer(network, torch.optim.SGD([new, encoder]), _batches(1), [handler])
    norms = {}

    def record(engine):
        for name, group in (("new", new), ("encoder", encoder)):
            norms[name] = math.sqrt(sum(p.grad.square().sum().item() for p in group["params"]))

    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, record)
    trainer.run()
    assert norms["new"] == pytest.approx(1e-3, rel=1e-3) and norms["encoder"] > 1e-2
    with pytest.raises(ValueError, match="max_norm is 0"):
        GradientClipping([], 0)


def test_the_teacher_follows_after_each_step(network):
    optimizer = torch.optim.SGD(network.parameter_groups(1e-2, 1e-1))
    trainer = _trainer(network, optimizer, _batches(3), [MomentumUpdate(network)])
    expected = copy.deepcopy(network.teacher)

    def follow(engine):  # attached later, so it runs after the handler
        for e, p in zip(expected.parameters(), network.encoder.parameters(), strict=True):
            e.data.mul_(0.9).add_(0.1 * p.data)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, follow)
    before = copy.deepcopy(network.teacher)
    trainer.run()
    for e, p in zip(expected.parameters(), network.teacher.parameters(), strict=True):
        torch.testing.assert_close(p, e, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(p, b) for p, b in zip(network.teacher.parameters(), before.parameters(), strict=True))


def test_an_iteration_does_not_depend_on_gradients_of_earlier_ones(network):
    """The release never zeroes its gradients. Two trainers with equal weights and state; one of them has a past."""
    ours, other = network, copy.deepcopy(network)
    for p in other.parameters():
        if p.requires_grad:
            p.grad = torch.randn_like(p)  # left over from earlier, unrelated iterations
    for net in (ours, other):
        optimizer = torch.optim.SGD(net.parameter_groups(1e-2, 1e-2))
        _trainer(net, optimizer, _batches(2), [MomentumUpdate(net)]).run()
    for a, b in zip(ours.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class _Fixed(nn.Module):
    """Every token lies at the prototype that its pixel names."""

    def forward(self, image):
        tokens = nn.functional.one_hot(image[:, 0].long().flatten(1), 4).float()
        return FeaturePairs([image], [image], tokens=tokens, prototypes=torch.eye(4)[None].expand(len(image), -1, -1))


def test_usage_and_entropy_of_an_evaluation():
    network = _Fixed()
    usage = PrototypeUsage(network)
    images = [torch.tensor([[[[0, 0], [1, 1]]]]), torch.tensor([[[[0, 0], [0, 0]]]])]
    evaluator = SupervisedEvaluator(
        device=CPU,
        val_data_loader=[{"image": i.float()} for i in images],
        network=network,
        val_handlers=[usage],
        decollate=False,
    )
    for _ in range(2):  # a second run starts anew
        evaluator.run()
        assert usage.usage.tolist() == [0.75, 0.25, 0, 0]
        entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
        assert evaluator.state.metrics == {"prototype_entropy": pytest.approx(entropy)}
    assert usage.last.tolist() == [[[0, 0], [0, 0]]]


def test_a_trainers_usage_leaves_validation_out(network):
    usage = PrototypeUsage(network)
    optimizer = torch.optim.SGD(network.parameter_groups(0.0, 0.0))
    trainer = _trainer(network, optimizer, _batches(2), [usage])

    def validate(engine):
        network.eval()
        network(torch.zeros(50, 1, 64, 64))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, validate)
    trainer.run()
    with torch.no_grad():
        pairs = [network.train()(b["image"]) for b in _batches(2)]
    counts = torch.zeros(6)
    for p in pairs:
        similarity = torch.nn.functional.cosine_similarity(p.tokens[:, :, None], p.prototypes[:, None], dim=3)
        counts += similarity.argmax(2).flatten().bincount(minlength=6)
    torch.testing.assert_close(usage.usage.float(), counts / counts.sum())
    metrics = trainer.state.metrics
    assert [metrics[f"prototype_usage_{i}"] for i in range(6)] == usage.usage.tolist()
    assert 0 <= metrics["prototype_entropy"] <= 1
