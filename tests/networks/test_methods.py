# SPDX-License-Identifier: Apache-2.0
"""What every method must do, whatever it is. A new method adds one line to METHODS."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.inferers import AnomalyMap
from monai_rdad.losses import (
    CosineDistillationLoss,
    DualDistillationLoss,
    GlobalCosineMiningLoss,
    PrototypeLoss,
    ScaleContrastiveLoss,
)
from monai_rdad.networks.nets import D24FAD, DNP, ESCDRKD, RD4AD, SCRD, ReContrast


class Method(NamedTuple):
    network: Callable[..., nn.Module]
    loss: nn.Module
    extra: str | None  # what training takes besides the image: "corrupted", "support" or nothing
    separates: bool = True  # whether these steps with a random teacher are enough to tell an anomaly
    scales: tuple[tuple[int, int], ...] = ((64, 4), (128, 8), (256, 16))  # channels and stride of the maps, resnet18
    steps: int = 30  # in which it fits four images


METHODS = {
    "esc_drkd": Method(ESCDRKD, CosineDistillationLoss(per_position=True), "corrupted"),
    "esc_drkd_stage4": Method(
        lambda **k: ESCDRKD(start="stage4", **k), CosineDistillationLoss(per_position=True), "corrupted"
    ),
    "esc_drkd_no_skips": Method(
        lambda **k: ESCDRKD(skips=0, **k), CosineDistillationLoss(per_position=True), "corrupted"
    ),
    "esc_drkd_three_skips": Method(
        lambda **k: ESCDRKD(skips=3, **k), CosineDistillationLoss(per_position=True), "corrupted"
    ),
    "rd4ad": Method(RD4AD, CosineDistillationLoss(), None),
    "rd4ad_per_position": Method(RD4AD, CosineDistillationLoss(per_position=True), None),
    "recontrast": Method(ReContrast, GlobalCosineMiningLoss(warmup=10), None, separates=False),
    "recontrast_all_positions": Method(
        ReContrast, GlobalCosineMiningLoss(warmup=10, mining=False), None, separates=False
    ),
    "scrd_none": Method(lambda **k: SCRD(scale_weights=False, **k), ScaleContrastiveLoss("none"), "corrupted"),
    "scrd_sums": Method(SCRD, ScaleContrastiveLoss("sums"), "corrupted"),
    "scrd_ratios": Method(SCRD, ScaleContrastiveLoss("ratios", distillation=1.0), "corrupted"),
    # a comparison of student maps, the published form, tells the checkerboard from the rest, but not its place
    "d24fad": Method(lambda **k: D24FAD(compare="teacher", **k), DualDistillationLoss(0.1, 1.0), "support"),
    "d24fad_features": Method(
        lambda **k: D24FAD(start="bottleneck", weighting="features", window=1, reconstruction=True, **k),
        DualDistillationLoss(0.1, 1.0),
        "support",
    ),
    "d24fad_whitened": Method(
        lambda **k: D24FAD(start="bottleneck", weighting="nearest", compare="whitened", window=None, pooled=True, **k),
        DualDistillationLoss(0.1, 1.0),
        "support",
        scales=((64, 8), (128, 8), (256, 16)),
    ),
    "dnp": Method(lambda **k: DNP(blocks=2, **k), PrototypeLoss(), None, scales=((192, 16), (256, 16)), steps=60),
}


def build(method: Method, encoder: str = "resnet18", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return method.network(encoder=encoder, weights="none", precision="fp32")


def groups(network: nn.Module, lr: float) -> list:
    """What the network's bundle gives the optimizer: a trainable encoder learns slowly."""
    if hasattr(network, "parameter_groups"):
        return network.parameter_groups(lr, 1e-5)
    return [p for p in network.parameters() if p.requires_grad]


def batch(method: Method, size: int = 64, n: int = 4, channels: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, channels, 8, 8, generator=generator)
    image = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    corrupted = image.clone()
    corrupted[:, :, 8:24, 8:24] = torch.rand(n, channels, 16, 16, generator=generator)
    # each image's supports are the others: a small set is its own task
    support = torch.stack([torch.roll(image, -i - 1, 0)[: n - 1] for i in range(n)])
    return {None: (image,), "corrupted": (image, corrupted), "support": (image, support)}[method.extra]


def ready(method: Method, network: nn.Module, image: Tensor) -> AnomalyMap:
    """The anomaly map of a network, with images of the training set as supports where it needs some."""
    anomaly_map = AnomalyMap(network, sigma=2.0).eval()
    if method.extra == "support":
        network.set_support(image)
    return anomaly_map


@pytest.fixture(params=list(METHODS))
def method(request):
    method = METHODS[request.param]
    return method._replace(loss=copy.deepcopy(method.loss))  # a loss may count its iterations


def test_gradients_reach_every_trainable_parameter(method):
    network = build(method).train()
    method.loss(network(*batch(method))).backward()
    silent = [
        name
        for name, p in network.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not silent
    assert all(p.grad is None for p in network.teacher.parameters())


def test_teacher_stays_frozen_and_the_rest_trains(method):
    network = build(method)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        network.train()
        assert not network.teacher.training and network.decoder.training
        optimizer.zero_grad()
        method.loss(network(*batch(method))).backward()
        optimizer.step()
    after = network.state_dict()
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert not {k for k in changed if k.startswith("teacher.")}
    assert {n for n, p in network.named_parameters() if p.requires_grad} <= changed


def test_overfits_a_tiny_set_and_separates_what_it_never_saw(method):
    network = build(method)
    inputs = batch(method)
    optimizer = torch.optim.Adam(groups(network, 2e-3), fused=True)
    distance = CosineDistillationLoss(per_position=True)
    distances = []
    for _ in range(method.steps):
        network.train()
        optimizer.zero_grad()
        pairs = network(*inputs)
        method.loss(pairs).backward()
        optimizer.step()
        # what the map is made of: training may append other pairs
        distances.append(distance(FeaturePairs(pairs.targets[:3], pairs.predictions[:3])).item())
    assert distances[-1] < 0.45 * distances[0]
    if not method.separates:
        return

    strange = inputs[0].clone()
    rows = torch.arange(16)
    strange[:, :, 24:40, 24:40] = ((rows[:, None] // 2 + rows // 2) % 2).float()  # a checkerboard in a smooth image
    anomaly_map = ready(method, network, inputs[0])
    with torch.no_grad():
        normal, abnormal = anomaly_map(inputs[0]), anomaly_map(strange)
    change = (abnormal - normal)[:, :, 24:40, 24:40].mean((1, 2, 3))
    assert (change > 0).all()
    inside = change.mean()
    outside = abnormal[:, :, :8].mean() - normal[:, :, :8].mean()
    assert inside > 1.3 * outside


def test_score_does_not_depend_on_the_batch(method):
    images = batch(method, n=5)[0]
    anomaly_map = ready(method, build(method), images.flip(3))
    with torch.no_grad():
        together = anomaly_map(images)
        order = torch.tensor([3, 0, 4, 1, 2])
        shuffled = anomaly_map(images[order])
        for i in range(5):
            torch.testing.assert_close(anomaly_map(images[i : i + 1])[0], together[i], rtol=0, atol=2e-5)
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=2e-5)


def test_shapes_channels_and_rectangles(method):
    network = build(method).eval()
    anomaly_map = ready(method, network, torch.rand(3, 1, 64, 96))
    with torch.no_grad():
        pairs = network(torch.rand(2, 3, 64, 96))
        assert isinstance(pairs, FeaturePairs)
        for i, (t, p) in enumerate(zip(pairs.targets, pairs.predictions, strict=True)):
            channels, stride = method.scales[i % len(method.scales)]
            assert t.shape == p.shape == (2, p.shape[1], 64 // stride, 96 // stride)
            assert p.shape[1] % channels == 0  # few-shot pairs hold several supports or features
        grey = torch.rand(2, 1, 64, 96)
        result = anomaly_map(grey)
        torch.testing.assert_close(anomaly_map(grey.expand(-1, 3, -1, -1)), result, rtol=0, atol=1e-5)
    assert result.shape == (2, 1, 64, 96) and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 2 * len(pairs.targets)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripts_and_traces_to_the_same_map(method):
    anomaly_map = ready(method, build(method), torch.rand(3, 1, 64, 64))
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = anomaly_map(image)
        scripted = torch.jit.script(anomaly_map)
        torch.testing.assert_close(scripted(image), expected, rtol=0, atol=1e-5)
        if method.extra != "support":  # supports have one size
            assert scripted(torch.rand(1, 3, 96, 64)).shape == (1, 1, 96, 64)
        traced = torch.jit.trace(anomaly_map, image)
        torch.testing.assert_close(traced(image), expected, rtol=0, atol=1e-5)


def test_seeds_give_different_students(method):
    first, second = build(method, seed=0), build(method, seed=1)
    pairs = zip(first.decoder.parameters(), second.decoder.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs if a.std() > 0)


def test_bfloat16_map_is_close_and_parameters_stay_float32(method):
    network = build(method)
    image = batch(method, size=128)[0]
    anomaly_map = ready(method, network, image.flip(3))
    with torch.no_grad():
        full = anomaly_map(image)
        network.precision = "bf16"
        half = anomaly_map(image)
        pairs = len(network(image).targets)
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    # a map is a sum over pairs
    assert (half - full).abs().max() < 0.0025 * pairs
    assert {p.dtype for p in network.parameters()} == {torch.float32}
