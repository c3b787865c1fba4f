# SPDX-License-Identifier: Apache-2.0
"""Anomaly detection by reverse distillation for medical images, built on MONAI.

Sub-packages are imported when they are first used: ``import monai_rdad`` alone loads nothing else.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

__all__ = ["__version__"]

_SUBMODULES = frozenset(
    ("data", "handlers", "inferers", "losses", "metrics", "networks", "optimizers", "transforms", "utils", "visualize")
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
