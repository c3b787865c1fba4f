# SPDX-License-Identifier: Apache-2.0
"""Readers of images and masks."""

from __future__ import annotations

from .array import ReadImage, ReadMask
from .dictionary import ReadImaged, ReadMaskd

__all__ = ["ReadImage", "ReadImaged", "ReadMask", "ReadMaskd"]
