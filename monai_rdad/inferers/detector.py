# SPDX-License-Identifier: Apache-2.0
"""A trained detector as one graph, from an image of any size to its map and score."""

# No postponed annotations: the class of this file is compiled by TorchScript.
from typing import Tuple  # noqa: UP035

import torch
from torch import Tensor, nn

from monai_rdad.transforms.intensity.array import round_to_bytes
from monai_rdad.transforms.score.array import ScoreReduction, reduce_map

__all__ = ["Detector", "resize", "resize_matrix"]


def resize_matrix(size_out: int, size_in: int, device: torch.device) -> Tensor:
    """Float64 matrix (size_out, size_in) of linear interpolation with anti-aliasing along one axis.

    The same weights as ``torch.nn.functional.interpolate(mode="bilinear", antialias=True, align_corners=False)``.
    """
    # a tensor, because an exported graph has no Python number for a size that varies
    scale = torch.ones(1, 1, dtype=torch.float64, device=device) * size_in / size_out
    centres = (torch.arange(size_out, dtype=torch.float64, device=device)[:, None] + 0.5) * scale
    positions = torch.arange(size_in, dtype=torch.float64, device=device)[None] + 0.5
    weights = (1 - (positions - centres).abs() / scale.clamp_min(1.0)).clamp_min(0.0)
    return weights / weights.sum(1, keepdim=True)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Image (B, C, H, W) at another size, as :class:`~monai_rdad.transforms.ResizeInPlane` does it.

    Two matrix products instead of the operator: every runtime has them, and few have the operator's anti-aliasing. In
    float64 in between, as there: one value that is rounded to another byte changes a map by some thousandths.
    """
    rows = resize_matrix(height, image.shape[2], image.device)
    columns = resize_matrix(width, image.shape[3], image.device)
    return (rows @ image.double() @ columns.T).float()


class Detector(nn.Module):
    """What the bundles' inference does between the intensity preset and the files, for export.

    Resizes to the size of the training, rounds to bytes as the cached training images are, runs the network, reduces
    its map to the score, and brings the map back to the size of the image.

    Args:
        network: an :class:`~monai_rdad.inferers.AnomalyMap`.
        size: edge of the images that it was trained on.
        mode: of the score, see :class:`~monai_rdad.transforms.ScoreReduction`.
        fraction: of the pixels that the score "top" averages.

    Raises:
        ValueError: unknown mode, or a fraction outside (0, 1].
    """

    def __init__(self, network: nn.Module, size: int, mode: str = "max", fraction: float = 0.01) -> None:
        super().__init__()
        self.network = network
        self.size = int(size)
        self.mode = mode
        self.count = ScoreReduction(mode, fraction).count(self.size**2)

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
        """Map and score of images.

        Args:
            image: float32 (B, C, H, W) in [0, 1], of any size.

        Returns:
            - map, float32 (B, 1, H, W);
            - score, float32 (B,);
            - the map as the network made it, float32 (B, 1, size, size), from which score and decisions are computed.
        """
        prepared = round_to_bytes(resize(image, self.size, self.size)) / 255
        model_map = self.network(prepared)
        score = reduce_map(model_map.flatten(1), self.mode, self.count)
        return resize(model_map, image.shape[2], image.shape[3]), score, model_map
