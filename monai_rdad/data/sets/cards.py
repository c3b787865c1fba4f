# SPDX-License-Identifier: Apache-2.0
"""The descriptions of public data sets in ``data_manifests/*.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai_rdad.data.manifest import ManifestError
from monai_rdad.data.sets.source import set_names
from monai_rdad.utils import installed_folder

__all__ = ["KEYS", "card", "card_folder"]

KEYS = (
    "name",
    "title",
    "used_by",
    "source",
    "download",
    "layout",
    "licence",
    "citation",
    "modality",
    "organ",
    "format",
    "normal",
    "abnormal",
    "group",
    "split_rule",
    "split",
    "counts",
    "checksums",
    "manifest_sha256",
    "known_problems",
    "unverified",
)
"""Keys of every description; ``data_manifests/README.md`` says what they hold."""


def card_folder() -> Path:
    """Folder of the descriptions: beside the package in a checkout, else where an installation puts it."""
    return installed_folder("data_manifests")


def card(name: str) -> dict[str, Any]:
    """The description of a data set.

    Raises:
        ManifestError: no data set of this name, or no description of it.
    """
    path = card_folder() / f"{name}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(set_names())
        raise ManifestError(f"There is no description {path}. Known data sets: {known}.") from None
    return content
