# SPDX-License-Identifier: Apache-2.0
"""Volumes through a 2D network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.inferers import Inferer, SliceInferer
from torch import Tensor

__all__ = ["SlicewiseInferer"]


class SlicewiseInferer(Inferer):
    """Runs a 2D network on images as they are and on volumes slice by slice along the last axis.

    Args:
        slice_batch_size: number of slices of a volume per forward pass.
    """

    def __init__(self, slice_batch_size: int = 8) -> None:
        super().__init__()
        self.slice_batch_size = slice_batch_size

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Network output for an image (B, C, H, W), or for a volume (B, C, H, W, D) with the same last axis."""
        if inputs.ndim == 4:
            return network(inputs, *args, **kwargs)
        inferer = SliceInferer(roi_size=inputs.shape[2:4], sw_batch_size=self.slice_batch_size, spatial_dim=2)
        return inferer(inputs, network, *args, **kwargs)
