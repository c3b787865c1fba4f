# SPDX-License-Identifier: Apache-2.0
"""Cosine distances between teacher and student maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs

__all__ = ["CosineDistillationLoss", "cosine_distance"]


def cosine_distance(target: Tensor, prediction: Tensor, per_position: bool = False) -> Tensor:
    """1 - cosine similarity, in float32 whatever the maps' type.

    Args:
        target: (B, C, H, W).
        prediction: of the same shape.
        per_position: compare the channel vectors of each position, otherwise all values of a map as one vector.

    Returns:
        (B, H, W) or (B,), values in [0, 2].
    """
    dims = [1] if per_position else [1, 2, 3]
    # reductions written out: no flattened copies, and three passes instead of cosine_similarity's six
    a, b = target.float(), prediction.float()
    norms = (a * a).sum(dims) * (b * b).sum(dims)
    return 1 - (a * b).sum(dims) * torch.rsqrt(norms.clamp_min(1e-12))


class CosineDistillationLoss(nn.Module):
    """Sum over scales of the mean cosine distance between teacher and student.

    RD4AD's paper compares position by position (Deng and Li, CVPR 2022, equation 2), its release whole flattened maps,
    which its figures come from; the second weighs positions by the size of their features.

    Args:
        per_position: compare position by position instead of whole maps.
    """

    def __init__(self, per_position: bool = False) -> None:
        super().__init__()
        self.per_position = per_position

    def forward(self, pairs: FeaturePairs, labels: Tensor | None = None) -> Tensor:
        """Scalar loss; ``labels`` are not used, they are part of MONAI's calling convention."""
        distances = [
            cosine_distance(t, p, self.per_position).mean()
            for t, p in zip(pairs.targets, pairs.predictions, strict=True)
        ]
        return torch.stack(distances).sum()
