# SPDX-License-Identifier: Apache-2.0
"""What is particular to ESC-DRKD: masked convolutions, projections of a corrupted image, two starts, skips."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_rdad.losses import CosineDistillationLoss
from monai_rdad.networks.blocks import CentreMaskedConv2d, FeatureProjection
from monai_rdad.networks.nets import ESCDRKD, RD4AD


def build(**settings) -> ESCDRKD:
    torch.manual_seed(0)
    return ESCDRKD("resnet18", "none", precision="fp32", **settings)


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """An image and a corrupted copy."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 1, 64, 64, generator=generator)
    corrupted = image.clone()
    corrupted[:, :, 16:40, 16:40] = torch.rand(3, 1, 24, 24, generator=generator)
    return image, corrupted


def test_masked_convolution_does_not_see_the_position_itself():
    convolution = CentreMaskedConv2d(2, 3)
    x = torch.rand(1, 2, 7, 7, requires_grad=True)
    out = convolution(x)
    for channel in range(3):
        (gradient,) = torch.autograd.grad(out[0, channel, 3, 3], x, retain_graph=True)
        assert not gradient[:, :, 3, 3].any()
        assert (gradient[:, :, 2:5, 2:5] != 0).sum() == 2 * 8
    changed = x.detach().clone()
    changed[:, :, 3, 3] += 1
    difference = (convolution(changed) - out)[0].abs().amax(0)
    assert difference[3, 3] == 0 and difference[2, 3] > 0


def test_masked_centre_gets_no_gradient_and_does_not_count():
    convolution = CentreMaskedConv2d(2, 3)
    x = torch.rand(2, 2, 7, 7)
    before = convolution(x)
    before.square().sum().backward()
    gradient = convolution.weight.grad.clone()
    assert not gradient[:, :, 1, 1].any()
    gradient[:, :, 1, 1] = 1
    assert (gradient != 0).all()
    with torch.no_grad():
        convolution.weight[:, :, 1, 1] = 100.0
        assert torch.equal(convolution(x), before)
        convolution.weight[:, :, 1, 1] = 0.0
    plain = nn.functional.conv2d(x, convolution.weight, padding=1)
    torch.testing.assert_close(before, plain)
    assert set(convolution.state_dict()) == {"weight"}


def test_projection_is_two_masked_and_four_plain_convolutions():
    convolutions = [m for m in FeatureProjection(64).modules() if isinstance(m, nn.Conv2d)]
    assert [isinstance(m, CentreMaskedConv2d) for m in convolutions] == [True, True, False, False, False, False]
    assert [m.in_channels for m in convolutions] == [64, 32, 64, 32, 16, 32]
    assert convolutions[-1].out_channels == 64


@pytest.mark.parametrize("start", ["stage4", "bottleneck"])
@pytest.mark.parametrize("skips", [0, 2, 3])
def test_only_what_is_used_is_built(start, skips):
    network = build(start=start, skips=skips)
    assert (network.teacher.layer4 is None) == (start == "bottleneck") == (network.bottleneck is not None)
    assert [p[-1][0].out_channels for p in network.projections] == [64, 128, 256][3 - skips :]
    assert (network.refine is not None) == (skips == 3)


@pytest.mark.parametrize("skips", [0, 2, 3])
def test_starts_give_the_same_shapes_and_training_adds_a_pair_per_skip(skips, inputs):
    shapes = []
    for start in ("stage4", "bottleneck"):
        pairs = build(start=start, skips=skips).train()(*inputs)
        assert len(pairs.targets) == len(pairs.predictions) == 3 + skips
        for target, prediction in zip(pairs.targets, pairs.predictions, strict=True):
            assert target.shape == prediction.shape
            assert not target.requires_grad and prediction.requires_grad
        for extra, target in zip(pairs.targets[3:], pairs.targets[3 - skips : 3], strict=True):
            assert torch.equal(extra, target)  # the clean image's
        shapes.append([p.shape for p in pairs.predictions])
    assert shapes[0] == shapes[1]


def test_the_published_start_is_the_fourth_stage_itself(inputs):
    network = build(start="stage4").eval()
    with torch.no_grad():
        pairs = network(inputs[0])
        torch.testing.assert_close(pairs.predictions[2], network.decoder.stage3(network.teacher(inputs[0])[3]))


def test_without_skips_it_is_rd4ad(inputs):
    network = build(skips=0).eval()
    plain = RD4AD("resnet18", "none", precision="fp32").eval()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        for a, b in zip(network(inputs[0]).predictions, plain(inputs[0]).predictions, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("start", ["stage4", "bottleneck"])
def test_the_corrupted_image_enters_by_the_skips_only(start, inputs):
    network = build(start=start, skips=3).eval()
    image, corrupted = inputs
    with torch.no_grad():
        alone, clean, both = network(image), network(image, image), network(image, corrupted)
        projected = [p(m) for p, m in zip(network.projections, network.teacher(corrupted, 3), strict=True)]
    assert len(alone.predictions) == 3
    for a, b in zip(alone.predictions, clean.predictions, strict=False):
        torch.testing.assert_close(a, b)
    for a, b in zip(alone.targets, both.targets, strict=False):
        assert torch.equal(a, b)
    assert torch.equal(alone.predictions[2], both.predictions[2])
    for scale in (0, 1):
        assert not torch.allclose(alone.predictions[scale], both.predictions[scale], atol=1e-3)
    for a, b in zip(both.predictions[3:], projected, strict=True):
        torch.testing.assert_close(a, b)


def test_each_skip_is_added_where_it_belongs(inputs):
    network = build(skips=3).eval()
    decoder = network.decoder
    with torch.no_grad():
        pairs = network(*inputs)
        psi1, psi2, psi3 = pairs.predictions[3:]
        map3 = pairs.predictions[2]
        map2 = decoder.stage2(map3 + psi3)
        torch.testing.assert_close(pairs.predictions[1], map2)
        torch.testing.assert_close(pairs.predictions[0], network.refine(decoder.stage1(map2 + psi2) + psi1))
        network.refine = None
        torch.testing.assert_close(network(*inputs).predictions[0], decoder.stage1(map2 + psi2))


def test_teacher_does_no_more_than_is_read_and_keeps_no_graph(inputs):
    network = build(start="stage4").train()
    calls, graphs = [], []
    network.teacher.layer4.register_forward_hook(lambda *_: calls.append(1))
    for projection in network.projections:
        projection.register_forward_pre_hook(lambda _, args: graphs.append(args[0].requires_grad))
    network(*inputs)
    assert len(calls) == 1  # the corrupted image's fourth stage is read by nobody
    assert graphs == [False, False]
    without = build(skips=0)
    images = []
    without.teacher.register_forward_hook(lambda *_: images.append(1))
    without(*inputs)
    assert len(images) == 1


def test_loss_is_the_mean_of_distances_per_position_over_all_pairs(inputs):
    with torch.no_grad():
        pairs = build().train()(*inputs)
        expected = sum(
            (1 - nn.functional.cosine_similarity(t, p, dim=1)).mean()
            for t, p in zip(pairs.targets, pairs.predictions, strict=True)
        )
        torch.testing.assert_close(CosineDistillationLoss(per_position=True)(pairs), expected)


def test_weights_without_a_fourth_stage_need_the_bottleneck(tmp_path):
    state = RD4AD("resnet18", "none").teacher.state_dict()
    torch.save(state, tmp_path / "three_stages.pt")
    weights = str(tmp_path / "three_stages.pt")
    network = ESCDRKD("resnet18", weights)
    assert torch.equal(network.teacher.layer3[1].conv2.weight, state["layer3.1.conv2.weight"])
    with pytest.raises(ValueError, match=r"lacks layer4.*settings that need no more"):
        ESCDRKD("resnet18", weights, start="stage4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"start": "layer4"}, "Unknown start 'layer4'"), ({"skips": 1}, "0, 2 or 3, not 1")],
)
def test_unknown_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
