# SPDX-License-Identifier: Apache-2.0
"""Projections of teacher maps that a student's skip connections carry."""

# No postponed annotations: the classes of this file are compiled by TorchScript.
import torch
from torch import Tensor, nn

from monai_rdad.networks.blocks.residual import conv3x3, init_convolutions

__all__ = ["CentreMaskedConv2d", "FeatureProjection"]


class CentreMaskedConv2d(nn.Conv2d):
    """3x3 convolution, padding 1, no bias, whose centre weight counts as zero: a position is read off its surroundings.

    The weight is masked in the forward pass, so the centre gets no gradient either and whatever stands there is inert.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    mask: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        mask = torch.ones(1, 1, 3, 3)
        mask[..., 1, 1] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        return nn.functional.conv2d(x, self.weight * self.mask, padding=1)


def _layer(convolution: nn.Conv2d) -> nn.Sequential:
    # PyTorch's default for instance normalisation: no parameters of its own
    return nn.Sequential(convolution, nn.InstanceNorm2d(convolution.out_channels), nn.LeakyReLU(inplace=True))


class FeatureProjection(nn.Sequential):
    """Projection of a teacher map onto what a normal image would show (Ge et al., Neurocomputing 651, 130994).

    Two centre-masked and four plain 3x3 convolutions, each with instance normalisation and leaky ReLU; channels c, c/2,
    c, c/2, c/4, c/2, c. (B, c, H, W) to the same shape; H * W must be more than one.

    Args:
        channels: of the map, a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        half, quarter = channels // 2, channels // 4
        super().__init__(
            _layer(CentreMaskedConv2d(channels, half)),
            _layer(CentreMaskedConv2d(half, channels)),
            _layer(conv3x3(channels, half)),
            _layer(conv3x3(half, quarter)),
            _layer(conv3x3(quarter, half)),
            _layer(conv3x3(half, channels)),
        )
        init_convolutions(self)
