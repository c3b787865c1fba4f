# SPDX-License-Identifier: Apache-2.0
"""Public data sets: from a download as it unpacks to a manifest."""

from __future__ import annotations

from .build import build_manifest
from .cards import card, card_folder
from .report import BuildReport
from .source import Record, Source, builder_options, set_names

__all__ = [
    "BuildReport",
    "Record",
    "Source",
    "build_manifest",
    "builder_options",
    "card",
    "card_folder",
    "set_names",
]
