# SPDX-License-Identifier: Apache-2.0
"""Mining: positions of normal images that are reconstructed badly teach more, or alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.losses.distillation import cosine_distance

__all__ = ["GlobalCosineMiningLoss", "soft_mining"]


class GlobalCosineMiningLoss(nn.Module):
    r"""Sum over pairs of the mean cosine distance of whole maps, with hard-normal mining.

    Positions of a prediction that are easy get no gradient; the value of the loss is that of
    :class:`~monai_rdad.losses.distillation.CosineDistillationLoss` in any case. Easy is a position whose own cosine
    distance lies below :math:`\mu + \alpha \sigma`, mean and (unbiased) standard deviation of all positions of the pair
    in the batch (Guo et al., NeurIPS 2023, section 3). In a distributed run that is the batch of one process.

    :math:`\alpha` rises linearly from -3 (hardly any position is easy) to 1 over the first ``warmup`` iterations, then
    stays there. The loss counts its calls that take part in a gradient; the count is part of its state dict, so a
    resumed training goes on where it stopped if the loss is saved with it.

    Args:
        warmup: iterations over which :math:`\alpha` rises, a tenth of the training in the paper; 0 starts at 1.
        mining: without it every position gets its gradient.

    Raises:
        ValueError: ``warmup`` is negative.
    """

    START, END = -3.0, 1.0
    iteration: Tensor

    def __init__(self, warmup: int, mining: bool = True) -> None:
        super().__init__()
        if warmup < 0:
            raise ValueError(f"warmup is {warmup}, it must be at least 0 iterations.")
        self.warmup = warmup
        self.mining = mining
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    @property
    def alpha(self) -> Tensor:
        """Scalar of the coming iteration, in [-3, 1]."""
        # a tensor: were the counter on a GPU, a Python number would make the step wait for it
        progress = (self.iteration / self.warmup).clamp_max(1) if self.warmup else torch.ones(())
        return self.START + (self.END - self.START) * progress

    def forward(self, pairs: FeaturePairs, labels: Tensor | None = None) -> Tensor:
        """Scalar loss; ``labels`` are not used, they are part of MONAI's calling convention."""
        distances = [
            cosine_distance(t, self.mine(t, p) if self.mining else p).mean()
            for t, p in zip(pairs.targets, pairs.predictions, strict=True)
        ]
        if torch.is_grad_enabled():
            self.iteration += 1
        return torch.stack(distances).sum()

    def mine(self, target: Tensor, prediction: Tensor) -> Tensor:
        """The prediction, with a gradient at its hard positions only."""
        # a view of its own: the hook must not touch other uses of the caller's tensor
        mined = prediction.view_as(prediction)
        if mined.requires_grad:
            with torch.no_grad():
                distance = cosine_distance(target, prediction, per_position=True)
                easy = (distance < distance.mean() + self.alpha * distance.std())[:, None]
            mined.register_hook(lambda gradient: gradient.masked_fill(easy, 0))
        return mined


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
