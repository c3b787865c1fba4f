# SPDX-License-Identifier: Apache-2.0
"""A ResNet read as tokens: its stages' maps on one grid."""

# No postponed annotations: the class of this file is compiled by TorchScript.
from typing import List  # noqa: UP035

import torch
from torch import Tensor, nn

from monai_rdad.networks.encoders.resnet import RESNETS, ResNetEncoder

__all__ = ["TokenResNet"]


class TokenResNet(ResNetEncoder):
    """Three stages of a ResNet, each brought to the grid of the third and to unit size per position.

    The convolutional counterpart of a transformer's blocks. Finer maps are averaged over the cells of the grid, which
    is a sixteenth of the image's resolution, about as fine as the patches of a ViT/14. Each position is then divided by
    its root mean square over channels: stages differ in the size of their activations, and the largest would drown the
    others in a common vector.

    Always in eval mode: batch norms keep the statistics of their pretraining also where the weights are trained.
    Batches of one or few normal images would destroy them, and a momentum copy needs no buffers to follow.

    Args:
        name: one of :data:`~monai_rdad.networks.encoders.resnet.RESNETS`.

    Attributes:
        level_channels: channels of the maps that the forward returns.
        group_channels: channels of the two groups that are reconstructed.
        stride: image pixels per token, along one axis.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, stages=3)
        c1, c2, c3 = (RESNETS[name].channels(stage) for stage in (1, 2, 3))
        self.level_channels = (c1, c2, c3)
        self.group_channels = (c1 + c2, c3)
        self.stride = 16
        self.pools = nn.ModuleList([nn.AvgPool2d(4), nn.AvgPool2d(2), nn.Identity()])
        self.eval()

    def train(self, mode: bool = True) -> "TokenResNet":
        """Stays in eval mode, see above; whether it learns is up to ``requires_grad``."""
        super().train(False)
        return self

    def forward(self, x: Tensor, stages: int = 3) -> List[Tensor]:  # noqa: UP006
        """Image (B, 1 or 3, H, W) in [0, 1] to three float32 maps (B, C_i, H/16, W/16), fewer with fewer ``stages``."""
        maps = self.features((x - self.mean) / self.std, stages)
        levels: List[Tensor] = []  # noqa: UP006
        for i, pool in enumerate(self.pools):
            if i < len(maps):
                level = pool(maps[i].float())
                levels.append(level * torch.rsqrt(level.square().mean(1, keepdim=True) + 1e-6))
        return levels

    def groups(self, levels: List[Tensor]) -> List[Tensor]:  # noqa: UP006
        """What is reconstructed: stages 1 and 2 as one vector per position, and stage 3."""
        return [torch.cat([levels[0], levels[1]], dim=1), levels[2]]
