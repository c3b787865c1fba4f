# SPDX-License-Identifier: Apache-2.0
"""Feature maps in the measure of how features vary among normal images."""

# No postponed annotations: the class of this file is compiled by TorchScript.
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Whitening"]


class Whitening(nn.Module):
    r"""Subtracts the mean of all training positions and divides by their covariance, so that cosines become comparable.

    Features behind a ReLU share a large common part and a few directions of high variance, which decide every cosine.
    The inner product of two outputs is :math:`(a - \mu)^T (\Sigma + \lambda I)^{-1} (b - \mu)` with :math:`\lambda` a
    fraction of the mean variance. Mean and covariance are exact over all batches that :meth:`update` has seen. Before
    the first one the output is the input, scaled.

    Args:
        channels: of the maps.
        shrinkage: :math:`\lambda` as a fraction of the mean variance of the channels.
    """

    mean: Tensor
    moment: Tensor
    count: Tensor
    matrix: Tensor

    def __init__(self, channels: int, shrinkage: float = 0.1) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("moment", torch.zeros(channels, channels))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("matrix", torch.eye(channels), persistent=False)
        self.register_load_state_dict_post_hook(_refresh)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in the positions of maps (N, C, H, W)."""
        rows = x.float().permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        self.count += len(rows)
        share = len(rows) / self.count
        self.mean.lerp_(rows.mean(0), share)
        self.moment.lerp_(rows.T @ rows / len(rows), share)

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the matrix that is applied from the statistics."""
        mean = self.mean.double()
        covariance = self.moment.double() - mean[:, None] * mean[None]
        ridge = self.shrinkage * covariance.diagonal().mean().clamp_min(0) + 1e-6
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(mean), device=mean.device))
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(mean), device=mean.device).double(), upper=False)
        self.matrix = inverse.to(self.matrix)

    def train(self, mode: bool = True) -> "Whitening":
        """As usual; evaluation begins with the matrix of all that was seen."""
        if self.training and not mode:
            self.refresh()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to maps of the same shape, in float32."""
        return F.conv2d(x.float() - self.mean[:, None, None], self.matrix[:, :, None, None])


def _refresh(module: Whitening, incompatible_keys: Any) -> None:
    module.refresh()
