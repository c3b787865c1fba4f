# SPDX-License-Identifier: Apache-2.0
"""Losses: callables ``loss(pairs, labels=None) -> scalar`` on feature pairs."""

from __future__ import annotations

from .contrastive import ScaleContrastiveLoss
from .distillation import CosineDistillationLoss, cosine_distance
from .dual_distillation import DualDistillationLoss
from .mining import GlobalCosineMiningLoss, soft_mining
from .prototypes import PrototypeLoss, alignment_loss, diversity_loss, prototype_similarity

__all__ = [
    "CosineDistillationLoss",
    "DualDistillationLoss",
    "GlobalCosineMiningLoss",
    "PrototypeLoss",
    "ScaleContrastiveLoss",
    "alignment_loss",
    "cosine_distance",
    "diversity_loss",
    "prototype_similarity",
    "soft_mining",
]
