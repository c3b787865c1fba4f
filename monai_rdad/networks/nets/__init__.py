# SPDX-License-Identifier: Apache-2.0
"""One file per method."""

from __future__ import annotations

from .d24fad import D24FAD
from .dnp import DNP, image_divisor
from .esc_drkd import ESCDRKD
from .rd4ad import RD4AD
from .recontrast import ReContrast
from .scrd import SCRD

__all__ = ["D24FAD", "DNP", "ESCDRKD", "RD4AD", "SCRD", "ReContrast", "image_divisor"]
