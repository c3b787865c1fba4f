# SPDX-License-Identifier: Apache-2.0
"""Supports of few-shot networks, and a watch over what can go wrong with their training."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils.type_conversion import convert_to_tensor
from torch import nn

from monai_rdad.data import file_hashes, list_support
from monai_rdad.networks.support import load_support, save_support, support_images

__all__ = ["EpisodeMonitor", "SupportSet", "support_hash"]

logger = logging.getLogger(__name__)

COLLAPSED = 0.01  # variance of the student's unit vectors below which it tells nothing apart


def _few_shot(network: nn.Module) -> Any:
    """The few-shot network inside distributed wrappers and anomaly maps."""
    inner: Any = network
    while not hasattr(inner, "set_support"):
        following = getattr(inner, "module", None) or getattr(inner, "network", None)
        if following is None:
            raise ValueError(f"{type(network).__name__} is no few-shot network: it has no set_support.")
        inner = following
    return inner


def support_hash(support: str | os.PathLike[str] | Sequence[Mapping[str, Any]]) -> str:
    """Names a set of supports by its images: SHA-256 over the sorted SHA-256 of their files, in hexadecimal.

    A calibration holds for the supports that it was made with; their order and their files' names do not matter.

    Args:
        support: as of :class:`SupportSet`.

    Raises:
        FileNotFoundError, ValueError: see :func:`~monai_rdad.data.list_support` and
            :func:`~monai_rdad.networks.support.support_images`.
    """
    if not isinstance(support, (str, os.PathLike)):
        hashes = file_hashes(support)
    elif Path(support).expanduser().is_dir():
        hashes = file_hashes(list_support(support))
    else:
        hashes = support_images(Path(support).expanduser())
    return hashlib.sha256("".join(sorted(hashes.values())).encode()).hexdigest()


class SupportSet:
    """Ignite handler that sets the supports of a few-shot network.

    With an evaluator it does so at the start, after the handlers before it in the list, so it stands behind the one
    that loads the weights. With a trainer it does so at the end, for the file that goes with the weights.

    Args:
        network: a :class:`~monai_rdad.networks.nets.D24FAD`, also inside wrappers or an
            :class:`~monai_rdad.inferers.AnomalyMap`.
        support: list of items {"image": path, "name": text}, a folder with 2 to 8 normal images, or a support file.
        transform: from an item to one whose "image" is (C, H, W) in [0, 1]: that of the queries.
        save_to: file to write the supports to; not written where they come from a file.

    Raises:
        FileNotFoundError, ValueError: (when it sets them) see :func:`~monai_rdad.data.list_support` and
            :func:`~monai_rdad.networks.support.load_support`, or an image that is a volume.
    """

    def __init__(
        self,
        network: nn.Module,
        support: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        save_to: str | os.PathLike[str] | None = None,
    ) -> None:
        self.network = network
        self.support = support
        self.transform = transform
        self.save_to = save_to

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer or evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)

    def _started(self, engine: Engine) -> None:
        # only now: while handlers are attached a MONAI trainer has no optimizer yet
        if not hasattr(engine, "optimizer"):
            self._set(engine)
        elif not engine.has_event_handler(self._set, Events.COMPLETED):
            engine.add_event_handler(Events.COMPLETED, self._set)

    def _set(self, engine: Engine) -> None:
        network = _few_shot(self.network)
        if not hasattr(engine, "optimizer"):
            # MONAI's evaluator brings a network back to training mode after each batch that it found in it, and a
            # network that trains forgets its supports.
            engine.network.eval()
        if isinstance(self.support, (str, os.PathLike)):
            if not Path(self.support).expanduser().is_dir():
                load_support(Path(self.support).expanduser(), network)
                return
            items: Sequence[Mapping[str, Any]] = list_support(self.support)
        else:
            items = self.support
        images = [convert_to_tensor(self.transform(dict(item))["image"], track_meta=False) for item in items]
        for item, image in zip(items, images, strict=True):
            if image.ndim != 3:
                raise ValueError(f"{item['image']}: a volume, but supports are 2D images. Save slices of it as images.")
        network.set_support(torch.stack(images).to(next(network.parameters()).device))
        logger.info("supports: %s", ", ".join(str(item["name"]) for item in items))
        if self.save_to is not None and engine.state.rank == 0:
            save_support(self.save_to, network, file_hashes(items))


class EpisodeMonitor:
    """Ignite handler for a trainer: puts what can go wrong with a few-shot training into the metrics of each epoch.

    ``support_entropy``: of the supports' weights, as a fraction of log K; near 0, one support takes all.
    ``student_spread``: variance of the student's unit vectors over the batch; near 0, the student is a constant, which
    is also said in a warning.

    Args:
        network: a :class:`~monai_rdad.networks.nets.D24FAD`, also inside wrappers.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._completed)

    def _completed(self, engine: Engine) -> None:
        network = _few_shot(self.network)
        spread = float(network.spread)
        engine.state.metrics.update(support_entropy=float(network.entropy), student_spread=spread)
        if spread < COLLAPSED:
            logger.warning(
                "the student's features hardly differ between images (spread %.4f): raise distillation or lower "
                "self_distillation",
                spread,
            )
