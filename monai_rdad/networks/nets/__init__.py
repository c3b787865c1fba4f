# SPDX-License-Identifier: Apache-2.0
"""One file per method."""

from __future__ import annotations

from .dnp import DNP, image_divisor
from .rd4ad import RD4AD
from .scrd import SCRD

__all__ = ["DNP", "RD4AD", "SCRD", "image_divisor"]
