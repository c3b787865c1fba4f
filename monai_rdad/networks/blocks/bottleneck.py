# SPDX-License-Identifier: Apache-2.0
"""The one-class bottleneck embedding of RD4AD."""

from __future__ import annotations

from torch import Tensor, cat, nn

from monai_rdad.networks.blocks.residual import BasicBlock, Bottleneck, conv3x3, init_convolutions, residual_stage

__all__ = ["OneClassBottleneck"]


def _down(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(conv3x3(in_channels, out_channels, 2), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class OneClassBottleneck(nn.Module):
    """Fuses three teacher maps and squeezes them into one compact embedding (Deng and Li, CVPR 2022, section 3.3).

    The finer two maps are brought to the resolution of the third by strided convolutions, all are concatenated, and one
    residual stage with stride 2 embeds them. What normal images do not need does not pass.

    Args:
        block: residual block of the encoder's family.
        blocks: number of residual blocks of the embedding stage.
        width_per_group: see :class:`~monai_rdad.networks.blocks.residual.Bottleneck`.
        width: channels of the encoder's stem.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: int, width_per_group: int = 64, width: int = 64
    ) -> None:
        super().__init__()
        c = width * block.expansion
        self.down1 = nn.Sequential(_down(c, 2 * c), _down(2 * c, 4 * c))
        self.down2 = _down(2 * c, 4 * c)
        self.embed = residual_stage(block, 3 * 4 * c, 8 * width, blocks, 2, width_per_group)
        self.out_channels = 8 * c
        init_convolutions(self)

    def forward(self, map1: Tensor, map2: Tensor, map3: Tensor) -> Tensor:
        """(B, C, H, W), (B, 2C, H/2, W/2), (B, 4C, H/4, W/4) to (B, 8C, H/8, W/8)."""
        return self.embed(cat([self.down1(map1), self.down2(map2), map3], dim=1))
