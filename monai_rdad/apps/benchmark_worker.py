# SPDX-License-Identifier: Apache-2.0
"""Runs of a benchmark in processes of their own, each of which makes one run after the other."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from monai_rdad.apps.benchmark_plan import (
    FAILED,
    LOG,
    RUN,
    STARTED,
    TRAINED,
    Run,
    evaluation_settings,
    training_settings,
)
from monai_rdad.apps.command import describe_error
from monai_rdad.utils import atomic_path

__all__ = ["Context", "execute", "execute_all", "remove_run", "write_json"]

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Context:
    """What all runs of one start of a benchmark share.

    Attributes:
        tracking_uri: of MLflow, or "none".
        parent: identifier of the benchmark's run in MLflow, None without tracking.
        keep_models: whether the weights of a finished run stay.
        processes: how many runs at a time; each gets its share of torch's threads unless ``OMP_NUM_THREADS`` is set.
        record: for ``run.json``: commit, versions, command.
    """

    tracking_uri: str
    parent: str | None
    keep_models: bool
    processes: int
    record: Mapping[str, Any]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, complete or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def execute(run: Run, context: Context) -> None:
    """Train, or go on with a training, and evaluate; what is finished is not done again.

    In the run's folder: ``settings.json`` when it starts, the bundle's ``models/`` and ``eval/``, ``training.json``
    when the training is complete, ``run.json`` when all is. Then the state to resume from is removed, and the weights
    too unless they are wanted.

    Raises:
        Exception: whatever the bundle raises.
    """
    import torch

    from monai_rdad.apps.bundle import run_bundle
    from monai_rdad.handlers.mlflow import TAGS_VARIABLE

    folder, files = run.folder, run.method.config_files
    (folder / FAILED).unlink(missing_ok=True)
    for unfinished in list(folder.rglob(".writing-*")):  # of a process that was killed while it wrote
        shutil.rmtree(unfinished, ignore_errors=True)
    write_json(folder / STARTED, {"identity": run.identity, "settings": run.settings})
    places = {
        "bundle_root": str(folder),
        "dataset_dir": str(run.data.dataset_dir),
        "manifest": str(run.data.manifest),
        "seed": run.seed,
        "tracking_uri": context.tracking_uri,
    }
    if context.parent is not None:
        tags = {"method": run.method.name, "data": run.data.name, "seed": str(run.seed)}
        os.environ[TAGS_VARIABLE] = json.dumps({"mlflow.parentRunId": context.parent} | tags)
    training = run.read(TRAINED)
    if training is None:
        resume = (folder / "models" / CHECKPOINT).is_file()
        start = time.perf_counter()
        run_bundle(run.method.bundle, "train", training_settings(run) | places | {"resume": resume}, files)
        # After an interruption nobody knows how long the first part took.
        training = {"seconds": None if resume else round(time.perf_counter() - start, 1)}
        write_json(folder / TRAINED, training)
    start = time.perf_counter()
    run_bundle(run.method.bundle, "evaluate", evaluation_settings(run) | places, files)
    seconds = round(time.perf_counter() - start, 1)
    metrics = json.loads((folder / "eval" / "metrics.json").read_text(encoding="utf-8"))
    content = {
        "method": run.method.name,
        "data": run.data.name,
        "seed": run.seed,
        "metrics": metrics,
        "train_seconds": training["seconds"],
        "evaluate_seconds": seconds,
        "identity": run.identity,
        "settings": run.settings,
        "dataset_dir": str(run.data.dataset_dir),
        "manifest": str(run.data.manifest),
        "threads": torch.get_num_threads(),  # sums in another order round differently
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(folder / RUN, content | dict(context.record))
    for file in (folder / "models").glob(CHECKPOINT if context.keep_models else "*.pt"):
        file.unlink()


def execute_all(runs: Sequence[Run], context: Context, report: Callable[[Run, float, str | None], None]) -> None:
    """Make the runs in worker processes.

    A run that fails, or that takes its process down with it, leaves a ``failed.json``; the others go on.

    Args:
        runs: in this order.
        context: of all of them.
        report: called after each with its seconds and its error, None for success.
    """
    waiting = deque(runs)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.run is not None for worker in workers):
            while waiting and len(workers) < context.processes:
                workers.append(_Worker(context))
            for worker in workers:
                if worker.run is None and waiting:
                    worker.give(waiting.popleft())
            busy: dict[Any, _Worker] = {worker.connection: worker for worker in workers if worker.run is not None}
            for ready in multiprocessing.connection.wait(list(busy)):
                worker = busy[ready]
                run, seconds = worker.run, time.monotonic() - worker.start
                assert run is not None
                try:
                    error = worker.take()
                except (EOFError, OSError):
                    error = worker.death()
                    workers.remove(worker)
                    write_json(run.folder / FAILED, {"error": error})
                report(run, seconds, error)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process and the run that it makes."""

    def __init__(self, context: Context) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy locked locks of torch's threads
        self.connection, theirs = spawn.Pipe()
        self.process: BaseProcess = spawn.Process(target=_work, args=(theirs, context), daemon=False)
        self.process.start()
        theirs.close()  # so that the death of the process is seen as the end of the pipe
        self.run: Run | None = None
        self.start = 0.0

    def give(self, run: Run) -> None:
        self.run, self.start = run, time.monotonic()
        with suppress(BrokenPipeError):  # found out when its answer is read
            self.connection.send(run)

    def take(self) -> str | None:
        error: str | None = self.connection.recv()
        self.run = None
        return error

    def death(self) -> str:
        self.process.join()
        code = self.process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"its process ended with {name}" + (": out of memory?" if name == "SIGKILL" else "")

    def end(self) -> None:
        if self.run is not None:
            self.process.terminate()  # interrupted
        with suppress(BrokenPipeError):
            self.connection.send(None)
        self.process.join()


def _work(connection: Connection, context: Context) -> None:
    """What a worker process does: run after run until it gets None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark's process decides what an interruption means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import logging

    import torch
    from filelock import FileLock

    if context.processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // context.processes))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    while (run := connection.recv()) is not None:
        error = None
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / LOG).open("a", encoding="utf-8") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        try:
            # A worker of a runner that was killed may live for a moment longer.
            with FileLock(run.folder.with_name(f".{run.folder.name}.lock"), timeout=60):
                execute(run, context)
        except BaseException as caught:
            traceback.print_exc()
            error = describe_error(caught).replace("--debug", f"{run.folder / LOG}")
            write_json(run.folder / FAILED, {"error": error})
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        connection.send(error)


def _end_with_parent() -> None:
    """Without its benchmark, whose lock protects the folder, a worker must not go on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def remove_run(run: Run) -> None:
    """Remove all that a run has left."""
    shutil.rmtree(run.folder)
