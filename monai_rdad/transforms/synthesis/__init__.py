# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies: transforms that corrupt a normal image."""

from __future__ import annotations

from .array import RandSimplexNoise
from .dictionary import RandSimplexNoised

__all__ = ["RandSimplexNoise", "RandSimplexNoised"]
