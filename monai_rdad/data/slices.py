# SPDX-License-Identifier: Apache-2.0
"""Data sets of slices: each volume is read once, its slices are items of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Compose

__all__ = ["SliceCacheDataset"]


class SliceCacheDataset(CacheDataset):
    """MONAI's ``CacheDataset`` for transforms that make a list of an item, as ``SplitSlicesd`` does of a volume.

    Everything is read and prepared once, when the data set is made; the members of the lists are the items that it
    holds from then on, so that its length is the number of slices.

    Args:
        data: items, for instance a list of :func:`~monai_rdad.data.load_manifest`.
        transform: what precedes its first random transform is cached.
        num_workers: threads that read; None for as many as there are processors.
        progress: whether to show a bar.
    """

    def __init__(
        self, data: Sequence[Any], transform: Compose, num_workers: int | None = 1, progress: bool = True
    ) -> None:
        super().__init__(data, transform, num_workers=num_workers, progress=progress)

    def set_data(self, data: Sequence[Any]) -> None:
        """Reads other items in place of the present ones."""
        super().set_data(data)
        entries = [entry if isinstance(entry, list) else [entry] for entry in self._cache]
        self._cache = [item for entry in entries for item in entry]
        self.data = self._cache
        self.cache_num = len(self._cache)
