# SPDX-License-Identifier: Apache-2.0
"""Manifests, few-shot episodes and phantom data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .inputs import list_inputs
from .manifest import (
    SPLITS,
    ManifestError,
    data_record,
    load_manifest,
    manifest_hash,
    manifest_title,
    split_by_group,
)
from .probe import is_volume, uniform_batch_size

if TYPE_CHECKING:
    from .episodes import (
        EpisodeDataset,
        EpisodeSampler,
        draw_support,
        file_hashes,
        list_support,
        load_tasks,
        task_folder,
        task_manifests,
    )
    from .phantoms import phantom_dataset
    from .slices import SliceCacheDataset
    from .task_phantoms import phantom_tasks

__all__ = [
    "SPLITS",
    "EpisodeDataset",
    "EpisodeSampler",
    "ManifestError",
    "SliceCacheDataset",
    "data_record",
    "draw_support",
    "file_hashes",
    "is_volume",
    "list_inputs",
    "list_support",
    "load_manifest",
    "load_tasks",
    "manifest_hash",
    "manifest_title",
    "phantom_dataset",
    "phantom_tasks",
    "split_by_group",
    "task_folder",
    "task_manifests",
    "uniform_batch_size",
]

# The phantoms need SciPy, episodes and slices torch; who reads a manifest does not.
_LATER = {"phantom_dataset": "phantoms", "phantom_tasks": "task_phantoms", "SliceCacheDataset": "slices"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_LATER.get(name, 'episodes')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
