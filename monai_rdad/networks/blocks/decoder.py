# SPDX-License-Identifier: Apache-2.0
"""The student: a ResNet run backwards."""

# No postponed annotations: the class of this file is compiled by TorchScript.
from typing import List  # noqa: UP035

from torch import Tensor, nn

from monai_rdad.networks.blocks.residual import BasicBlock, Bottleneck, init_convolutions, residual_stage

__all__ = ["MirroredDecoder"]


class MirroredDecoder(nn.Module):
    """Three up-sampling residual stages that mirror an encoder's stages 3, 2, 1 (Deng and Li, CVPR 2022, section 3.2).

    Args:
        block: residual block of the encoder's family.
        layers: number of blocks of the stages, coarsest first.
        width_per_group: see :class:`~monai_rdad.networks.blocks.residual.Bottleneck`.
        width: channels of the encoder's stem.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int],
        width_per_group: int = 64,
        width: int = 64,
    ) -> None:
        super().__init__()
        e, c = block.expansion, width
        self.stage3 = residual_stage(block, 8 * c * e, 4 * c, layers[0], 2, width_per_group, upsample=True)
        self.stage2 = residual_stage(block, 4 * c * e, 2 * c, layers[1], 2, width_per_group, upsample=True)
        self.stage1 = residual_stage(block, 2 * c * e, c, layers[2], 2, width_per_group, upsample=True)
        init_convolutions(self)

    def forward(self, x: Tensor) -> List[Tensor]:  # noqa: UP006
        """Embedding (B, 8C, H, W) to maps (B, C, 8H, 8W), (B, 2C, 4H, 4W), (B, 4C, 2H, 2W), finest first."""
        map3 = self.stage3(x)
        map2 = self.stage2(map3)
        map1 = self.stage1(map2)
        return [map1, map2, map3]
