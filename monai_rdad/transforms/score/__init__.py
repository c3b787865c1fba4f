# SPDX-License-Identifier: Apache-2.0
"""From an anomaly map to one score."""

from __future__ import annotations

from .array import ScoreReduction
from .dictionary import ScoreReductiond

__all__ = ["ScoreReduction", "ScoreReductiond"]
