# SPDX-License-Identifier: Apache-2.0
"""Changes of size."""

from __future__ import annotations

from .array import ResizeInPlane
from .dictionary import ResizeInPlaned

__all__ = ["ResizeInPlane", "ResizeInPlaned"]
