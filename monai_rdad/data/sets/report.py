# SPDX-License-Identifier: Apache-2.0
"""What happened while a manifest was built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["BuildReport"]

_SHOWN = 5


@dataclass
class BuildReport:
    """What happened on the way to a manifest.

    Attributes:
        manifest: path of the manifest.
        counts: images by split and class.
        dropped: number of images that were left out, by reason.
        examples: names of some of them, by reason.
        notes: what a user should know of this download.
        warnings: what deviates from what the description of the set says.
    """

    manifest: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def drop(self, reason: str, names: Sequence[str]) -> None:
        """Count images that are left out."""
        if names:
            self.dropped[reason] = self.dropped.get(reason, 0) + len(names)
            self.examples.setdefault(reason, []).extend(names[:_SHOWN])
