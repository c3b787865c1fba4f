# SPDX-License-Identifier: Apache-2.0
"""DNP-ConFormer: reconstruction from diverse normal prototypes."""

# No postponed annotations: the class of this file is compiled by TorchScript.
import copy
from typing import Any, Dict, List, Union  # noqa: UP035

import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.networks.blocks.prototypes import PrototypeDecoder, PrototypeExtractor, init_linears, mlp
from monai_rdad.networks.encoders.resnet import RESNETS
from monai_rdad.networks.encoders.tokens import TokenResNet
from monai_rdad.networks.encoders.vit import VITS, ViTEncoder
from monai_rdad.networks.encoders.weights import load_encoder_weights
from monai_rdad.networks.precision import PRECISIONS, mixed_precision
from monai_rdad.utils import one_of

__all__ = ["DNP", "build_token_encoder", "image_divisor"]


def build_token_encoder(name: str) -> Union[ViTEncoder, TokenResNet]:  # noqa: UP007
    """Encoder with random weights that returns its levels as maps on one grid.

    Args:
        name: one of :data:`~monai_rdad.networks.encoders.vit.VITS` or
            :data:`~monai_rdad.networks.encoders.resnet.RESNETS`.

    Raises:
        ValueError: for an unknown name.
    """
    if name in VITS:
        return ViTEncoder(name)
    if name in RESNETS:
        return TokenResNet(name)
    raise ValueError(f"Unknown encoder '{name}'. Choose one of: {', '.join([*VITS, *RESNETS])}.")


def image_divisor(name: str) -> int:
    """Number of pixels of which the image size has to be a multiple: a transformer's patch, 32 for a ResNet."""
    return VITS[name].patch if name in VITS else 32


def _embedding(in_channels: int, width: int) -> nn.Sequential:
    """A level's maps as tokens. The norm takes away what all positions have in common, most of a ResNet's features."""
    return nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width))


class DNP(nn.Module):
    """Trainable encoder, momentum teacher, prototypes, and a decoder that sees only these (arXiv 2508.19573).

    The tokens F, mean of the encoder's levels, are summarised by M prototypes and passed through a bottleneck; the
    decoder rebuilds each from non-negative combinations of the prototypes. Its last half predicts the teacher's shallow
    group of levels, its first half the deep one.

    A ResNet's levels have different channels and are not in one space: here a linear layer with batch norm per level
    makes tokens of them, and a linear layer per group brings the decoder's output back. The targets never pass through
    such a layer, so they cannot be made easy by one.

    Args:
        encoder: one of :data:`~monai_rdad.networks.encoders.vit.VITS` or
            :data:`~monai_rdad.networks.encoders.resnet.RESNETS`.
        weights: of the encoder: "embedded", "dinov2", "imagenet", a path, or "none" for random weights, see
            :func:`~monai_rdad.networks.encoders.weights.load_encoder_weights`.
        encoder_mode: "momentum": the encoder is trained, the teacher follows as its moving average; "trainable": the
            target is the trained encoder itself, without gradient; "frozen": teacher and encoder are one that never
            learns.
        momentum: share of the teacher that stays at each update, in [0, 1].
        prototypes: number M of prototypes.
        blocks: number of the decoder's blocks, even.
        precision: "auto", "bf16" or "fp32", see :func:`~monai_rdad.networks.precision.mixed_precision`.

    Raises:
        ValueError: for an unknown name, an odd number of blocks, fewer than 2 prototypes, or a momentum outside [0, 1].
    """

    MODES = ("frozen", "trainable", "momentum")

    def __init__(
        self,
        encoder: str = "vit_small_dinov2_reg4",
        weights: str = "dinov2",
        encoder_mode: str = "momentum",
        momentum: float = 0.999,
        prototypes: int = 6,
        blocks: int = 8,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        one_of("encoder_mode", encoder_mode, self.MODES)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}, it must lie in [0, 1].")
        if prototypes < 2:
            raise ValueError(f"prototypes is {prototypes}, there must be at least 2 to differ from each other.")
        if blocks < 2 or blocks % 2:
            raise ValueError(f"The decoder has {blocks} blocks, it must be an even number: two groups of equal size.")
        self.precision = one_of("precision", precision, PRECISIONS)
        self.momentum = momentum if encoder_mode == "momentum" else 0.0
        self.teacher = build_token_encoder(encoder)
        load_encoder_weights(self.teacher, encoder, weights)
        self.encoder = None if encoder_mode == "frozen" else copy.deepcopy(self.teacher)
        self.teacher.requires_grad_(False)
        width, heads = 384, 6
        channels = self.teacher.level_channels
        one_space = all(c == width for c in channels)  # a transformer's blocks all write to the same tokens
        self.embeds = nn.ModuleList([nn.Identity() if one_space else _embedding(c, width) for c in channels])
        self.extractor = PrototypeExtractor(width, prototypes, heads)
        self.bottleneck = mlp(width)
        self.decoder = PrototypeDecoder(width, heads, blocks)
        self.heads = nn.ModuleList(
            [nn.Identity() if one_space else nn.Linear(width, c) for c in self.teacher.group_channels]
        )
        init_linears(self.bottleneck)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> "DNP":
        """Training mode for all but the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self

    def parameter_groups(self, lr: float, encoder_lr: float) -> List[Dict[str, Any]]:  # noqa: UP006
        """Two groups for an optimizer: everything new, then the encoder's parameters (none if it is frozen)."""
        encoder = [] if self.encoder is None else list(self.encoder.parameters())
        known = {id(p) for p in encoder}
        new = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        return [{"params": new, "lr": lr}, {"params": encoder, "lr": encoder_lr}]

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher towards the encoder; to be called after each step of the optimizer."""
        if self.encoder is not None:
            # its buffers are constants: batch norms keep their statistics
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - self.momentum)

    def pairs(self, image: Tensor) -> FeaturePairs:
        """The computation itself, in the precision of the caller's context."""
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            seen = self.teacher(image)
            targets = self.teacher.groups(seen)
        levels = seen
        if self.encoder is not None:
            levels = self.encoder(image)
        embedded: List[Tensor] = []  # noqa: UP006
        for i, embed in enumerate(self.embeds):
            embedded.append(embed(levels[i]).float())
        tokens = torch.stack(embedded).mean(0).flatten(2).transpose(1, 2)
        prototypes = self.extractor(tokens)
        outputs = self.decoder(self.bottleneck(tokens), prototypes)
        half = len(outputs) // 2
        rebuilt = [torch.stack(outputs[half:]).mean(0), torch.stack(outputs[:half]).mean(0)]
        predictions: List[Tensor] = []  # noqa: UP006
        for i, head in enumerate(self.heads):
            predictions.append(head(rebuilt[i]).transpose(1, 2).reshape(targets[i].shape))
        return FeaturePairs(targets, predictions, tokens=tokens, prototypes=prototypes)

    def forward(self, image: Tensor) -> FeaturePairs:
        """Teacher's groups and their reconstruction, with the tokens and prototypes that led to it.

        Args:
            image: float (B, 1 or 3, H, W) in [0, 1], H and W multiples of :func:`image_divisor`.

        Returns:
            Two pairs of maps on one grid (a fourteenth of the resolution for a ViT/14, a sixteenth for a ResNet),
            shallow group first, tokens (B, N, 384) and prototypes (B, M, 384).
        """
        if torch.jit.is_scripting():
            return self.pairs(image)
        with mixed_precision(image.device, self.precision):
            return self.pairs(image)
