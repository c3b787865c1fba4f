# SPDX-License-Identifier: Apache-2.0
"""A cosine schedule that ends."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["CosineDecay"]


class CosineDecay(LRScheduler):
    """Learning rates from their initial values to a common end along half a cosine, constant from there on.

    torch's ``CosineAnnealingLR`` and MONAI's ``WarmupCosineSchedule`` rise again after their last step.

    Args:
        optimizer: whose groups are scheduled; a group that starts at ``end_lr`` stays there.
        steps: number of steps until the end, at least 1.
        end_lr: learning rate from then on.
    """

    def __init__(self, optimizer: Optimizer, steps: int, end_lr: float = 0.0) -> None:
        if steps < 1:
            raise ValueError(f"steps is {steps}, it must be at least 1.")
        self.steps = steps
        self.end_lr = end_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Learning rate of each group at the present step."""
        share = 0.5 * (1 + math.cos(math.pi * min(self.last_epoch / self.steps, 1.0)))
        return [self.end_lr + (base - self.end_lr) * share for base in self.base_lrs]
