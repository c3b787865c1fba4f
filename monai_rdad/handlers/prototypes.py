# SPDX-License-Identifier: Apache-2.0
"""How evenly a network's prototypes are used."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.losses import prototype_similarity

__all__ = ["PrototypeUsage"]

logger = logging.getLogger(__name__)


class PrototypeUsage:
    """Ignite handler that counts, per epoch, the tokens whose nearest prototype (by cosine) is each of the M.

    It listens to the network's own forward, so that nothing is computed twice. When the epoch is complete,
    ``engine.state.metrics`` holds ``prototype_entropy``, the entropy of the usage divided by ln M (1: all are used
    equally, 0: one has taken all), and, for a trainer, the usage itself as ``prototype_usage_0`` ...,
    from where they go to MLflow. Under torch.distributed these are the figures of all ranks.

    Args:
        network: returns feature pairs with tokens and prototypes; not wrapped for distribution.

    Attributes:
        usage: shares (M,) of the last complete epoch, or None.
        last: nearest prototypes (B, H, W) of the last forward, int64, on the network's device, or None.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.usage: Tensor | None = None
        self.last: Tensor | None = None
        self._counts: Tensor | None = None
        self._trains = False

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer or evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        self.network.register_forward_hook(self._count)

    def _epoch_started(self, engine: Engine) -> None:
        self._counts = None
        self._trains = hasattr(engine, "optimizer")  # only now: a trainer attaches its handlers before it has one

    @torch.no_grad()
    def _count(self, module: nn.Module, inputs: Any, pairs: FeaturePairs) -> None:
        # a trainer's handler does not count what a validation in between shows to the same network
        if module.training != self._trains or torch.jit.is_tracing():
            return
        if pairs.tokens is None or pairs.prototypes is None:
            raise ValueError("PrototypeUsage needs a network with tokens and prototypes, such as DNP.")
        similarity = prototype_similarity(pairs.tokens, pairs.prototypes)
        nearest = similarity.argmax(2)
        counts = torch.nn.functional.one_hot(nearest, similarity.shape[2]).sum((0, 1))
        self._counts = counts if self._counts is None else self._counts + counts
        self.last = nearest.view(len(nearest), *pairs.targets[0].shape[2:])

    def _epoch_completed(self, engine: Engine) -> None:
        if self._counts is None:
            return
        counts = self._counts
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        self.usage = usage = (counts.double() / counts.sum()).cpu()
        entropy = -(usage * usage.clamp_min(1e-300).log()).sum().item() / math.log(len(usage))
        engine.state.metrics["prototype_entropy"] = entropy
        if self._trains:
            engine.state.metrics.update({f"prototype_usage_{i}": u for i, u in enumerate(usage.tolist())})
        if engine.state.rank == 0:
            logger.info("usage of the prototypes %s, entropy %.3f ln M", [round(u, 3) for u in usage.tolist()], entropy)
