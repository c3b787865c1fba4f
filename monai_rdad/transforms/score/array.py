# SPDX-License-Identifier: Apache-2.0
"""Reductions of an anomaly map."""

from __future__ import annotations

from monai.transforms.transform import Transform
from torch import Tensor

__all__ = ["ScoreReduction"]


class ScoreReduction(Transform):
    """Image score: the maximum of the map, its mean, or the mean of its largest values.

    Args:
        mode: "max" (RD4AD, ReContrast), "mean" (SCRD4AD) or "top" (mean of the top fraction).
        fraction: of the pixels that "top" averages, in (0, 1].

    Raises:
        ValueError: unknown mode, or a fraction outside (0, 1].
    """

    MODES = ("max", "mean", "top")

    def __init__(self, mode: str = "max", fraction: float = 0.01) -> None:
        if mode not in self.MODES:
            raise ValueError(f"Unknown score reduction '{mode}'. Choose one of: {', '.join(self.MODES)}.")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}, it must lie in (0, 1].")
        self.mode = mode
        self.fraction = fraction

    def __call__(self, maps: Tensor) -> Tensor:
        """Scores (B,) of maps (B, 1, H, W) or (B, 1, H, W, D)."""
        flat = maps.flatten(1)
        if self.mode == "max":
            return flat.amax(1)
        if self.mode == "mean":
            return flat.mean(1)
        count = max(1, round(self.fraction * flat.shape[1]))
        return flat.topk(count, dim=1, sorted=False).values.mean(1)
