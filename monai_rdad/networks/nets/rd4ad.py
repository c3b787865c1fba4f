# SPDX-License-Identifier: Apache-2.0
"""RD4AD: reverse distillation from a one-class embedding."""

# No postponed annotations: the class of this file is compiled by TorchScript.
import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.networks.blocks.bottleneck import OneClassBottleneck
from monai_rdad.networks.blocks.decoder import MirroredDecoder
from monai_rdad.networks.encoders.resnet import RESNETS, FrozenEncoder
from monai_rdad.networks.encoders.weights import load_encoder_weights
from monai_rdad.networks.precision import PRECISIONS, mixed_precision
from monai_rdad.utils import one_of

__all__ = ["RD4AD", "build_student"]


def build_student(encoder: str) -> tuple[OneClassBottleneck, MirroredDecoder]:
    """The trainable half of reverse distillation for an encoder: bottleneck and mirrored decoder.

    The embedding stage has three blocks, two for ResNet-18, like the encoder's own fourth stage.

    Args:
        encoder: one of :data:`~monai_rdad.networks.encoders.resnet.RESNETS`.
    """
    block, layers, *widths = RESNETS[encoder]
    student = MirroredDecoder(block, layers[:3], *widths)
    return OneClassBottleneck(block, layers[3], *widths), student


class RD4AD(nn.Module):
    """Teacher, one-class bottleneck and mirrored student (Deng and Li, CVPR 2022).

    Args:
        encoder: teacher, one of :data:`~monai_rdad.networks.encoders.resnet.RESNETS`.
        weights: of the teacher: "embedded", "imagenet", a path, or "none" for random weights, see
            :func:`~monai_rdad.networks.encoders.weights.load_encoder_weights`.
        precision: "auto", "bf16" or "fp32", see :func:`~monai_rdad.networks.precision.mixed_precision`.
    """

    def __init__(self, encoder: str = "wide_resnet50_2", weights: str = "imagenet", precision: str = "auto") -> None:
        super().__init__()
        self.precision = one_of("precision", precision, PRECISIONS)
        self.teacher = FrozenEncoder(encoder, stages=3)
        load_encoder_weights(self.teacher, encoder, weights)
        self.bottleneck, self.decoder = build_student(encoder)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def pairs(self, image: Tensor) -> FeaturePairs:
        """The computation itself, in the precision of the caller's context."""
        targets = self.teacher(image.contiguous(memory_format=torch.channels_last))
        predictions = self.decoder(self.bottleneck(targets[0], targets[1], targets[2]))
        return FeaturePairs(targets, predictions)

    def forward(self, image: Tensor) -> FeaturePairs:
        """Teacher and student maps of an image.

        Args:
            image: float (B, 1 or 3, H, W) in [0, 1], H and W multiples of 32.

        Returns:
            Three pairs of maps, at a quarter, an eighth and a sixteenth of the resolution.
        """
        if torch.jit.is_scripting():
            return self.pairs(image)
        with mixed_precision(image.device, self.precision):
            return self.pairs(image)
