# SPDX-License-Identifier: Apache-2.0
"""Volumes through a 2D network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_rdad.inferers.anomaly_map import blur_matrix
from monai_rdad.transforms.slices.array import SliceView, check_axes, foreground_fraction, resized, through_slices

__all__ = ["SlicewiseInferer"]


class SlicewiseInferer(Inferer):
    """Runs a network that makes maps of images on images as they are, and on volumes slice by slice.

    Slices with less foreground than those of the training do not pass through the network; their map is 0. With
    several axes the volume is cut along each of them, and the map is the mean of theirs.

    Args:
        slice_batch_size: number of slices of a volume per forward pass.
        axes: of the body (0, 1, 2 of RAS), across the slices. Volumes come in the view of the first one, as
            ``ReadImage(axis=axes[0])`` gives them.
        min_foreground: fraction of a slice that has to be foreground, as in
            :class:`~monai_rdad.transforms.slices.array.SplitSlices`; 0 leaves no slice out.
        through_plane_sigma: standard deviation, in slices, of a Gaussian across the slices; 0 for none. Slices that
            were left out take no part and stay 0.

    Raises:
        ValueError: wrong axes, or a negative number.
    """

    def __init__(
        self,
        slice_batch_size: int = 8,
        axes: Sequence[int] = (2,),
        min_foreground: float = 0.0,
        through_plane_sigma: float = 0.0,
    ) -> None:
        super().__init__()
        if through_plane_sigma < 0 or not 0 <= min_foreground < 1:
            raise ValueError(
                f"through_plane_sigma is {through_plane_sigma} and min_foreground {min_foreground}: the first must not "
                "be negative, the second must lie in [0, 1)."
            )
        self.slice_batch_size = slice_batch_size
        self.axes = check_axes(axes)
        self.min_foreground = min_foreground
        self.through_plane_sigma = through_plane_sigma

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Map (B, 1, H, W) of images (B, C, H, W), or (B, 1, H, W, D) of volumes (B, C, H, W, D) in [0, 1]."""
        if inputs.ndim == 4:
            return network(inputs, *args, **kwargs)
        # the meta data of a batch do not survive the cutting; they are put back, for Invertd
        volume = convert_to_tensor(inputs, track_meta=False)
        maps = [self._along(axis, volume, network, *args, **kwargs) for axis in self.axes]
        return convert_to_dst_type(torch.stack(maps).mean(0), inputs)[0]

    def _along(self, axis: int, volume: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Map of volumes by their slices across one axis."""
        view = SliceView(self.axes[0], axis)
        slices = through_slices(view(volume))
        planes = resized(slices, (volume.shape[2], volume.shape[3]))
        kept = foreground_fraction(planes) >= self.min_foreground
        maps = torch.zeros(len(slices), 1, *slices.shape[2:], device=slices.device)
        indices = kept.nonzero().flatten()
        for chosen in indices.split(self.slice_batch_size) if len(indices) else ():
            maps[chosen] = resized(network(planes[chosen], *args, **kwargs).float(), (slices.shape[2], slices.shape[3]))
        result = maps.unflatten(0, (len(volume), -1)).movedim(1, -1)
        if self.through_plane_sigma > 0:
            result = self._smooth(result, kept.unflatten(0, (len(volume), -1)))
        return view.inverse(result)

    def _smooth(self, maps: Tensor, kept: Tensor) -> Tensor:
        """Gaussian along the last axis of maps (B, 1, H, W, D) among the slices that are kept (B, D)."""
        weights = blur_matrix(maps.shape[-1], self.through_plane_sigma, maps.device) * kept[:, None, :]
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
        return torch.einsum("bchwd,bed->bchwe", maps, weights * kept[:, :, None])
