# SPDX-License-Identifier: Apache-2.0
"""The tuple that every network of this package returns and every loss and anomaly map reads."""

# No postponed annotations here: TorchScript reads the field types of a NamedTuple at class creation.
from typing import List, NamedTuple, Optional  # noqa: UP035

from torch import Tensor

__all__ = ["FeaturePairs"]


class FeaturePairs(NamedTuple):
    """Feature maps to be compared, one entry per scale, finest scale first; of several branches, one after the other.

    In training a network may append further pairs for the loss; without a corrupted image it returns those of the map.

    Few-shot networks in training have two runs of scales: query and supports, then teacher and student.

    Args:
        targets: teacher maps, each (B, C_l, H_l, W_l), without gradient; of a few-shot network the supports' maps.
        predictions: student maps of the same shapes; of a few-shot network the query's.
        weights: optional weight of each scale per image, (B, scales), non-negative, each row summing to 1.
        negatives: optional teacher maps of a corrupted image, which the predictions shall stay away from.
        tokens: optional features (B, N, C) that prototypes stand for, N = H_0 * W_0 positions in row order.
        prototypes: optional vectors (B, M, C) that the image was summarised by.
    """

    targets: List[Tensor]  # noqa: UP006
    predictions: List[Tensor]  # noqa: UP006
    weights: Optional[Tensor] = None  # noqa: UP045
    negatives: Optional[List[Tensor]] = None  # noqa: UP006, UP045
    tokens: Optional[Tensor] = None  # noqa: UP045
    prototypes: Optional[Tensor] = None  # noqa: UP045
