# SPDX-License-Identifier: Apache-2.0
"""SCRD4AD: scale-aware contrastive reverse distillation."""

# No postponed annotations: the class of this file is compiled by TorchScript.
from typing import List, Optional  # noqa: UP035

import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.networks.nets.rd4ad import RD4AD
from monai_rdad.networks.precision import mixed_precision

__all__ = ["SCRD"]


class SCRD(RD4AD):
    """RD4AD with a corrupted teacher branch and learned scale weights (Li et al., ICLR 2025, arXiv 2503.13828).

    The student sees the clean image only: the method needs no student features of the corrupted one, and keeping
    corrupted images out of its batch norms keeps their statistics those of normal images.

    Args:
        encoder: teacher, one of :data:`~monai_rdad.networks.encoders.resnet.RESNETS`.
        weights: of the teacher, see :func:`~monai_rdad.networks.encoders.weights.load_encoder_weights`.
        scale_weights: predict a weight per image and scale; without it the pairs carry none.
        precision: "auto", "bf16" or "fp32", see :func:`~monai_rdad.networks.precision.mixed_precision`.
    """

    def __init__(
        self,
        encoder: str = "wide_resnet50_2",
        weights: str = "imagenet",
        scale_weights: bool = True,
        precision: str = "auto",
    ) -> None:
        super().__init__(encoder, weights, precision)
        self.scale_weights = nn.Linear(self.bottleneck.out_channels, 3) if scale_weights else None

    def contrast(self, image: Tensor, corrupted: Optional[Tensor]) -> FeaturePairs:  # noqa: UP045
        """The computation itself, in the precision of the caller's context."""
        targets = self.teacher(image.contiguous(memory_format=torch.channels_last))
        embedding = self.bottleneck(targets[0], targets[1], targets[2])
        predictions = self.decoder(embedding)
        weights: Optional[Tensor] = None  # noqa: UP045
        if self.scale_weights is not None:
            # unit length: pooled activations are so large that the softmax would saturate within a few steps
            pooled = nn.functional.normalize(embedding.float().amax(dim=[2, 3]), dim=1)
            weights = self.scale_weights(pooled).float().softmax(dim=1)
        negatives: Optional[List[Tensor]] = None  # noqa: UP006, UP045
        if corrupted is not None:
            negatives = self.teacher(corrupted.contiguous(memory_format=torch.channels_last))
        return FeaturePairs(targets, predictions, weights, negatives)

    def forward(self, image: Tensor, corrupted: Optional[Tensor] = None) -> FeaturePairs:  # noqa: UP045
        """Teacher and student maps of an image, with the teacher's maps of its corrupted copy where one is given.

        Args:
            image: float (B, 1 or 3, H, W) in [0, 1], H and W multiples of 32.
            corrupted: the same with a synthetic anomaly; training only.

        Returns:
            Three pairs of maps, the scale weights (B, 3), and the corrupted image's maps as negatives.
        """
        if torch.jit.is_scripting():
            return self.contrast(image, corrupted)
        with mixed_precision(image.device, self.precision):
            return self.contrast(image, corrupted)
