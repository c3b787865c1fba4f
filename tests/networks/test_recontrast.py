# SPDX-License-Identifier: Apache-2.0
"""What is particular to ReContrast: two encoders whose reconstructions cross, and which of them learns from what."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from monai_rdad.features import FeaturePairs
from monai_rdad.inferers import AnomalyMap
from monai_rdad.losses import CosineDistillationLoss, GlobalCosineMiningLoss
from monai_rdad.networks.encoders import ResNetEncoder
from monai_rdad.networks.nets import ReContrast


def build(weights: str = "none", seed: int = 0) -> ReContrast:
    torch.manual_seed(seed)
    return ReContrast("resnet18", weights, precision="fp32")


def images(n: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return nn.functional.interpolate(torch.rand(n, 1, 8, 8, generator=generator), size=(64, 64), mode="bilinear")


def optimize(network: nn.Module, lr: float = 2e-3, encoder_lr: float = 1e-4) -> torch.optim.Optimizer:
    groups: tuple[list, list] = ([], [])
    for name, p in network.named_parameters():
        if p.requires_grad:
            groups[name.startswith("encoder.")].append(p)
    return torch.optim.AdamW([{"params": groups[0]}, {"params": groups[1], "lr": encoder_lr}], lr=lr, fused=True)


def perturb(module: nn.Module) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1 + 0.2 * torch.randn_like(p))


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_both_encoders_start_equal_and_share_nothing():
    network = build().eval()
    teacher, encoder = network.teacher.state_dict(), network.encoder.state_dict()
    assert teacher.keys() == encoder.keys()
    assert all(torch.equal(teacher[k], encoder[k]) and teacher[k].data_ptr() != encoder[k].data_ptr() for k in teacher)
    assert all(p.requires_grad for p in network.encoder.parameters())
    assert not any(p.requires_grad for p in network.teacher.parameters())
    with torch.no_grad():
        targets = network(images()).targets
    assert same(targets[:3], targets[3:])


def test_both_encoders_take_the_weights_of_a_file(tmp_path):
    torch.manual_seed(7)
    source = ResNetEncoder("resnet18").state_dict()
    torch.save(source, tmp_path / "weights.pth")
    network = build(str(tmp_path / "weights.pth"))
    for encoder in (network.teacher, network.encoder):
        assert all(torch.equal(v, source[k]) for k, v in encoder.state_dict().items())


def test_pairs_cross():
    """What comes from the trainable encoder is compared with the teacher, and the other way round."""
    network = build().eval()
    image = images()
    with torch.no_grad():
        before = network(image)
        perturb(network.encoder)
        after = network(image)
    assert same(after.targets[:3], before.targets[:3]) and same(after.predictions[3:], before.predictions[3:])
    for entry in range(3):
        assert not torch.allclose(after.predictions[entry], before.predictions[entry], atol=1e-3)
        assert not torch.allclose(after.targets[3 + entry], before.targets[3 + entry], atol=1e-3)


def test_swapping_encoders_and_heads_swaps_the_pairs():
    network = build().eval()
    perturb(network.encoder)
    swapped = copy.deepcopy(network)
    swapped.teacher.load_state_dict(network.encoder.state_dict())
    swapped.encoder.load_state_dict(network.teacher.state_dict())
    swapped.teacher_heads, swapped.encoder_heads = swapped.encoder_heads, swapped.teacher_heads
    with torch.no_grad():
        a, b = network(images()), swapped(images())
    crossed = b.targets[3:] + b.targets[:3] + b.predictions[3:] + b.predictions[:3]
    for x, y in zip(a.targets + a.predictions, crossed, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_encoder_learns_from_its_own_branch_only():
    network = build().eval()  # with batch statistics the branches would meet in the normalisation
    pairs = network(images())
    assert not any(t.requires_grad for t in pairs.targets)
    own, other = (FeaturePairs(pairs.targets[i : i + 3], pairs.predictions[i : i + 3]) for i in (0, 3))
    parameters = list(network.encoder.parameters())
    loss = CosineDistillationLoss()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss(own), parameters, retain_graph=True))
    assert all((g == 0).all() for g in torch.autograd.grad(loss(other), parameters))


def test_copy_stays_frozen_while_the_encoder_adapts():
    network = build()
    before = copy.deepcopy(network.state_dict())
    optimizer, loss = optimize(network), GlobalCosineMiningLoss(warmup=2)
    for _ in range(3):
        network.train()
        assert not any(m.training for m in network.teacher.modules())
        assert all(m.training for m in network.encoder.modules())
        optimizer.zero_grad()
        loss(network(images())).backward()
        optimizer.step()
    after = network.state_dict()
    for name in after:
        if name.startswith("teacher."):
            assert torch.equal(after[name], before[name]), name
        elif name.startswith("encoder."):
            assert not torch.equal(after[name], before[name]), name
    network.eval()
    assert not any(m.training for m in network.modules())


def test_bfloat16_training_keeps_float32_parameters():
    network = build().train()
    network.precision = "bf16"
    pairs = network(images())
    assert pairs.predictions[0].dtype == torch.bfloat16
    GlobalCosineMiningLoss(warmup=0)(pairs).backward()
    for name, p in network.named_parameters():
        assert p.dtype == torch.float32, name
        assert p.grad is None or (p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all()), name


def test_saved_weights_bring_both_encoders():
    """Evaluation builds the network with random weights and loads what the training saved."""
    trained = build(seed=0)
    perturb(trained.encoder)
    fresh = build(seed=1)
    fresh.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(AnomalyMap(trained).eval()(images()), AnomalyMap(fresh).eval()(images()))


def test_separates_what_it_never_saw():
    network = build()
    image = images()
    # a random network, but with batch norms that know the images, as those of a pretrained one do
    update_bn([image], network.encoder)
    network.teacher.load_state_dict(network.encoder.state_dict())
    optimizer, loss = optimize(network, encoder_lr=2e-3), GlobalCosineMiningLoss(warmup=0, mining=False)
    for _ in range(30):
        network.train()
        optimizer.zero_grad()
        loss(network(image)).backward()
        optimizer.step()
    strange = image.clone()
    rows = torch.arange(16)
    strange[:, :, 24:40, 24:40] = ((rows[:, None] // 2 + rows // 2) % 2).float()
    anomaly_map = AnomalyMap(network, sigma=2.0).eval()
    with torch.no_grad():
        change = anomaly_map(strange) - anomaly_map(image)
    inside = change[:, :, 24:40, 24:40].mean((1, 2, 3))
    assert (inside > 0.05).all() and inside.mean() > change[:, :, :8].mean()
