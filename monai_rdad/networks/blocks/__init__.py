# SPDX-License-Identifier: Apache-2.0
"""Parts that networks are built of."""

from __future__ import annotations

from .bottleneck import OneClassBottleneck
from .decoder import MirroredDecoder
from .projection import CentreMaskedConv2d, FeatureProjection
from .residual import BasicBlock, Bottleneck, residual_stage

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "CentreMaskedConv2d",
    "FeatureProjection",
    "MirroredDecoder",
    "OneClassBottleneck",
    "residual_stage",
]
