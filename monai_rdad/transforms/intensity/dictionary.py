# SPDX-License-Identifier: Apache-2.0
"""Dictionary versions of the intensity transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.transforms.traits import RandomizableTrait

from monai_rdad.transforms.intensity.array import DequantizeIntensity, NormalizeByPreset, QuantizeIntensity

__all__ = ["DequantizeIntensityd", "NormalizeByPresetd", "QuantizeIntensityd"]


class NormalizeByPresetd(MapTransform):
    """Dictionary version of :class:`~monai_rdad.transforms.intensity.array.NormalizeByPreset`.

    Args:
        keys: of the images.
        preset: "auto", "8bit", "percentile" or "ct", see there.
        window: (level, width) of "ct".
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        preset: str = "auto",
        window: Sequence[float] = (40.0, 80.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalize = NormalizeByPreset(preset, window)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its images in [0, 1]."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.normalize(d[key])
        return d


class QuantizeIntensityd(MapTransform):
    """Dictionary version of :class:`~monai_rdad.transforms.intensity.array.QuantizeIntensity`.

    Args:
        keys: of the images.
        track_meta: keep the meta data.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(self, keys: KeysCollection, track_meta: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.quantize = QuantizeIntensity(track_meta)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its images as bytes."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.quantize(d[key])
        return d


class DequantizeIntensityd(MapTransform, RandomizableTrait):
    """Dictionary version of :class:`~monai_rdad.transforms.intensity.array.DequantizeIntensity`.

    Declared random for the reason given there: what precedes it is cached.

    Args:
        keys: of the images.
        allow_missing_keys: do not raise if a key is missing.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.dequantize = DequantizeIntensity()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its images as float32."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.dequantize(d[key])
        return d
