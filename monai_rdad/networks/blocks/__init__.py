# SPDX-License-Identifier: Apache-2.0
"""Parts that networks are built of."""

from __future__ import annotations

from .bottleneck import OneClassBottleneck
from .decoder import MirroredDecoder
from .prototypes import PrototypeAttention, PrototypeDecoder, PrototypeExtractor
from .residual import BasicBlock, Bottleneck, residual_stage

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "MirroredDecoder",
    "OneClassBottleneck",
    "PrototypeAttention",
    "PrototypeDecoder",
    "PrototypeExtractor",
    "residual_stage",
]
