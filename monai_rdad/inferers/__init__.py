# SPDX-License-Identifier: Apache-2.0
"""From feature pairs to anomaly maps, for images and for volumes by slices."""

from __future__ import annotations

from .anomaly_map import AnomalyMap
from .slices import SlicewiseInferer

__all__ = ["AnomalyMap", "SlicewiseInferer"]
