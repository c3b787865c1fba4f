# SPDX-License-Identifier: Apache-2.0
"""Normalisation presets, and the conversion to bytes for caching and back."""

from __future__ import annotations

from .array import DequantizeIntensity, NormalizeByPreset, QuantizeIntensity
from .dictionary import DequantizeIntensityd, NormalizeByPresetd, QuantizeIntensityd

__all__ = [
    "DequantizeIntensity",
    "DequantizeIntensityd",
    "NormalizeByPreset",
    "NormalizeByPresetd",
    "QuantizeIntensity",
    "QuantizeIntensityd",
]
