# SPDX-License-Identifier: Apache-2.0
"""Episodes for few-shot methods: a query and K normal supports of the same task, drawn from several manifests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.transforms import Randomizable
from torch.utils.data import Dataset, Sampler

from monai_rdad.data.inputs import list_inputs
from monai_rdad.data.manifest import Item, ManifestError, load_manifest
from monai_rdad.data.probe import content_digest

__all__ = [
    "SHOTS",
    "EpisodeDataset",
    "EpisodeSampler",
    "draw_support",
    "file_hashes",
    "list_support",
    "load_tasks",
    "task_folder",
    "task_manifests",
]

SHOTS = (2, 8)  # fewest and most support images


def task_manifests(manifests: Sequence[str]) -> dict[str, str]:
    """Name and manifest of each task.

    Args:
        manifests: paths, or ``name=path``, the name without path separators. A task without a name is called as the
            folder that its manifest lies in.

    Raises:
        ManifestError: no manifest, or two tasks of one name.
    """
    tasks: dict[str, str] = {}
    for entry in [manifests] if isinstance(manifests, str) else manifests:
        name, equals, path = entry.partition("=")
        if not equals or "/" in name or os.sep in name:  # a path, with or without "=" in it
            name, path = "", entry
        name = name or Path(path).expanduser().absolute().parent.name
        if name in tasks:
            raise ManifestError(f"two tasks are called '{name}': {tasks[name]} and {path}. Write NAME=PATH for one.")
        tasks[name] = path
    if not tasks:
        raise ManifestError("manifests is empty: name the manifest of at least one task.")
    return tasks


def task_folder(manifests: Sequence[str], name: str | None) -> str:
    """Folder of a task's manifest.

    Raises:
        ManifestError: there is no such task, the message lists them; or ``name`` is "none" or None, no task held out.
    """
    tasks = task_manifests(manifests)
    if name is None or name == "none":
        raise ManifestError("holdout is none: give dataset_dir and manifest of the task to evaluate.")
    if name not in tasks:
        raise ManifestError(
            f"holdout is '{name}', but the tasks are: {', '.join(tasks)}. Name one of these, or give dataset_dir and "
            "manifest of the task to evaluate."
        )
    return str(Path(tasks[name]).expanduser().absolute().parent)


def load_tasks(
    manifests: Sequence[str],
    holdout: str | None = None,
    shots: int = SHOTS[0],
    on_error: Literal["raise", "skip"] = "raise",
) -> list[Item]:
    """Normal training images of every task but one.

    Args:
        manifests: see :func:`task_manifests`; the paths in each are relative to its own folder.
        holdout: name of the task to leave out; "none" (as on the command line) or None to leave out none.
        shots: supports per episode; a task needs one image more.
        on_error: see :func:`~monai_rdad.data.manifest.load_manifest`.

    Returns:
        The items of the ``training`` splits, task by task, each with its "task".

    Raises:
        ManifestError: a manifest cannot be used, no task of the name ``holdout``, none left, or a task has too few
            images.
    """
    if holdout == "none":
        holdout = None
    if holdout is not None:
        task_folder(manifests, holdout)
    tasks = {name: path for name, path in task_manifests(manifests).items() if name != holdout}
    if not tasks:
        raise ManifestError(f"no task is left to train on besides the holdout '{holdout}'. Add manifests.")
    loaded = []
    for name, path in tasks.items():
        items = load_manifest(path, on_error=on_error)["training"]
        if len(items) <= shots:
            raise ManifestError(
                f"task '{name}' has {len(items)} training images; an episode with {shots} supports needs {shots + 1}. "
                "Add images, leave the task out, or lower the shots."
            )
        loaded += [item | {"task": name} for item in items]
    return loaded


class EpisodeDataset(Randomizable, Dataset[dict[str, Any]]):
    """An episode per image: the image as the query, with supports drawn anew every time it is asked for.

    The draws depend on the state set by ``set_random_state`` alone, which
    :class:`~monai_rdad.handlers.ResumableCheckpoint` sets from seed and epoch, and MONAI's ``DataLoader`` in each
    worker.

    Args:
        data: images of all tasks, items with "image", each (C, H, W) of one shape, for instance a
            ``monai.data.CacheDataset`` over what :func:`load_tasks` returns.
        tasks: the task of each item, in the order of ``data``.
        shots: number K of supports.

    Items:
        "image" (C, H, W), "support" (K, C, H, W), "label" 0, "task" the name; never the query among its supports.

    Raises:
        ValueError: no image, ``shots`` below 1, or a task with fewer than ``shots`` + 1 images.
    """

    def __init__(self, data: Sequence[Any], tasks: Sequence[str], shots: int) -> None:
        if shots < 1:
            raise ValueError(f"shots is {shots}, an episode needs at least 1 support.")
        if not len(data) or len(data) != len(tasks):
            raise ValueError(f"{len(data)} images and {len(tasks)} names of tasks: one name per image is needed.")
        self.data = data
        self.tasks = list(tasks)
        self.shots = shots
        self.members: dict[str, list[int]] = {}
        for index, task in enumerate(self.tasks):
            self.members.setdefault(task, []).append(index)
        for task, members in self.members.items():
            if len(members) <= shots:
                raise ValueError(f"task '{task}' has {len(members)} images, too few for {shots} supports and a query.")
        self.set_random_state(0)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The episode whose query is image ``index``."""
        task = self.tasks[index]
        others = [i for i in self.members[task] if i != index]
        chosen = [others[int(i)] for i in self.R.choice(len(others), self.shots, replace=False)]
        image, *support = [torch.as_tensor(self.data[i]["image"]) for i in (index, *chosen)]
        return {"image": image, "support": torch.stack(support), "label": 0, "task": task}


class EpisodeSampler(Sampler[int]):
    """Queries for an epoch: each task equally often, within a task without repetition until all images were drawn.

    Args:
        dataset: to draw from.
        episodes: number per epoch; None for as many as there are images.
        generator: source of the order; seeded by :class:`~monai_rdad.handlers.ResumableCheckpoint` in each epoch.
    """

    def __init__(
        self, dataset: EpisodeDataset, episodes: int | None = None, generator: torch.Generator | None = None
    ) -> None:
        self.members = list(dataset.members.values())
        self.episodes = len(dataset) if episodes is None else episodes
        self.generator = generator if generator is not None else torch.Generator()
        if self.episodes < 1:
            raise ValueError(f"episodes is {episodes}, it must be at least 1 per epoch.")

    def __len__(self) -> int:
        return self.episodes

    def __iter__(self) -> Iterator[int]:
        per_task = -(-self.episodes // len(self.members))
        drawn = []
        for members in self.members:
            rounds = [
                torch.randperm(len(members), generator=self.generator) for _ in range(-(-per_task // len(members)))
            ]
            drawn.append(torch.tensor(members)[torch.cat(rounds)[:per_task]])
        # one query of each task in turn, the tasks in random order, so that every batch is a mixture
        turns = torch.stack(drawn, 1)
        order = torch.rand(turns.shape, generator=self.generator).argsort(1)
        return iter(turns.gather(1, order).flatten()[: self.episodes].tolist())


def _check_count(count: int, source: object) -> None:
    if not SHOTS[0] <= count <= SHOTS[1]:
        raise ValueError(f"{source}: {count} support images; {SHOTS[0]} to {SHOTS[1]} are needed.")


def draw_support(items: Sequence[Item], shots: int, seed: int) -> list[Item]:
    """K items at random; a larger K with the same seed contains the smaller one.

    Raises:
        ValueError: ``shots`` is not between 2 and 8, or there are fewer items.
    """
    _check_count(shots, "shots")
    if len(items) < shots:
        raise ValueError(f"{len(items)} normal images to draw {shots} supports from. Lower shots.")
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))[:shots]]


def list_support(folder: str | os.PathLike[str]) -> list[Item]:
    """Items {"image", "name"} of a folder with 2 to 8 normal images, sorted by name.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no folder, unsupported or broken files, or not 2 to 8 images.
    """
    if Path(folder).expanduser().is_file():
        raise ValueError(f"{folder}: a file. Supports are a folder with {SHOTS[0]} to {SHOTS[1]} normal images.")
    items = list_inputs(folder)
    _check_count(len(items), folder)
    return items


def file_hashes(items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Name -> SHA-256 of the file, in hexadecimal, of items {"image", "name"}."""
    return {str(item["name"]): content_digest(str(item["image"])).hex() for item in items}
