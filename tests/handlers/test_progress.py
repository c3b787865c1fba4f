# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

from monai_rdad.handlers import progress
from monai_rdad.handlers.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that an iteration moves by a second."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def tick(self, _: Engine) -> None:
        self.now += 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(progress, "time", fake)
    return fake


def engine(
    kind: str, handler: Progress, clock: Clock | None = None, length: int = 8, rank: int = 0, **kwargs: Any
) -> Any:
    network = nn.Conv2d(1, 1, 1)
    data = [{"image": torch.ones(1, 1, 2, 2)}] * length
    if kind == "trainer":
        result: Any = SupervisedTrainer(
            device="cpu",
            max_epochs=kwargs.get("epochs", 2),
            train_data_loader=data,
            network=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
            loss_function=lambda pred, _: (pred * 0).mean() + 0.25,
            decollate=kwargs.get("decollate", False),
        )
    else:
        result = SupervisedEvaluator(device="cpu", val_data_loader=data, network=network, decollate=False)
    if clock is not None:
        result.add_event_handler(Events.ITERATION_STARTED, clock.tick)
    result.state.rank = rank
    handler.attach(result)
    return result


@pytest.mark.parametrize("decollate", [False, True])
def test_lines_of_a_training(clock: Clock, decollate: bool) -> None:
    out = io.StringIO()
    engine("trainer", Progress("train", stream=out), clock, decollate=decollate).run()
    assert out.getvalue().splitlines() == [
        "train: 5/16 [00:05<00:11,  1.00it/s, epoch 1/2, loss 0.2500]",
        "train: 10/16 [00:10<00:06,  1.00it/s, epoch 2/2, loss 0.2500]",
        "train: 15/16 [00:15<00:01,  1.00it/s, epoch 2/2, loss 0.2500]",
        "train: 16/16 [00:16<00:00,  1.00it/s, epoch 2/2, loss 0.2500]",
    ]


def test_resumed_iterations_do_not_count_for_the_speed(clock: Clock) -> None:
    out = io.StringIO()
    trainer = engine("trainer", Progress("train", stream=out), clock)

    @trainer.on(Events.STARTED)  # after the progress handler, as a checkpoint handler may be
    def resume(e: Engine) -> None:
        e.state.epoch, e.state.iteration = 1, 8

    trainer.run()
    assert out.getvalue().splitlines()[0] == "train: 13/16 [00:05<00:03,  1.00it/s, epoch 2/2, loss 0.2500]"


def test_validations_are_not_told_each_time(clock: Clock) -> None:
    out = io.StringIO()
    handler = Progress("validate", stream=out)
    evaluator = engine("evaluator", handler, clock, length=2)
    for epoch in range(1, 7):
        evaluator.run(epoch)
    lines = out.getvalue().splitlines()
    assert all(line.startswith("validate: 2/2 [00:02<00:00") for line in lines)
    assert len(lines) == 2  # in 12 seconds
    for length, counts in ((3, ["3/3"]), (11, ["5/11", "10/11", "11/11"])):
        alone = io.StringIO()
        engine("evaluator", Progress("evaluate", stream=alone), clock, length=length).run()
        assert [line.split()[1] for line in alone.getvalue().splitlines()] == counts


def test_bar_in_a_terminal() -> None:
    out = Terminal()
    engine("trainer", Progress("train", stream=out), length=3).run()
    drawn = re.split("\r", out.getvalue())
    assert re.search(r"train: 100%.*6/6.*epoch 2/2, loss 0.2500", drawn[-1])
    assert out.getvalue().endswith("\n")

    out = Terminal()
    engine("evaluator", Progress("validate", stream=out), length=3).run()
    assert "validate:" in out.getvalue()
    assert not out.getvalue().rstrip(" \r").endswith("\n")  # wiped, it makes room


def test_other_ranks_are_silent(clock: Clock) -> None:
    out = io.StringIO()
    engine("trainer", Progress("train", stream=out, interval=0), clock, rank=1).run()
    assert not out.getvalue()


def test_nothing_left_to_do(clock: Clock) -> None:
    out = io.StringIO()
    trainer = engine("trainer", Progress("train", stream=out), clock)

    @trainer.on(Events.STARTED)
    def resume(e: Engine) -> None:
        e.state.epoch, e.state.iteration = 2, 16

    trainer.run()
    assert not out.getvalue()
