# SPDX-License-Identifier: Apache-2.0
"""Dictionary versions of the score reductions, for the postprocessing of decollated items."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms.transform import MapTransform

from monai_rdad.transforms.score.array import ScoreReduction

__all__ = ["ScoreReductiond"]


class ScoreReductiond(MapTransform):
    """Writes the score of a map (1, H, W) or (1, H, W, D) into a new key, as a tensor of shape (1,).

    Args:
        keys: of the maps.
        mode: see :class:`~monai_rdad.transforms.score.array.ScoreReduction`.
        fraction: see there.
        output_key: key of the score.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        mode: str = "max",
        fraction: float = 0.01,
        output_key: str = "score",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reduction = ScoreReduction(mode, fraction)
        self.output_key = output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its score."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.output_key] = self.reduction(d[key][None])
        return d
