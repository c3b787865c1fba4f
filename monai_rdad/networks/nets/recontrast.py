# SPDX-License-Identifier: Apache-2.0
"""ReContrast: reverse distillation with an encoder that adapts to the images, and its frozen copy."""

# No postponed annotations: the class of this file is compiled by TorchScript.
from typing import List  # noqa: UP035

import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.networks.blocks.residual import init_convolutions
from monai_rdad.networks.encoders.resnet import RESNETS, ResNetEncoder
from monai_rdad.networks.nets.rd4ad import RD4AD

__all__ = ["ReContrast"]


def _heads(encoder: str) -> nn.ModuleList:
    widths = [RESNETS[encoder].channels(stage) for stage in (1, 2, 3)]
    heads = nn.ModuleList(nn.Conv2d(width, width, kernel_size=1) for width in widths)
    init_convolutions(heads)
    return heads


class ReContrast(RD4AD):
    """Two encoders, frozen and trainable, that reconstruct each other (Guo et al., NeurIPS 2023, arXiv 2306.02602).

    Beside the frozen teacher stands a trainable encoder that starts from the same weights. One bottleneck and one
    decoder take the features of both, as two halves of one batch, and two heads of 1x1 convolutions per scale turn the
    decoder's maps into predictions. They cross: from the trainable encoder's features those of the teacher are
    predicted, and the other way round (section 3). The forward pass returns these six pairs, the teacher's maps first.

    No target carries a gradient: the trainable encoder learns through what it feeds into the bottleneck, and not by
    making itself a target that is easy to predict. Its batch norms follow ``train()`` and ``eval()``, the teacher's
    stay in eval mode.

    Args:
        encoder: architecture of both encoders, one of :data:`~monai_rdad.networks.encoders.resnet.RESNETS`.
        weights: of both, see :func:`~monai_rdad.networks.encoders.weights.load_encoder_weights`; with "none" both start
            from the same random ones.
        precision: "auto", "bf16" or "fp32", see :func:`~monai_rdad.networks.precision.mixed_precision`.
    """

    def __init__(self, encoder: str = "wide_resnet50_2", weights: str = "imagenet", precision: str = "auto") -> None:
        super().__init__(encoder, weights, precision)
        self.encoder = ResNetEncoder(encoder, stages=3)
        self.encoder.load_state_dict(self.teacher.state_dict())
        self.teacher_heads = _heads(encoder)
        self.encoder_heads = _heads(encoder)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def pairs(self, image: Tensor) -> FeaturePairs:
        """The computation itself, in the precision of the caller's context."""
        image = image.contiguous(memory_format=torch.channels_last)
        frozen = self.teacher(image)
        adapted = self.encoder(image)
        both: List[Tensor] = []  # noqa: UP006
        for a, f in zip(adapted, frozen):  # noqa: B905 - TorchScript knows no strict
            both.append(torch.cat([a, f]))
        decoded = self.decoder(self.bottleneck(both[0], both[1], both[2]))
        half = image.shape[0]  # slices, not chunk: an exported graph would fix the size of the batch
        predictions: List[Tensor] = []  # noqa: UP006
        for scale, head in enumerate(self.teacher_heads):
            predictions.append(head(decoded[scale][:half]))
        for scale, head in enumerate(self.encoder_heads):
            predictions.append(head(decoded[scale][half:]))
        return FeaturePairs(frozen + [a.detach() for a in adapted], predictions)
