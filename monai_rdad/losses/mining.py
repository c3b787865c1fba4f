# SPDX-License-Identifier: Apache-2.0
"""Soft mining: positions that are rebuilt badly teach more."""

from __future__ import annotations

from torch import Tensor

from monai_rdad.losses.distillation import cosine_distance

__all__ = ["soft_mining"]


def soft_mining(target: Tensor, prediction: Tensor, exponent: float = 3.0) -> Tensor:
    """The prediction itself, whose gradient is scaled per position by (d / mean d) ** exponent.

    d is the cosine distance of the channel vectors at a position and the mean goes over the batch (arXiv 2508.19573; as
    in INP-Former, Luo et al., CVPR 2025). Normal regions that are rebuilt already then no longer drive the training.

    Args:
        target: (B, C, H, W).
        prediction: of the same shape.
        exponent: 0 leaves the gradient as it is.

    Returns:
        (B, C, H, W), equal to the prediction.
    """
    distance = cosine_distance(target, prediction.detach(), per_position=True)
    factor = (distance / distance.mean().clamp_min(1e-12)).clamp_min(0).pow(exponent)[:, None]
    fixed = prediction.detach()
    return fixed + factor * (prediction - fixed)
