# SPDX-License-Identifier: Apache-2.0
"""Teachers and where their weights come from."""

from __future__ import annotations

from .resnet import RESNETS, FrozenEncoder, ResNetEncoder
from .tokens import TokenResNet
from .vit import VITS, ViTEncoder
from .weights import (
    find_dinov2_weights,
    find_embedded_weights,
    find_imagenet_weights,
    load_encoder_weights,
    read_weights,
)

__all__ = [
    "RESNETS",
    "VITS",
    "FrozenEncoder",
    "ResNetEncoder",
    "TokenResNet",
    "ViTEncoder",
    "find_dinov2_weights",
    "find_embedded_weights",
    "find_imagenet_weights",
    "load_encoder_weights",
    "read_weights",
]
