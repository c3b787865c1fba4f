# SPDX-License-Identifier: Apache-2.0
"""Reductions of an anomaly map."""

# No postponed annotations: the function of this file is compiled by TorchScript.
from monai.transforms.transform import Transform
from torch import Tensor

__all__ = ["ScoreReduction", "reduce_map"]


def reduce_map(values: Tensor, mode: str, count: int) -> Tensor:
    """Scores (B,) of the values (B, N) of maps: "max", "mean", or "top", the mean of the ``count`` largest."""
    if mode == "max":
        return values.amax(1)
    if mode == "mean":
        return values.mean(1)
    return values.topk(count, dim=1, sorted=False).values.mean(1)


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
        return reduce_map(flat, self.mode, self.count(flat.shape[1]))

    def count(self, size: int) -> int:
        """Number of values that "top" averages of a map of ``size`` values."""
        return max(1, round(self.fraction * size))
