# SPDX-License-Identifier: Apache-2.0
"""Volumes as slices: views along the three axes, foreground, and the slices that a 2D network trains on."""

from __future__ import annotations

from .array import FOREGROUND_LEVEL, SliceView, SplitSlices, check_axes, foreground_fraction, through_slices
from .dictionary import SplitSlicesd

__all__ = [
    "FOREGROUND_LEVEL",
    "SliceView",
    "SplitSlices",
    "SplitSlicesd",
    "check_axes",
    "foreground_fraction",
    "through_slices",
]
