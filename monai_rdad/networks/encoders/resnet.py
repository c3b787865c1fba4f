# SPDX-License-Identifier: Apache-2.0
"""ResNet feature extractors whose parameter names and outputs are torchvision's."""

# No postponed annotations: the classes of this file are compiled by TorchScript.
from typing import List, NamedTuple  # noqa: UP035

import torch
from torch import Tensor, nn

from monai_rdad.networks.blocks.residual import BasicBlock, Bottleneck, init_convolutions, residual_stage
from monai_rdad.networks.precision import full_precision

__all__ = ["RESNETS", "FrozenEncoder", "ResNetEncoder", "ResNetSpec"]


class ResNetSpec(NamedTuple):
    """Shape of one ResNet.

    Args:
        block: class of its residual blocks.
        layers: number of blocks of its four stages.
        width_per_group: 64, or 128 for the doubled inner width of Wide-ResNet-2.
        width: channels of the stem, which all stages are multiples of.
    """

    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, int, int, int]
    width_per_group: int = 64
    width: int = 64

    def channels(self, stage: int) -> int:
        """Channels of the map after ``stage`` (1 to 4)."""
        return int(self.width * 2 ** (stage - 1) * self.block.expansion)


RESNETS: dict[str, ResNetSpec] = {
    "resnet18": ResNetSpec(BasicBlock, (2, 2, 2, 2)),
    "resnet18_half": ResNetSpec(BasicBlock, (2, 2, 2, 2), width=32),
    "resnet34": ResNetSpec(BasicBlock, (3, 4, 6, 3)),
    "resnet50": ResNetSpec(Bottleneck, (3, 4, 6, 3)),
    "wide_resnet50_2": ResNetSpec(Bottleneck, (3, 4, 6, 3), width_per_group=128),
}


class ResNetEncoder(nn.Module):
    """The stem and the first stages of a ResNet (He et al., CVPR 2016; Zagoruyko and Komodakis, BMVC 2016).

    Takes images in [0, 1] and applies the ImageNet normalisation itself: every image of the pipeline, corrupted or not,
    then lives in [0, 1], and no branch can be normalised differently from another.

    Stages that nobody reads are not built. Names of parameters are torchvision's (``conv1``, ``bn1``, ``layer1`` ...),
    so its published weights load as they are.

    Args:
        name: one of :data:`RESNETS`.
        stages: number of stages to build, 1 to 4.

    Raises:
        ValueError: for an unknown name or number of stages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, stages: int = 3) -> None:
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"Unknown encoder '{name}'. Choose one of: {', '.join(RESNETS)}.")
        if stages not in (1, 2, 3, 4):
            raise ValueError(f"An encoder has 1 to 4 stages, not {stages}.")
        spec = RESNETS[name]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, spec.width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(spec.width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

        def build(stage: int, in_channels: int) -> nn.Sequential:
            stride, planes = (1 if stage == 1 else 2), spec.width * 2 ** (stage - 1)
            return residual_stage(spec.block, in_channels, planes, spec.layers[stage - 1], stride, spec.width_per_group)

        # None for a stage that is not built: TorchScript then drops the branch that would run it
        self.layer1 = build(1, spec.width)
        self.layer2 = build(2, spec.channels(1)) if stages > 1 else None
        self.layer3 = build(3, spec.channels(2)) if stages > 2 else None
        self.layer4 = build(4, spec.channels(3)) if stages > 3 else None
        init_convolutions(self)

    def features(self, x: Tensor, stages: int = 4) -> List[Tensor]:  # noqa: UP006
        """Maps after each built stage, up to the given one, for a normalised RGB image (B, 3, H, W)."""
        if torch.jit.is_scripting():
            x = self.beginning(x)
        else:
            # In float32 whatever the context: rounding here spreads into all stages. It makes up a tenth of the work
            # and, in bfloat16, most of the error of an anomaly map.
            with full_precision(x.device):
                x = self.beginning(x)
        maps: List[Tensor] = [x]  # noqa: UP006
        if self.layer2 is not None and stages >= 2:
            x = self.layer2(x)
            maps.append(x)
        if self.layer3 is not None and stages >= 3:
            x = self.layer3(x)
            maps.append(x)
        if self.layer4 is not None and stages >= 4:
            x = self.layer4(x)
            maps.append(x)
        return maps

    def beginning(self, x: Tensor) -> Tensor:
        """Stem and first stage."""
        return self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor, stages: int = 4) -> List[Tensor]:  # noqa: UP006
        """Feature maps after each built stage.

        Args:
            x: image in [0, 1], float (B, 1 or 3, H, W); one channel is repeated.
            stages: the last stage to compute, if it is built.

        Returns:
            One map per stage, finest first: (B, C, H/4, W/4), (B, 2C, H/8, W/8), ...
        """
        return self.features((x - self.mean) / self.std, stages)


class FrozenEncoder(ResNetEncoder):
    """A :class:`ResNetEncoder` that never learns: no gradients, always in eval mode.

    Args:
        name: one of :data:`RESNETS`.
        stages: number of stages to build, 1 to 4.
    """

    def __init__(self, name: str, stages: int = 3) -> None:
        super().__init__(name, stages)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stays in eval mode: MONAI's trainer calls ``network.train()`` before every iteration."""
        super().train(False)
        return self

    def forward(self, x: Tensor, stages: int = 4) -> List[Tensor]:  # noqa: UP006
        """As :class:`ResNetEncoder`, without gradient."""
        with torch.no_grad():
            return self.features((x - self.mean) / self.std, stages)
