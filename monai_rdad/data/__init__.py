# SPDX-License-Identifier: Apache-2.0
"""Manifests and phantom data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .manifest import SPLITS, ManifestError, list_inputs, load_manifest, manifest_hash, split_by_group

if TYPE_CHECKING:
    from .phantoms import phantom_dataset

__all__ = [
    "SPLITS",
    "ManifestError",
    "list_inputs",
    "load_manifest",
    "manifest_hash",
    "phantom_dataset",
    "split_by_group",
]


def __getattr__(name: str) -> Any:
    # The phantoms need SciPy; who reads a manifest does not.
    if name == "phantom_dataset":
        from .phantoms import phantom_dataset

        return phantom_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
