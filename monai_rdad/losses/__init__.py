# SPDX-License-Identifier: Apache-2.0
"""Losses: callables ``loss(pairs, labels=None) -> scalar`` on feature pairs."""

from __future__ import annotations

from .contrastive import ScaleContrastiveLoss
from .distillation import CosineDistillationLoss, cosine_distance
from .dual_distillation import DualDistillationLoss
from .mining import GlobalCosineMiningLoss

__all__ = [
    "CosineDistillationLoss",
    "DualDistillationLoss",
    "GlobalCosineMiningLoss",
    "ScaleContrastiveLoss",
    "cosine_distance",
]
