# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MLFlowHandler, StatsHandler, ValidationHandler, from_engine
from torch import nn

from monai_rdad.handlers.mlflow import AnomalyMLFlow, git_commit

LENGTH = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tests: making MLflow's tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlruns.db"


def client(folder: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(uri(folder))


def runs(folder: Path, experiment: str) -> list[Any]:
    """Runs of an experiment, the oldest first."""
    found = client(folder).get_experiment_by_name(experiment)
    return list(reversed(client(folder).search_runs(found.experiment_id, order_by=["start_time DESC"])))


def history(folder: Path, run: Any, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client(folder).get_metric_history(run.info.run_id, name)]


class Loss(nn.Module):
    """1, 2, 3, ... by iteration."""

    calls = 0

    def forward(self, pred: torch.Tensor, _: Any) -> torch.Tensor:
        self.calls += 1
        return pred.mean() * 0 + float(self.calls)


def trainer(handlers: list[Any], epochs: int = 2, **kwargs: Any) -> SupervisedTrainer:
    network = nn.Conv2d(1, 1, 1)
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=[{"image": torch.ones(1, 1, 2, 2)}] * LENGTH,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        loss_function=Loss(),
        train_handlers=handlers,
        **kwargs,
    )


def evaluator(handlers: list[Any]) -> SupervisedEvaluator:
    result = SupervisedEvaluator(
        device="cpu",
        val_data_loader=[{"image": torch.ones(1, 1, 2, 2)}] * 2,
        network=nn.Identity(),
        val_handlers=handlers,
        decollate=False,
    )

    # Attached after the tracker, as a metrics handler may be.
    @result.on(Events.EPOCH_COMPLETED)
    def metrics(engine: Engine) -> None:
        engine.state.metrics.update(
            {"image_auroc": engine.state.epoch / 10, "sensitivity@95": torch.tensor(0.5), "table": [1, 2], "name": "x"}
        )
        engine.state.metrics["none"] = float("nan")

    return result


def test_training_with_validation(folder: Path, experiment: str, tmp_path: Path) -> None:
    config = tmp_path / "configs"
    config.mkdir()
    (config / "train.yaml").write_text("a: 1\n")
    late = tmp_path / "metrics.json"
    tracker = AnomalyMLFlow(
        folder,
        run_prefix="scrd",
        experiment_name=experiment,
        params={"seed": 3, "optimizer": {"lr": 0.5, "betas": [0.5, 0.9]}} | {f"p{i}": "x" * 7000 for i in range(120)},
        artifacts=[config, late],
        log_every=2,
    )
    validator = evaluator([tracker])
    validator.add_event_handler(Events.COMPLETED, lambda _: late.write_text("{}"))
    trainer([tracker, ValidationHandler(1, validator)]).run()

    (run,) = runs(folder, experiment)
    assert run.info.status == "FINISHED"
    assert re.fullmatch(r"scrd_\d{8}_\d{6}_[0-9a-f]{4}", run.info.run_name)
    params = run.data.params
    assert (params["seed"], params["optimizer.lr"], params["optimizer.betas"]) == ("3", "0.5", "[0.5, 0.9]")
    assert params["p119"] == "x" * 6000
    assert params["torch"] == torch.__version__
    assert {"device", "git_commit", "monai", "monai_rdad", "max_epochs"} <= params.keys()
    assert history(folder, run, "train_loss") == [(2, 1.5), (4, 3.5), (6, 5.5)]
    assert history(folder, run, "lr.0") == [(2, 0.5), (4, 0.5), (6, 0.5)]
    assert history(folder, run, "image_auroc") == [(1, 0.1), (2, 0.2)]
    assert history(folder, run, "sensitivity_95") == [(1, 0.5), (2, 0.5)]
    assert [step for step, _ in history(folder, run, "epoch_seconds")] == [1, 2]
    assert math.isnan(history(folder, run, "none")[0][1])
    assert not {"table", "name"} & run.data.metrics.keys()
    files = client(folder).list_artifacts(run.info.run_id)
    assert sorted(f.path for f in files) == ["configs", "metrics.json"]
    assert (folder / "mlruns").is_dir()
    assert run.info.artifact_uri.startswith(f"file://{folder}/mlruns")


def test_decollated_training_and_the_rest_of_the_curve(folder: Path, experiment: str) -> None:
    tracker = AnomalyMLFlow(folder, experiment_name=experiment, log_every=4)
    trainer([tracker], decollate=True).run()
    (run,) = runs(folder, experiment)
    assert history(folder, run, "train_loss") == [(4, 2.5), (6, 5.5)]


def test_evaluation_alone(folder: Path, experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"picture")
    tracker = AnomalyMLFlow(folder, experiment_name=experiment, artifacts=[tmp_path / "missing.json"])
    tracker.log_artifact(sheet)  # no run is open
    engine = evaluator([tracker])
    engine.add_event_handler(Events.COMPLETED, lambda _: tracker.log_artifact(sheet))
    engine.run()
    (run,) = runs(folder, experiment)
    assert run.info.status == "FINISHED"
    assert history(folder, run, "image_auroc") == [(1, 0.1)]
    assert [f.path for f in client(folder).list_artifacts(run.info.run_id)] == ["sheet.png"]
    assert "missing.json does not exist" in caplog.text


def test_crashed_run_is_failed_and_stays_apart(folder: Path, experiment: str) -> None:
    tracker = AnomalyMLFlow(folder, experiment_name=experiment, params={"try": 1})
    validator = evaluator([tracker])

    @validator.on(Events.ITERATION_COMPLETED)
    def crash(_: Engine) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        trainer([tracker, ValidationHandler(1, validator)]).run()
    trainer([AnomalyMLFlow(folder, experiment_name=experiment, params={"try": 2})]).run()
    first, second = runs(folder, experiment)
    assert [r.info.status for r in (first, second)] == ["FAILED", "FINISHED"]
    assert [r.data.params["try"] for r in (first, second)] == ["1", "2"]
    assert first.info.run_name != second.info.run_name


def test_crash_that_another_handler_keeps_to_itself(
    folder: Path, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_exit: list[Any] = []
    monkeypatch.setattr("atexit.register", lambda *call: at_exit.append(call))
    tracker = AnomalyMLFlow(folder, experiment_name=experiment)
    # MONAI's StatsHandler raises in its own handler of the event: later ones are not called.
    engine = trainer([StatsHandler(iteration_log=False), tracker])
    crash = engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.run()
    assert [r.info.status for r in runs(folder, experiment)] == ["RUNNING"]
    engine.run()  # ignite only ends the broken run here
    with pytest.raises(ZeroDivisionError):  # the next run in this process notices
        engine.run()
    assert [r.info.status for r in runs(folder, experiment)] == ["FAILED", "RUNNING"]
    function, status = at_exit[-1]  # and so does the end of the process
    function(status)
    assert [r.info.status for r in runs(folder, experiment)] == ["FAILED", "FAILED"]
    crash.remove()
    engine.run()
    engine.run()
    assert [r.info.status for r in runs(folder, experiment)] == ["FAILED", "FAILED", "FINISHED"]


def test_other_ranks_write_nothing(folder: Path, experiment: str) -> None:
    engine = trainer([AnomalyMLFlow(folder, experiment_name=experiment)])
    engine.state.rank = 1
    engine.run()
    assert client(folder).get_experiment_by_name(experiment) is None


@pytest.mark.parametrize("off", ["none", "None", ""])
def test_switched_off(off: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tracker = AnomalyMLFlow(tmp_path, tracking_uri=off)
    trainer([tracker]).run()
    tracker.log_artifact(__file__)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ours_is_on", [True, False])
@pytest.mark.parametrize("decollate", [True, False])
def test_beside_monais_own_tracking(folder: Path, experiment: str, ours_is_on: bool, decollate: bool) -> None:
    # What `--tracking mlflow` appends, in the same data base and even the same experiment.
    transform = from_engine(["loss"], first=True)
    own = MLFlowHandler(
        uri(folder), experiment_name=experiment, close_on_complete=True, tag_name="loss", output_transform=transform
    )
    tracker = AnomalyMLFlow(
        folder, tracking_uri=uri(folder) if ours_is_on else "none", experiment_name=experiment, log_every=3
    )
    trainer([tracker, own], decollate=decollate).run()
    found = runs(folder, experiment)
    assert any(history(folder, run, "loss") == [(i, float(i)) for i in range(1, 7)] for run in found)
    if not ours_is_on:
        return
    assert {r.info.status for r in found} == {"FINISHED"}
    ours = next(r for r in found if r.info.run_name.startswith("rdad_"))
    assert history(folder, ours, "train_loss") == [(3, 2.0), (6, 5.0)]


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    tracker = AnomalyMLFlow(tmp_path, tracking_uri="http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="127.0.0.1:9 cannot be used.*--tracking_uri none"):
        trainer([tracker]).run()
    with pytest.raises(ValueError, match="file store"):
        trainer([AnomalyMLFlow(tmp_path, tracking_uri=str(tmp_path))]).run()
    with pytest.raises(ValueError, match="log_every is 0"):
        AnomalyMLFlow(tmp_path, log_every=0)


def test_server_that_goes_away_does_not_stop_the_training(
    folder: Path, experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = AnomalyMLFlow(folder, experiment_name=experiment, log_every=1)
    engine = trainer([tracker])
    calls = 0

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def cut(_: Engine) -> None:
        def log_batch(*_: Any, **__: Any) -> None:
            nonlocal calls
            calls += 1
            raise ConnectionError("gone")

        tracker._handler.client.log_batch = log_batch

    with caplog.at_level(logging.WARNING):
        engine.run()
    assert calls == 1  # a server that does not answer costs a timeout at every call
    assert caplog.text.count("MLflow does not answer") == 1
    assert engine.state.iteration == 2 * LENGTH


def test_manifest(folder: Path, experiment: str, tmp_path: Path) -> None:
    from monai_rdad.data import manifest_hash

    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"training": [{"image": "a.png", "label": 0}]}))
    trainer([AnomalyMLFlow(folder, experiment_name=experiment, manifest=manifest)]).run()
    (run,) = runs(folder, experiment)
    assert run.data.params["manifest_sha256"] == manifest_hash(manifest)
    assert len(run.data.params["manifest_sha256"]) == 64


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    for variable in [v for v in os.environ if v.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    package = tmp_path / "package"
    package.mkdir()
    module = package / "mlflow.py"
    module.write_text("1\n")
    monkeypatch.setattr("monai_rdad.handlers.mlflow.__file__", str(module))
    assert git_commit() is None
    git("init")
    assert git_commit() is None  # inside a repository, but not part of it
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "first")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "tag", "-a", "v1", "-m", "v1")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    module.write_text("2\n")
    assert git_commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None
