# SPDX-License-Identifier: Apache-2.0
"""Runs in MLflow: what was run, with which data and code, its curves, metrics and files."""

from __future__ import annotations

import atexit
import json
import logging
import os
import platform
import re
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

import monai_rdad

__all__ = ["EXPERIMENT", "TAGS_VARIABLE", "AnomalyMLFlow", "git_commit", "software_versions"]

logger = logging.getLogger(__name__)

EXPERIMENT = "monai_rdad"
TAGS_VARIABLE = "MONAI_RDAD_MLFLOW_TAGS"
"""Environment variable with tags of every run, as JSON: who starts bundles tells their runs where they belong."""

# Limits of the MLflow server: entries in one call, and the length of a parameter's value.
PARAMS_PER_CALL = 100
PARAM_LENGTH = 6000


def git_commit() -> str | None:
    """Commit of the repository that holds this package, with "-dirty" where files differ; None outside of one."""
    folder = Path(__file__).parent
    try:
        for command in (
            # Tracked, not just inside: an environment's site-packages may lie in somebody else's repository.
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def software_versions() -> dict[str, str | None]:
    """Versions of this package, of Python and of what the results depend on; "git_commit" as :func:`git_commit`."""
    versions = {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "monai_rdad": monai_rdad.__version__,
    }
    for package in ("torch", "monai", "pytorch-ignite", "numpy", "mlflow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with names "outer.inner", in characters that MLflow takes."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + re.sub(r"[^\w\-. :/]", "_", str(key))
        flat |= _flatten(value, name + ".") if isinstance(value, Mapping) else {name: value}
    return flat


def _numbers(values: Mapping[Any, Any]) -> dict[str, float]:
    """The scalar entries of nested dictionaries; anything else (tables, names) is left out."""
    numbers = {}
    for name, value in _flatten(values).items():
        shape: Any = getattr(value, "shape", ())
        if isinstance(value, str) or shape:
            continue
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            continue
    return numbers


def _as_items(engine: Engine) -> None:
    """Make a trainer's output with ``decollate=False`` a list of one item, in whose form MONAI looks for the loss.

    The handler that ``--tracking mlflow`` adds would stop the training otherwise: ``from_engine(["loss"], first=True)``
    makes a tuple of a dictionary.
    """
    if hasattr(engine, "optimizer") and isinstance(engine.state.output, dict):
        engine.state.output = [engine.state.output]


class AnomalyMLFlow:
    """One MLflow run per start, around MONAI's ``MLFlowHandler``; one object serves trainer and validator.

    The engine that starts first owns the run: a trainer, or an evaluator that runs alone. Evaluators that run inside
    write their metrics into the same run, with the epoch as step. When the owner completes, the files in
    ``artifacts`` are handed over and the run is FINISHED; an exception makes it FAILED. Every run has a name of its
    own, ``<run_prefix>_<YYYYmmdd_HHMMSS>_<4 random digits>``: MONAI's handler takes up any unfinished run of the same
    name, so that a fixed name would merge a new run into a crashed one. Processes of rank above 0 write nothing. A
    server that stops answering during a run costs a warning and the rest of the curves, not the training.
    The environment variable ``MONAI_RDAD_MLFLOW_TAGS`` may hold tags for every run, as a JSON object of texts;
    ``mlflow.parentRunId`` makes it the child of another run of the same experiment.

    Parameters: ``params``, the SHA-256 of ``manifest``, the commit of this package's repository, device, versions.
    Metrics: ``train_loss`` (mean over ``log_every`` iterations) and the learning rates, by iteration;
    ``engine.state.metrics`` of trainer and evaluators and ``epoch_seconds``, by epoch.

    Args:
        output_dir: folder of the default data base, ``mlruns.db``, and of its files, ``mlruns/``.
        run_prefix: beginning of the run's name, for instance the method's.
        tracking_uri: of the server or data base; None for the SQLite file in ``output_dir``. "none" or "" switches
            tracking off. The environment variable ``MLFLOW_TRACKING_URI`` overrides all but "none" and "".
        experiment_name: experiment that the run belongs to; made if there is none.
        params: flat or nested dictionary of parameters: hyper-parameters, seed, paths.
        manifest: path of the data set's manifest.
        artifacts: files and folders to hand over at the end; those that do not exist are left out with a warning.
        log_every: iterations between two points of the loss curve.
        validator: evaluator that runs inside the training; attached together with the trainer.

    Raises:
        ValueError: ``log_every`` below 1, or a URI that MONAI refuses (a bare path, ``file://``).
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        run_prefix: str = "rdad",
        tracking_uri: str | None = None,
        experiment_name: str = EXPERIMENT,
        params: Mapping[str, Any] | None = None,
        manifest: str | os.PathLike[str] | None = None,
        artifacts: Sequence[str | os.PathLike[str]] = (),
        log_every: int = 20,
        validator: Engine | None = None,
    ) -> None:
        if log_every < 1:
            raise ValueError(f"log_every is {log_every}, it must be at least 1 iteration.")
        self.enabled = tracking_uri is None or tracking_uri.strip().lower() not in ("", "none")
        self.output_dir = Path(output_dir)
        self.run_prefix = run_prefix
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.params = dict(params or {})
        self.manifest = manifest
        self.artifacts = list(artifacts)
        self.log_every = log_every
        self.validator = validator
        self.run_id: str | None = None
        self._handler: Any = None
        self._owner: Engine | None = None
        self._answers = True
        self._losses: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer or evaluator; may be called with several."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, _as_items)
        if not self.enabled:
            return
        for target in (engine,) if self.validator is None else (engine, self.validator):
            target.add_event_handler(Events.STARTED, self._started)
            target.add_event_handler(Events.EXCEPTION_RAISED, self._exception_raised)

    def log_artifact(self, path: str | os.PathLike[str]) -> None:
        """Hand over a file, or a folder under its own name, to the run that is open; does nothing if none is."""
        if not Path(path).exists():
            logger.warning("MLflow: %s does not exist, left out", path)
        elif Path(path).is_dir():
            self._send(lambda client, run_id: client.log_artifacts(run_id, str(path), Path(path).resolve().name))
        else:
            self._send(lambda client, run_id: client.log_artifact(run_id, str(path)))

    def _started(self, engine: Engine) -> None:
        if engine.state.rank != 0:
            return
        if engine is self._owner:  # its last run broke off and another handler kept the exception from this one
            self._close("FAILED")
        if self._owner is None:
            self._owner = engine
            self._open(engine)
        # Only now, so that these come after every handler that was attached, whatever its place in the list: they
        # read the metrics and files that the others make.
        handlers: list[tuple[Any, Callable[[Engine], None]]] = [(Events.COMPLETED, self._completed)]
        if hasattr(engine, "optimizer"):
            handlers += [
                (Events.ITERATION_COMPLETED, self._iteration_completed),
                (Events.EPOCH_COMPLETED, self._epoch_completed),
            ]
        for event, handler in handlers:
            if not engine.has_event_handler(handler, event):
                engine.add_event_handler(event, handler)

    def _open(self, engine: Engine) -> None:
        from monai.handlers import MLFlowHandler
        from monai.utils import path_to_sqlite_uri

        logging.getLogger("alembic").setLevel(logging.WARNING)  # fifty lines on every new SQLite file
        uri = self.tracking_uri
        if uri is None:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            uri = path_to_sqlite_uri(str(self.output_dir.resolve() / "mlruns.db"))
        name = f"{self.run_prefix}_{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(2)}"
        self._handler = MLFlowHandler(tracking_uri=uri, experiment_name=self.experiment_name, run_name=name)
        try:
            self._handler.start(engine)
        except Exception as error:
            self._owner = None
            raise ConnectionError(
                f"MLflow at {self._handler.client.tracking_uri} cannot be used: {error} "
                "Start the server, or switch tracking off with --tracking_uri none."
            ) from error
        self.run_id = self._handler.cur_run.info.run_id
        self._answers = True
        self._losses = []
        atexit.register(self._close, "FAILED")
        for key, value in json.loads(os.environ.get(TAGS_VARIABLE) or "{}").items():
            self._send(lambda client, run_id, key=key, value=value: client.set_tag(run_id, key, value))
        self._log_params(engine)
        logger.info("MLflow: run %s of experiment %s at %s", name, self.experiment_name, uri)

    def _log_params(self, engine: Engine) -> None:
        from mlflow.entities import Param

        from monai_rdad.data import manifest_hash

        software = software_versions()
        params: dict[str, Any] = {"device": engine.state.device} | software
        if self.manifest is not None:
            params["manifest"] = self.manifest
            params["manifest_sha256"] = manifest_hash(self.manifest)
        # MONAI's handler has logged these of the engine itself, and a parameter cannot change
        params |= {k: v for k, v in _flatten(self.params).items() if k not in ("max_epochs", "epoch_length")}
        entities = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in params.items()]
        for i in range(0, len(entities), PARAMS_PER_CALL):
            part = entities[i : i + PARAMS_PER_CALL]
            self._send(lambda client, run_id, part=part: client.log_batch(run_id, params=part))
        if software["git_commit"] is not None:
            commit = software["git_commit"]
            self._send(lambda client, run_id: client.set_tag(run_id, "mlflow.source.git.commit", commit))

    def _log_metrics(self, values: Mapping[Any, Any], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, number, now, step) for name, number in _numbers(values).items()]
        if metrics:
            self._send(lambda client, run_id: client.log_batch(run_id, metrics=metrics))

    def _send(self, call: Callable[..., Any]) -> None:
        if self.run_id is None or not self._answers:
            return
        try:
            call(self._handler.client, self.run_id)
        except Exception as error:
            self._answers = False
            logger.warning("MLflow does not answer, nothing more is written to this run: %s", error)

    def _iteration_completed(self, engine: Engine) -> None:
        loss = engine.state.output[0]["loss"]
        self._losses.append(torch.as_tensor(loss).detach())  # not a number yet: that would wait for the device
        if engine.state.iteration % self.log_every == 0:
            self._log_losses(engine)

    def _log_losses(self, engine: Engine) -> None:
        if self._losses:
            rates = {f"lr.{i}": group["lr"] for i, group in enumerate(engine.optimizer.param_groups)}
            mean = torch.stack(self._losses).float().mean().item()
            self._log_metrics({"train_loss": mean} | rates, step=engine.state.iteration)
            self._losses = []

    def _epoch_completed(self, engine: Engine) -> None:
        seconds = {"epoch_seconds": engine.state.times[Events.EPOCH_COMPLETED.name]}
        self._log_metrics(engine.state.metrics | seconds, step=engine.state.epoch)

    def _completed(self, engine: Engine) -> None:
        if hasattr(engine, "optimizer"):
            self._log_losses(engine)
        else:
            self._log_metrics(engine.state.metrics, step=engine.state.epoch)
        if engine is self._owner:
            for path in self.artifacts:
                self.log_artifact(path)
            self._close("FINISHED")

    def _exception_raised(self, engine: Engine, error: BaseException) -> None:
        self._close("FAILED")
        raise error  # ignite swallows an exception that has a handler

    def _close(self, status: str) -> None:
        """End the run. At exit of the process too: another handler may keep an exception from this one."""
        if self.run_id is None:
            return
        self._send(lambda client, run_id: client.set_terminated(run_id, status))
        self._handler.cur_run = None
        self._handler.close()  # lets go of the SQLite file
        self.run_id = self._owner = None
        atexit.unregister(self._close)
