# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies: transforms that corrupt a normal image."""

from __future__ import annotations

from .array import RandCutPaste, RandSimplexNoise
from .cut_paste import CutPasteParameters, cut_paste, draw_cut_paste
from .dictionary import RandCutPasted, RandSimplexNoised

__all__ = [
    "CutPasteParameters",
    "RandCutPaste",
    "RandCutPasted",
    "RandSimplexNoise",
    "RandSimplexNoised",
    "cut_paste",
    "draw_cut_paste",
]
