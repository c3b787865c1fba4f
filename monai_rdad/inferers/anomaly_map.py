# SPDX-License-Identifier: Apache-2.0
"""The anomaly map: where and how much teacher and student disagree."""

# No postponed annotations: the class of this file is compiled by TorchScript.
from typing import Any

import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.networks.precision import full_precision

__all__ = ["AnomalyMap", "blur_matrix", "upsample_matrix"]


def upsample_matrix(size_out: int, size_in: int, device: torch.device) -> Tensor:
    """Matrix (size_out, size_in) of linear interpolation with aligned corners."""
    steps = (size_in - 1) / max(size_out - 1, 1)
    positions = torch.arange(size_out, device=device, dtype=torch.float32) * steps
    nodes = torch.arange(size_in, device=device, dtype=torch.float32)
    return (1 - (positions[:, None] - nodes[None]).abs()).clamp_min(0)


def blur_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """Matrix (size, size) of a Gaussian filter truncated at 4 sigma, borders reflected (d c b a | a b c d | d c b a).

    Equal to ``scipy.ndimage.gaussian_filter1d`` with its defaults, for any size of at least 4 sigma.
    """
    radius = int(4.0 * sigma + 0.5)
    distances = torch.arange(2 * size, device=device)
    weights = torch.exp(-0.5 * (distances / sigma) ** 2) * (distances <= radius)
    i, j = distances[:size, None], distances[None, :size]
    kernel = weights[(i - j).abs()] + weights[i + j + 1] + weights[2 * size - 1 - i - j]
    return kernel / kernel.sum(dim=1, keepdim=True)


class AnomalyMap(nn.Module):
    """A network and the map that is read off it, as one module: image in, map out.

    Per scale the distance 1 - cosine over channels, times S * w_l where the network predicts scale weights (S scales,
    equal weights change nothing), bilinearly up-sampled with aligned corners, summed over scales, blurred per image
    (RD4AD, Deng and Li, CVPR 2022, section 3.4). Up-sampling and blur are linear and separable, so both are one
    matrix product per axis and scale instead of a large convolution.

    The state dict has the network's own keys, so a checkpoint of one loads into the other.

    Args:
        network: its forward returns :class:`~monai_rdad.features.FeaturePairs`.
        sigma: standard deviation of the Gaussian in pixels of the input; 0 for none.
    """

    def __init__(self, network: nn.Module, sigma: float = 4.0) -> None:
        super().__init__()
        self.network = network
        self.sigma = sigma
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def forward(self, image: Tensor) -> Tensor:
        """Anomaly map of an image.

        Args:
            image: float (B, 1 or 3, H, W) in [0, 1].

        Returns:
            float32 (B, 1, H, W), values in [0, 2 * pairs].
        """
        pairs: FeaturePairs = self.network(image)
        if torch.jit.is_scripting():
            return self.fuse(pairs, image.shape[2], image.shape[3])
        with full_precision(image.device):
            return self.fuse(pairs, image.shape[2], image.shape[3])

    def fuse(self, pairs: FeaturePairs, height: int, width: int) -> Tensor:
        """Map (B, 1, height, width) of feature pairs."""
        device = pairs.targets[0].device
        total = torch.zeros(1, device=device)
        rows = torch.eye(height, device=device)
        columns = torch.eye(width, device=device)
        if self.sigma > 0:
            rows = blur_matrix(height, self.sigma, device)
            columns = blur_matrix(width, self.sigma, device)
        weights = pairs.weights
        for scale, (target, prediction) in enumerate(zip(pairs.targets, pairs.predictions)):  # noqa: B905
            a, b = target.float(), prediction.float()
            norms = (a * a).sum(1) * (b * b).sum(1)
            distance = 1 - (a * b).sum(1) * torch.rsqrt(norms.clamp_min(1e-12))
            if weights is not None:
                distance = distance * (weights[:, scale, None, None] * len(pairs.targets))
            left = rows @ upsample_matrix(height, distance.shape[1], device)
            right = columns @ upsample_matrix(width, distance.shape[2], device)
            total = total + left @ distance @ right.T
        return total.clamp_min(0)[:, None]


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for key in [k for k in state if k.startswith(prefix + "network.")]:
        state[prefix + key[len(prefix) + len("network.") :]] = state.pop(key)


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    for key in [k for k in state if k.startswith(prefix)]:
        state[f"{prefix}network.{key[len(prefix) :]}"] = state.pop(key)
