# SPDX-License-Identifier: Apache-2.0
"""Feature maps in the measure of how features differ among normal images."""

# No postponed annotations: the class of this file is compiled by TorchScript.
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_rdad.networks.blocks.matching import unit

__all__ = ["Whitening"]


class Whitening(nn.Module):
    r"""Divides unit vectors by how those of a normal image differ from their best matches in other normal images.

    Features behind a ReLU share a large common part and a few directions of high variance, which decide every cosine.
    With :math:`\Sigma` the second moment of the differences between matched vectors of normal images of one organ,
    pooled over organs, the inner product of two outputs is :math:`a^T (\Sigma + \lambda I)^{-1} b`, :math:`\lambda` a
    fraction of the mean variance: directions in which normal images differ anyway count little (within-class covariance
    normalisation, Hatch et al., Interspeech 2006). Of all linear maps it is the one under which normal images and their
    matches are most alike at a given volume. The moment is exact over all batches that :meth:`update` has seen; before
    the first one the output is the input at unit length, scaled.

    Args:
        channels: of the maps.
        shrinkage: :math:`\lambda` as a fraction of the mean variance of the channels.
    """

    moment: Tensor
    count: Tensor
    matrix: Tensor

    def __init__(self, channels: int, shrinkage: float = 0.1) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.register_buffer("moment", torch.zeros(channels, channels))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("matrix", torch.eye(channels), persistent=False)
        self.register_load_state_dict_post_hook(_refresh)

    @torch.no_grad()
    def update(self, target: Tensor, prediction: Tensor) -> None:
        """Take in the differences of matched maps (N, C, H, W)."""
        rows = (unit(target, [1]) - unit(prediction, [1])).permute(0, 2, 3, 1).reshape(-1, target.shape[1])
        self.count += len(rows)
        self.moment.lerp_(rows.T @ rows / len(rows), len(rows) / self.count)

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the matrix that is applied from the moment."""
        moment = self.moment.double()
        identity = torch.eye(len(moment), device=moment.device).double()
        ridge = self.shrinkage * moment.diagonal().mean() + 1e-6
        factor = torch.linalg.cholesky(moment + ridge * identity)
        self.matrix = torch.linalg.solve_triangular(factor, identity, upper=False).to(self.matrix)

    def train(self, mode: bool = True) -> "Whitening":
        """As usual; evaluation begins with the matrix of all that was seen."""
        if self.training and not mode:
            self.refresh()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to maps of the same shape, in float32."""
        return F.conv2d(unit(x, [1]), self.matrix[:, :, None, None])


def _refresh(module: Whitening, incompatible_keys: Any) -> None:
    module.refresh()
