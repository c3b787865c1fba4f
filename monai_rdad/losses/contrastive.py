# SPDX-License-Identifier: Apache-2.0
"""The contrastive loss of SCRD4AD with scale weights that take part."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.losses.distillation import cosine_distance

__all__ = ["ScaleContrastiveLoss"]


class ScaleContrastiveLoss(nn.Module):
    r"""Pull the student to the clean teacher, push it away from the corrupted one, scale by scale.

    With :math:`d^+_l` and :math:`d^-_l` the cosine distances at scale l of the student's maps to the teacher's maps of
    the clean and of the corrupted image (Li et al., ICLR 2025, section 3.3):

    - ``none``: :math:`\sum_l d^+_l / \sum_l d^-_l`, the loss of the authors' release, where the scale weights cancel.
    - ``sums``: :math:`S \sum_l w_l d^+_l / S \sum_l w_l d^-_l`, the ratio of weighted sums.
    - ``ratios``: :math:`\sum_l w_l d^+_l / d^-_l`, the weighted sum of ratios.

    Both weighted forms are smallest with all weight on the scale of the smallest ratio. The divergence
    :math:`KL(uniform \| w)`, times ``balance``, holds the weights off that corner: its gradient grows towards it, while
    that of :math:`KL(w \| uniform)` vanishes there.

    The ratio alone learns slowly where the corruption hardly moves the teacher: far from both, numerator and
    denominator have nearly the same gradient, and they cancel. ``distillation`` times :math:`\sum_l d^+_l` keeps the
    direction towards the clean teacher.

    Args:
        scale_weighting: "none", "sums" or "ratios".
        balance: factor of the divergence.
        distillation: factor of the plain distillation term, 0 for the published loss.

    Raises:
        ValueError: unknown weighting, or pairs without the negatives or weights that it needs.
    """

    WEIGHTINGS = ("none", "sums", "ratios")

    def __init__(self, scale_weighting: str = "sums", balance: float = 1.0, distillation: float = 0.0) -> None:
        super().__init__()
        if scale_weighting not in self.WEIGHTINGS:
            raise ValueError(f"Unknown scale_weighting '{scale_weighting}'. Choose one of: {self.WEIGHTINGS}.")
        self.scale_weighting = scale_weighting
        self.balance = balance
        self.distillation = distillation

    def forward(self, pairs: FeaturePairs, labels: Tensor | None = None) -> Tensor:
        """Scalar loss; ``labels`` are not used, they are part of MONAI's calling convention."""
        if pairs.negatives is None:
            raise ValueError(
                "The contrastive loss needs the corrupted image: is `corrupted` in the batch and passed on?"
            )
        positive = torch.stack(
            [cosine_distance(t, p) for t, p in zip(pairs.targets, pairs.predictions, strict=True)], 1
        )
        negative = torch.stack(
            [cosine_distance(n, p) for n, p in zip(pairs.negatives, pairs.predictions, strict=True)], 1
        )
        return self.contrast(positive, negative, pairs.weights) + self.distillation * positive.mean(0).sum()

    def contrast(self, positive: Tensor, negative: Tensor, weights: Tensor | None) -> Tensor:
        """The contrastive part for distances (B, S) and weights (B, S)."""
        if self.scale_weighting == "none":
            return positive.mean(0).sum() / negative.mean(0).sum()
        if weights is None:
            raise ValueError("A weighted loss needs a network with scale weights (`scale_weights: true`).")
        if self.scale_weighting == "sums":
            ratio = (weights * positive).mean(0).sum() / (weights * negative).mean(0).sum()
        else:
            ratio = (weights * positive.mean(0) / negative.mean(0)).mean(0).sum()
        divergence = -weights.clamp_min(1e-12).log().mean() - math.log(weights.shape[1])
        return ratio + self.balance * divergence
