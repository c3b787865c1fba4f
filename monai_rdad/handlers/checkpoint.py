# SPDX-License-Identifier: Apache-2.0
"""Training that can be stopped and resumed without a trace, and the weights for inference."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.networks.utils import get_state_dict
from torch.nn.parallel import DataParallel, DistributedDataParallel

import monai_rdad
from monai_rdad.handlers.trained import save_trained
from monai_rdad.utils import atomic_path

__all__ = ["ResumableCheckpoint", "seed_epoch"]

logger = logging.getLogger(__name__)

RESERVED = ("epoch", "iteration", "seed", "settings", "metadata", "scaler")
EXTENSIBLE = ("max_epochs",)  # settings that a resumed training may change


def seed_epoch(loader: Any, seed: int, epoch: int, rank: int = 0) -> None:
    """Seed every source of randomness of one epoch as a function of (seed, epoch, rank) alone.

    These are the global generators of torch (all devices), NumPy and Python, the random transforms of the loader's
    data set, and the generators of the loader and its sampler. Worker processes take their seeds from the loader's
    generator when its iterator is made, so that an iterator made after this call is seeded as well.

    Args:
        loader: data loader of the epoch; its data set may hold MONAI random transforms at any depth.
        seed: of the whole training, at least 0.
        epoch: number of the epoch, from 1.
        rank: of this process; each gets its own random numbers, because each sees other images.
    """
    words = np.random.SeedSequence((seed, epoch, rank)).generate_state(4)
    word = [int(w) for w in words]
    torch.manual_seed(word[0])
    np.random.seed(word[1])  # noqa: NPY002 - transforms of others may draw from the global state
    random.seed(word[2])
    set_rnd(getattr(loader, "dataset", loader), word[3])
    for holder in (loader, getattr(loader, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(word[0])


class ResumableCheckpoint:
    """Ignite handler for a MONAI trainer: reseeds each epoch, saves, resumes, and writes the weights for inference.

    Nothing random outlives an epoch: at its start every generator is seeded by (seed, epoch), then the loader's
    iterator is made anew. So the data order and all corruptions of epoch e are the same whether the run came from
    epoch e - 1 or from a file, for any number of workers, and no generator state needs saving. (Ignite itself makes
    the iterator after ``EPOCH_STARTED`` too, but from the second epoch on only when the old one has run out: that
    draws from the new epoch's generator, because torch's ``RandomSampler`` makes one more permutation at its end, and
    an old one that has not run out, where ``epoch_length`` is shorter than the loader, is carried over.)

    Written to ``save_dir``, each file complete or not at all, by the process of rank 0 only:

    - ``filename`` after every ``interval`` epochs and after the last one, when all other handlers of the epoch are
      done (schedulers have stepped): the state dicts of ``objects`` under their names, the gradient scaler if there
      is one, "epoch", "iteration", "seed" and "metadata". Loads with ``weights_only=True``.
    - what :func:`~monai_rdad.handlers.trained.save_trained` writes, when training is complete: ``model.pt``, the
      weights for inference, and ``model.json``, the settings that belong to them.

    Args:
        save_dir: folder of the files.
        objects: what to save and restore, at least "network"; each has ``state_dict`` and ``load_state_dict``.
        seed: of the training, at least 0.
        resume: restore from ``filename`` at the start and go on with the next epoch, up to ``max_epochs``.
        interval: epochs between two checkpoints.
        filename: of the checkpoint.
        settings: for ``model.json``; a training is resumed with the same ones only.
        data: for ``model.json``, what the network is trained on, see :func:`~monai_rdad.data.data_record`.

    Raises:
        TypeError: ``settings`` or ``data`` holds something that JSON cannot.
        ValueError: no "network" in ``objects``, a reserved name in it, or an interval below 1.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        objects: Mapping[str, Any],
        seed: int,
        resume: bool = False,
        interval: int = 1,
        filename: str = "checkpoint.pt",
        settings: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        if "network" not in objects:
            raise ValueError(f"objects must hold 'network', it holds: {', '.join(objects) or 'nothing'}.")
        if reserved := [name for name in objects if name in RESERVED]:
            raise ValueError(f"objects may not be named {', '.join(reserved)}: the checkpoint uses these itself.")
        if interval < 1:
            raise ValueError(f"interval is {interval}, it must be at least 1 epoch.")
        self.save_dir = Path(save_dir)
        self.path = self.save_dir / filename
        self.objects = dict(objects)
        self.seed = seed
        self.resume = resume
        self.interval = interval
        self.settings = dict(settings or {})
        self.data = dict(data or {})
        json.dumps([self.settings, self.data])  # fails now and not after the training

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)

    def _started(self, engine: Engine) -> None:
        loader = engine.data_loader
        if getattr(loader, "persistent_workers", False):
            raise ValueError(
                "The training data loader has persistent_workers: their random state would outlive the epoch, and a "
                "resumed run would differ from one that never stopped. Set persistent_workers to false."
            )
        # Only now, so that these come after every handler that was attached, whatever its place in the list.
        for event, handler in ((Events.EPOCH_COMPLETED, self._epoch_completed), (Events.COMPLETED, self._completed)):
            if not engine.has_event_handler(handler, event):
                engine.add_event_handler(event, handler)
        if self.resume:
            self._restore(engine)

    def _epoch_started(self, engine: Engine) -> None:
        seed_epoch(engine.data_loader, self.seed, engine.state.epoch, engine.state.rank)
        engine.set_data(engine.data_loader)

    def _epoch_completed(self, engine: Engine) -> None:
        state = engine.state
        if (state.epoch % self.interval == 0 or state.epoch == state.max_epochs) and state.rank == 0:
            self._save(engine)

    def _completed(self, engine: Engine) -> None:
        if engine.state.rank != 0:
            return
        path = save_trained(self.save_dir, self.objects["network"], self.settings, self.data)
        logger.info("training is complete, weights: %s", path)

    def _save(self, engine: Engine) -> None:
        content = {name: get_state_dict(obj) for name, obj in self._all_objects(engine).items()}
        content |= {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "seed": self.seed,
            "settings": self.settings,
            "metadata": {
                "epoch_length": engine.state.epoch_length,
                "max_epochs": engine.state.max_epochs,
                "monai_rdad": monai_rdad.__version__,
                "torch": str(torch.__version__),
                "monai": version("monai"),
            },
        }
        with atomic_path(self.path) as path:
            torch.save(content, path)
            # A state that cannot be read back is found out now and not after the crash. Mapped: no tensor is read.
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def _restore(self, engine: Engine) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(
                f"There is no checkpoint to resume from: {self.path}. Train without resume first, or give the folder "
                "that holds the checkpoint."
            )
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{self.path} cannot be read as a checkpoint ({error}). Train anew.") from error
        objects = self._all_objects(engine)
        expected = {*objects, *RESERVED} - ({"scaler"} - set(objects))
        if not isinstance(content, dict) or set(content) != expected:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(
                f"{self.path} does not belong to this configuration: it holds {found}, needed is {sorted(expected)}."
            )
        length = content["metadata"]["epoch_length"]
        settings = {name for name in {*self.settings, *content["settings"]} if name not in EXTENSIBLE}
        for what, old, new in (
            ("seed", content["seed"], self.seed),
            ("number of iterations per epoch (data and batch size)", length, engine.state.epoch_length),
            *((name, content["settings"].get(name), self.settings.get(name)) for name in sorted(settings)),
        ):
            if old != new:
                raise ValueError(
                    f"{self.path} was written with another {what}: {old}, now it is {new}. Resume with the same "
                    "setting, or train anew."
                )
        if content["epoch"] > engine.state.max_epochs:
            raise ValueError(
                f"{self.path} has {content['epoch']} epochs, more than max_epochs = {engine.state.max_epochs}. "
                "Raise max_epochs, or train anew."
            )
        for name, obj in objects.items():
            try:
                obj.load_state_dict(content[name])
            except Exception as error:
                raise ValueError(f"{self.path}: '{name}' does not fit this configuration: {error}") from error
        engine.state.epoch = content["epoch"]
        engine.state.iteration = content["iteration"]
        logger.info("resumed from %s after epoch %d", self.path, content["epoch"])

    def _all_objects(self, engine: Engine) -> dict[str, Any]:
        """The objects without distributed wrappers, and the gradient scaler that the trainer made, if it did."""
        objects = {
            k: v.module if isinstance(v, DataParallel | DistributedDataParallel) else v for k, v in self.objects.items()
        }
        if getattr(engine, "scaler", None) is not None:
            objects["scaler"] = engine.scaler
        return objects
