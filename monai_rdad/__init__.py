# SPDX-License-Identifier: Apache-2.0
"""Anomaly detection by reverse distillation for medical images, built on MONAI."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
