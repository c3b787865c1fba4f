# SPDX-License-Identifier: Apache-2.0
"""Parts that networks are built of."""

from __future__ import annotations

from .bottleneck import OneClassBottleneck
from .decoder import MirroredDecoder
from .matching import align, nearest, unit
from .projection import CentreMaskedConv2d, FeatureProjection
from .prototypes import PrototypeAttention, PrototypeDecoder, PrototypeExtractor
from .residual import BasicBlock, Bottleneck, residual_stage
from .whitening import Whitening

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "CentreMaskedConv2d",
    "FeatureProjection",
    "MirroredDecoder",
    "OneClassBottleneck",
    "PrototypeAttention",
    "PrototypeDecoder",
    "PrototypeExtractor",
    "Whitening",
    "align",
    "nearest",
    "residual_stage",
    "unit",
]
