# SPDX-License-Identifier: Apache-2.0
"""Teachers and where their weights come from."""

from __future__ import annotations

from .resnet import RESNETS, FrozenEncoder, ResNetEncoder
from .weights import find_imagenet_weights, load_encoder_weights, read_weights

__all__ = [
    "RESNETS",
    "FrozenEncoder",
    "ResNetEncoder",
    "find_imagenet_weights",
    "load_encoder_weights",
    "read_weights",
]
