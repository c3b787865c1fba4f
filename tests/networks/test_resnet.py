# SPDX-License-Identifier: Apache-2.0
"""Encoders against MONAI's ResNet, whose outputs equal torchvision's with these arguments."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import resnet18, resnet34, resnet50
from torch import nn

from monai_rdad.networks.encoders import FrozenEncoder, ResNetEncoder

# parameters of torchvision's models without the classifier
PARAMETERS = {"resnet18": 11176512, "resnet34": 21284672, "resnet50": 23508032, "wide_resnet50_2": 66834240}


def _randomise_norms(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.2, 0.2)
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)


@pytest.mark.parametrize(("name", "factory"), [("resnet18", resnet18), ("resnet34", resnet34), ("resnet50", resnet50)])
def test_keys_and_outputs_are_torchvisions(name, factory):
    torch.manual_seed(0)
    reference = factory(
        spatial_dims=2, n_input_channels=3, num_classes=10, conv1_t_stride=2, bias_downsample=False
    ).eval()
    _randomise_norms(reference)
    encoder = ResNetEncoder(name, stages=4).eval()
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    assert list(encoder.state_dict()) == list(state)
    encoder.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = reference.maxpool(reference.act(reference.bn1(reference.conv1(x))))
        for stage, actual in enumerate(encoder.features(x), start=1):
            expected = getattr(reference, f"layer{stage}")(expected)
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_number_of_parameters_is_torchvisions(name):
    with torch.device("meta"):
        encoder = ResNetEncoder(name, stages=4)
    assert sum(p.numel() for p in encoder.parameters()) == PARAMETERS[name]


def test_the_half_width_has_half_the_channels_everywhere():
    half, full = ResNetEncoder("resnet18_half"), ResNetEncoder("resnet18")
    for (name, a), b in zip(half.named_parameters(), full.parameters(), strict=True):
        expected = [n if n in (1, 3, 7) else n // 2 for n in b.shape]
        assert list(a.shape) == expected, name
    assert [m.shape[1] for m in half(torch.rand(1, 3, 32, 32))] == [32, 64, 128]


def test_later_stages_can_be_left_out():
    encoder = FrozenEncoder("resnet18", stages=4)
    x = torch.rand(1, 1, 64, 64)
    maps = encoder(x)
    assert len(maps) == 4
    for stages in (1, 2, 3):
        fewer = encoder(x, stages)
        assert len(fewer) == stages
        assert all(torch.equal(a, b) for a, b in zip(fewer, maps, strict=False))


def test_wide_resnet_shapes_and_inner_width():
    with torch.device("meta"):
        encoder = ResNetEncoder("wide_resnet50_2", stages=3)
        maps = encoder(torch.zeros(1, 3, 256, 256))
    assert [tuple(m.shape) for m in maps] == [(1, 256, 64, 64), (1, 512, 32, 32), (1, 1024, 16, 16)]
    assert encoder.layer1[0].conv2.weight.shape == (128, 128, 3, 3)
    assert encoder.layer2[0].conv2.stride == (2, 2) and encoder.layer2[0].conv1.stride == (1, 1)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_only_the_wanted_stages_are_built(stages):
    encoder = ResNetEncoder("resnet18", stages=stages)
    assert {k.split(".")[0] for k in encoder.state_dict() if k.startswith("layer")} == {
        f"layer{s}" for s in range(1, stages + 1)
    }


def test_bad_arguments():
    with pytest.raises(ValueError, match="Unknown encoder 'vgg'.*resnet18"):
        ResNetEncoder("vgg")
    with pytest.raises(ValueError, match="1 to 4 stages"):
        ResNetEncoder("resnet18", stages=5)


def test_frozen_encoder_never_changes_and_repeats_grey():
    torch.manual_seed(0)
    encoder = FrozenEncoder("resnet18", stages=2)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    parent = nn.Sequential(encoder)
    parent.train()
    assert not encoder.training and not encoder.bn1.training
    grey = torch.rand(2, 1, 64, 64, requires_grad=True)
    maps = encoder(grey)
    assert not any(m.requires_grad for m in maps)
    for actual, expected in zip(maps, encoder(grey.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(actual, expected)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert not [p for p in encoder.parameters() if p.requires_grad]


@pytest.mark.parametrize("cls", [ResNetEncoder, FrozenEncoder])
def test_encoders_apply_the_imagenet_normalisation(cls):
    torch.manual_seed(0)
    encoder = cls("resnet18", stages=1).eval()
    x = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = encoder.features((x - mean[:, None, None]) / std[:, None, None])[0]
    torch.testing.assert_close(encoder(x)[0].detach(), expected.detach())
    assert encoder(x)[0].requires_grad == (cls is ResNetEncoder)
