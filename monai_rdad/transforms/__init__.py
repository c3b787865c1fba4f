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
from .slices import SplitSlices, SplitSlicesd
from .spatial import ResizeInPlane, ResizeInPlaned
from .synthesis import (
    CutPasteParameters,
    RandCutPaste,
    RandCutPasted,
    RandSimplexNoise,
    RandSimplexNoised,
    cut_paste,
    draw_cut_paste,
)

__all__ = [
    "CutPasteParameters",
    "DequantizeIntensity",
    "DequantizeIntensityd",
    "NormalizeByPreset",
    "NormalizeByPresetd",
    "QuantizeIntensity",
    "QuantizeIntensityd",
    "RandCutPaste",
    "RandCutPasted",
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
    "SplitSlices",
    "SplitSlicesd",
    "cut_paste",
    "draw_cut_paste",
]
