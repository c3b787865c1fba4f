# SPDX-License-Identifier: Apache-2.0
"""What a training step needs beyond loss and optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

__all__ = ["GradientClipping", "MomentumUpdate"]


class _Follows(Protocol):
    def update_teacher(self) -> None: ...


class GradientClipping:
    """Ignite handler that limits the common norm of some gradients between backward and optimizer step.

    Args:
        parameters: whose gradients are scaled down together.
        max_norm: largest norm that stays as it is.

    Raises:
        ValueError: a norm that is not positive.
    """

    def __init__(self, parameters: Iterable[Tensor], max_norm: float) -> None:
        if max_norm <= 0:
            raise ValueError(f"max_norm is {max_norm}, it must be above 0.")
        self.parameters = list(parameters)
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        clip_grad_norm_(self.parameters, self.max_norm)


class MomentumUpdate:
    """Ignite handler that lets a network's teacher follow after each step of the optimizer.

    Under torch.distributed all ranks hold the same parameters and do the same update.

    Args:
        network: with a method ``update_teacher()``, not wrapped for distribution.
    """

    def __init__(self, network: _Follows) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)

    def _update(self, engine: Engine) -> None:
        self.network.update_teacher()
