# SPDX-License-Identifier: Apache-2.0
"""The MLflow run of a benchmark, whose children are the runs of its trainings and evaluations."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["BenchmarkTracking"]

logger = logging.getLogger(__name__)


class BenchmarkTracking:
    """One run per benchmark, taken up again when the benchmark is.

    The environment variable ``MLFLOW_TRACKING_URI`` overrides ``uri`` unless that switches tracking off, as for the
    bundles.

    Args:
        uri: of the server or data base; "none" or "" for no tracking.
        name: of the run.

    Attributes:
        uri: the one that is used, "none" for no tracking.
        run_id: of the run, None without tracking or before the start.
    """

    def __init__(self, uri: str, name: str) -> None:
        enabled = uri.strip().lower() not in ("", "none")
        self.uri = (os.environ.get("MLFLOW_TRACKING_URI") or uri) if enabled else "none"
        self.name = name
        self.run_id: str | None = None
        self._client: Any = None

    def start(self, earlier: str | None) -> None:
        """Open the run, or that of an earlier start if the server knows it.

        Args:
            earlier: identifier of the run of an earlier start.

        Raises:
            ConnectionError: there is no such server.
        """
        if self.uri == "none":
            return
        import mlflow
        from mlflow.entities import RunStatus
        from mlflow.exceptions import MlflowException

        from monai_rdad.handlers.mlflow import EXPERIMENT

        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._client = mlflow.MlflowClient(self.uri)
        try:
            found = self._client.get_experiment_by_name(EXPERIMENT)
            experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT, self._artifacts())
        except Exception as error:
            raise ConnectionError(
                f"MLflow at {self.uri} cannot be used: {error} Start the server, or set tracking_uri to none."
            ) from error
        if earlier is not None:
            try:
                self.run_id = self._client.get_run(earlier).info.run_id
            except MlflowException:
                logger.warning("MLflow: %s does not know the run of the earlier start, a new one is made", self.uri)
        if self.run_id is None:
            self.run_id = self._client.create_run(experiment, run_name=self.name).info.run_id
            return
        self._client.update_run(self.run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        # Of runs that were killed; none can be at work now, because the benchmark's folder is locked.
        orphans = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'"
        for orphan in self._client.search_runs([experiment], orphans):
            self._client.set_terminated(orphan.info.run_id, "KILLED")

    def finish(self, well: bool, files: Iterable[Path]) -> None:
        """Hand files over and end the run; a server that does not answer costs a warning."""
        if self.run_id is None:
            return
        try:
            for file in files:
                self._client.log_artifact(self.run_id, str(file))
            self._client.set_terminated(self.run_id, "FINISHED" if well else "FAILED")
        except Exception as error:
            logger.warning("MLflow does not answer, the benchmark's run is not ended: %s", error)

    def _artifacts(self) -> str | None:
        """Folder of the files beside a SQLite file, as MONAI's handler has it; a server has its own."""
        if not self.uri.startswith("sqlite:///"):
            return None
        return Path(self.uri.removeprefix("sqlite:///")).absolute().with_name("mlruns").as_uri()
