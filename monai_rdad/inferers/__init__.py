# SPDX-License-Identifier: Apache-2.0
"""From feature pairs to anomaly maps, for images and for volumes by slices, and the whole path for export."""

from __future__ import annotations

from .anomaly_map import AnomalyMap
from .detector import Detector
from .slices import SlicewiseInferer

__all__ = ["AnomalyMap", "Detector", "SlicewiseInferer"]
