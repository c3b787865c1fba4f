# SPDX-License-Identifier: Apache-2.0
"""Progress that is seen in a terminal and in a log file."""

from __future__ import annotations

import sys
import time
from typing import TextIO

import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

__all__ = ["Progress"]


class Progress:
    """One bar per run of an engine in a terminal; where standard error is none, a plain line every few seconds.

    Shows iterations done of all (over all epochs of a trainer), elapsed and remaining time, iterations per second,
    the epoch of a trainer and its latest loss. The loss is fetched only when it is shown, because fetching waits for
    the device. (Ignite's own ``ProgressBar`` starts a bar per epoch, so that it never shows the time that the whole
    training takes, and writes carriage returns into log files.)

    Args:
        name: what is running, for instance "train".
        interval: seconds between two plain lines.
        stream: where to write; None for standard error.
    """

    def __init__(self, name: str, interval: float = 5.0, stream: TextIO | None = None) -> None:
        self.name = name
        self.interval = interval
        self.stream = stream
        self._bar: tqdm[None] | None = None
        self._last_line = -float("inf")

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer or evaluator."""
        if engine.state.rank == 0:
            engine.add_event_handler(Events.STARTED, self._started)
            engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
            engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self._running = False

    def _epoch_started(self, engine: Engine) -> None:
        if self._running:
            return
        # Here and not at STARTED, where another handler may yet restore the iteration of a resumed training.
        self._running = True
        state = engine.state
        trainer = hasattr(engine, "optimizer")
        # On resuming, earlier iterations count as done but not for the speed.
        self._initial = state.iteration
        # An evaluator counts the trainer's epochs but runs one.
        self._total = None if state.epoch_length is None else state.epoch_length * (state.max_epochs if trainer else 1)
        self._start = time.monotonic()
        self._out = sys.stderr if self.stream is None else self.stream
        if self._out.isatty():
            # A trainer's bar stays on the screen; an evaluator's, which may come once per epoch, makes room.
            self._bar = tqdm(
                desc=self.name,
                total=self._total,
                initial=self._initial,
                file=self._out,
                leave=trainer,
                dynamic_ncols=True,
            )

    def _iteration_completed(self, engine: Engine) -> None:
        if self._bar is not None:
            # update() tells whether it drew, which it does a few times per second.
            if self._bar.update(engine.state.iteration - self._bar.n):
                self._bar.set_postfix_str(self._details(engine))
        elif time.monotonic() - max(self._last_line, self._start) >= self.interval:
            self._print(engine)

    def _completed(self, engine: Engine) -> None:
        if not self._running:  # a resumed training that was complete already
            return
        if self._bar is not None:
            self._bar.set_postfix_str(self._details(engine))
            self._bar.close()
            self._bar = None
        # The end of a training and of whatever has shown a line; of short validations in between not each time.
        elif (
            hasattr(engine, "optimizer")
            or self._last_line > self._start
            or time.monotonic() - self._last_line >= self.interval
        ):
            self._print(engine)

    def _print(self, engine: Engine) -> None:
        self._last_line = now = time.monotonic()
        line = tqdm.format_meter(
            engine.state.iteration,
            self._total,
            now - self._start,
            prefix=self.name,
            initial=self._initial,
            postfix=self._details(engine),
            bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )
        print(line, file=self._out, flush=True)

    def _details(self, engine: Engine) -> str:
        if not hasattr(engine, "optimizer"):
            return ""
        output = engine.state.output
        loss = float(torch.as_tensor((output if isinstance(output, dict) else output[0])["loss"]).detach())
        return f"epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {loss:.4f}"
