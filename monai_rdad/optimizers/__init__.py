# SPDX-License-Identifier: Apache-2.0
"""Optimizers and learning-rate schedules that torch and MONAI do not have."""

from __future__ import annotations

from .cosine import CosineDecay
from .stable_adamw import StableAdamW

__all__ = ["CosineDecay", "StableAdamW"]
