# SPDX-License-Identifier: Apache-2.0
"""Residual blocks of the encoders, of the bottleneck and, mirrored, of the decoders."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["BasicBlock", "Bottleneck", "conv1x1", "conv3x3", "init_convolutions", "residual_stage"]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution with padding 1 and no bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


def _spatial(in_channels: int, out_channels: int, stride: int, upsample: bool) -> nn.Module:
    """The convolution of a block that changes the resolution: down by a strided one, up by a transposed 2x2 one."""
    if upsample and stride == 2:
        return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2, bias=False)
    return conv3x3(in_channels, out_channels, stride)


def init_convolutions(module: nn.Module) -> None:
    """Kaiming normal (fan out) for convolutions, ones and zeros for batch norm, as in torchvision's ResNets."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., CVPR 2016, figure 5 left).

    Args:
        in_channels: channels of the input.
        planes: channels of the output.
        stride: 1 or 2; 2 halves the resolution, or doubles it with ``upsample``.
        downsample: module of the shortcut, None for the identity. The name is torchvision's.
        width_per_group: accepted for a uniform signature; basic blocks have no inner width.
        upsample: replace the strided convolution by a transposed 2x2 one.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        width_per_group: int = 64,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = _spatial(in_channels, planes, stride, upsample)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, planes, H', W')."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut, the stride in the 3x3 one (torchvision's "V1.5").

    Args:
        in_channels: channels of the input.
        planes: a quarter of the output's channels.
        stride: 1 or 2; 2 halves the resolution, or doubles it with ``upsample``.
        downsample: module of the shortcut, None for the identity. The name is torchvision's.
        width_per_group: 64 for ResNet, 128 for Wide-ResNet-2: inner channels are ``planes * width_per_group / 64``.
        upsample: replace the strided convolution by a transposed 2x2 one.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        width_per_group: int = 64,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        width = planes * width_per_group // 64
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _spatial(width, width, stride, upsample)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, 4 * planes, H', W')."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)


def residual_stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    planes: int,
    blocks: int,
    stride: int,
    width_per_group: int = 64,
    upsample: bool = False,
) -> nn.Sequential:
    """A chain of residual blocks, of which the first changes channels and resolution.

    Args:
        block: class of the blocks.
        in_channels: channels of the input.
        planes: the output has ``planes * block.expansion`` channels.
        blocks: number of blocks.
        stride: of the first block, 1 or 2.
        width_per_group: see :class:`Bottleneck`.
        upsample: double the resolution instead of halving it.
    """
    out_channels = planes * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        projection = (
            _spatial(in_channels, out_channels, stride, upsample)
            if upsample
            else conv1x1(in_channels, out_channels, stride)
        )
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))
    first = block(in_channels, planes, stride, shortcut, width_per_group, upsample)
    rest = [block(out_channels, planes, width_per_group=width_per_group) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
