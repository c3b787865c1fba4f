# SPDX-License-Identifier: Apache-2.0
"""MONAI transforms: reading, intensities, sizes, corruptions, scores; for arrays, and with a "d" for dictionaries."""

from __future__ import annotations

from .intensity import (
    DequantizeIntensity,
    DequantizeIntensityd,
    NormalizeByPreset,
    NormalizeByPresetd,
    QuantizeIntensity,
    QuantizeIntensityd,
)
from .io import ReadImage, ReadImaged, ReadMask, ReadMaskd
from .score import ScoreReduction, ScoreReductiond
from .spatial import ResizeInPlane, ResizeInPlaned
from .synthesis import RandSimplexNoise, RandSimplexNoised

__all__ = [
    "DequantizeIntensity",
    "DequantizeIntensityd",
    "NormalizeByPreset",
    "NormalizeByPresetd",
    "QuantizeIntensity",
    "QuantizeIntensityd",
    "RandSimplexNoise",
    "RandSimplexNoised",
    "ReadImage",
    "ReadImaged",
    "ReadMask",
    "ReadMaskd",
    "ResizeInPlane",
    "ResizeInPlaned",
    "ScoreReduction",
    "ScoreReductiond",
]
