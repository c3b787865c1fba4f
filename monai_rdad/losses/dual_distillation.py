# SPDX-License-Identifier: Apache-2.0
"""The two distillations of D2-4FAD."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.losses.distillation import cosine_distance

__all__ = ["DualDistillationLoss"]


class DualDistillationLoss(nn.Module):
    r"""Student self-distillation plus teacher-student distillation (Dong et al., ICLR 2026, arXiv 2603.01713).

    :math:`\alpha L_{SSD} + \beta L_{TSD}`, each the sum over scales of the mean cosine distance: of the query's student
    maps to those of its supports, and of the query's student maps to the teacher's. The published factors are 1 and
    0.1. A student that gives the same features for everything makes the first term 0, and only the second term holds
    it off.

    Args:
        self_distillation: :math:`\alpha`.
        distillation: :math:`\beta`.

    Raises:
        ValueError: (on call) the pairs hold no teacher-student pairs; the network returns them in training mode.
    """

    def __init__(self, self_distillation: float = 1.0, distillation: float = 0.1) -> None:
        super().__init__()
        self.self_distillation = self_distillation
        self.distillation = distillation

    def forward(self, pairs: FeaturePairs, labels: Tensor | None = None) -> Tensor:
        """Scalar loss; ``labels`` are not used, they are part of MONAI's calling convention."""
        scales = len(pairs.targets) // 2
        if len(pairs.targets) % 2 or pairs.targets[scales - 1].shape[2:] != pairs.targets[-1].shape[2:]:
            raise ValueError("Dual distillation needs matching and teacher-student pairs: is the network in training?")
        distances = torch.stack(
            [cosine_distance(t, p).mean() for t, p in zip(pairs.targets, pairs.predictions, strict=True)]
        )
        return self.self_distillation * distances[:scales].sum() + self.distillation * distances[scales:].sum()
