# SPDX-License-Identifier: Apache-2.0
"""The benchmark runner: what it refuses, that nothing stops it for good, and its tables."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml
from PIL import Image

from monai_rdad.apps import cli
from monai_rdad.apps.benchmark import run_benchmark
from monai_rdad.apps.benchmark_plan import DataSet, Method, Plan, Run, check_plan, read_plan
from monai_rdad.apps.benchmark_tables import write_tables
from monai_rdad.apps.benchmark_worker import Context, execute
from monai_rdad.data.phantoms import phantom_slice
from monai_rdad.handlers import ResumableCheckpoint
from monai_rdad.utils import root_cause

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

ROOT = Path(__file__).resolve().parents[2]
TINY = {"image_size": 64, "max_epochs": 2, "batch_size": 4, "val_interval": 1, "bootstrap": 100}
CONTEXT = Context("none", None, True, 1, {"command": "", "commit": "c0ffee", "versions": {}})


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory) -> Path:
    """A data set of phantoms, small in number and size."""
    folder = tmp_path_factory.mktemp("tiny")
    manifest: dict[str, list[dict]] = {"training": [], "testing": []}
    for index, (split, label) in enumerate([("training", 0)] * 6 + [("testing", 0), ("testing", 1)] * 4):
        image, mask = phantom_slice(np.random.default_rng(index), lesion=bool(label), size=64)
        Image.fromarray(image).save(folder / f"{index}.png")
        item = {"image": f"{index}.png", "label": label, "group": f"p{index}"}
        if label:
            item["mask"] = f"{index}_mask.png"
            Image.fromarray(mask * 255).save(folder / item["mask"])
        manifest[split].append(item)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch) -> None:
    monkeypatch.setattr("monai_rdad.apps.benchmark_tables.RESAMPLES", 1000)


def write_plan(folder: Path, images: Path, **changes) -> Path:
    """File of a benchmark of two methods, one data set and two seeds."""
    content = {
        "out": str(folder / "out"),
        "seeds": [0, 1],
        "tracking_uri": "none",
        "settings": TINY,
        "data": {"head": {"dataset_dir": str(images)}},
        "methods": {"rd4ad": {}, "slow": {"bundle": "rd4ad", "settings": {"lr": 0.001}}},
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def metrics(plan: Plan) -> dict[str, dict]:
    return {run.name: (run.read("run.json") or {})["metrics"] for run in plan.runs()}


@pytest.fixture(scope="module")
def finished(tiny_set, tmp_path_factory) -> Plan:
    """A benchmark whose runs were made one by one in this process, without an interruption."""
    plan = read_plan(write_plan(tmp_path_factory.mktemp("finished"), tiny_set))
    for run in plan.runs():
        execute(run, CONTEXT)
    return plan


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": {}}, r"no entry 'sets'"),
        ({"setting": {}}, r"no entry 'setting'. Did you mean 'settings'\?"),
        ({"out": None}, r"'out' is missing"),
        ({"seeds": [0, 0]}, r"a seed stands twice"),
        ({"seeds": 3}, r"'seeds' must be a list"),
        ({"processes": 0}, r"'processes' must be"),
        ({"keep_models": 1}, r"'keep_models' must be true or false"),
        ({"metrics": ["image_auc"]}, r"no metric 'image_auc'. Did you mean 'image_auroc'\?"),
        ({"settings": {"seed": 1}}, r"'seed' is not set here but by 'seeds'"),
        ({"settings": {"lr": float("nan")}}, r"'lr' is nan"),
        ({"methods": {"a/b": {}}}, r"the name 'a/b'"),
        ({"methods": {"scdr": {}}}, r"no bundle 'scdr'. Did you mean 'scrd'\?"),
        ({"methods": {"rd4ad": {"seting": 1}}}, r"methods: rd4ad: There is no entry 'seting'"),
        ({"data": {"x": {}}}, r"data: x: give 'dataset_dir'"),
        ({"data": {"x": {"phantoms": "heat"}}}, r"no kind of phantoms 'heat'. Did you mean 'head'\?"),
    ],
)
def test_form_is_checked(changes, message, tiny_set, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_plan(write_plan(tmp_path, tiny_set, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"rd4ad": {"settings": {"max_epoch": 3}}}}, r"rd4ad on head: .*'max_epoch'.*'max_epochs'"),
        ({"methods": {"rd4ad": {"settings": {"weights": "no/such.safetensors"}}}}, r"no weights file no/such"),
        ({"methods": {"rd4ad": {"settings": {"encoder": "resnet50"}}}}, r"rd4ad on head: No weights are embedded"),
        ({"methods": {"rd4ad": {"config_files": ["papers.yaml"]}}}, r"no configuration file papers.yaml"),
        ({"methods": {"d24fad": {}}}, r"few-shot method"),
        ({"data": {"gone": {"dataset_dir": "/no/such/folder"}}}, r"/no/such/folder"),
    ],
)
def test_settings_and_data_are_checked_before_anything_runs(changes, message, tiny_set, tmp_path):
    plan = read_plan(write_plan(tmp_path, tiny_set, **changes))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_benchmark(plan)
    assert not plan.out.exists()


def test_data_without_abnormal_test_images_are_refused(tiny_set, tmp_path):
    manifest = json.loads((tiny_set / "manifest.json").read_text())
    manifest["testing"] = [item for item in manifest["testing"] if not item["label"]]
    (tmp_path / "normal.json").write_text(json.dumps(manifest))
    entry = {"dataset_dir": str(tiny_set), "manifest": str(tmp_path / "normal.json")}
    with pytest.raises(ValueError, match="data: head: its testing split needs normal and abnormal"):
        check_plan(read_plan(write_plan(tmp_path, tiny_set, data={"head": entry})))


def test_example_can_run():
    plan = read_plan(ROOT / "benchmarks" / "phantoms.yaml")
    counts = check_plan(plan)
    assert plan.name == "phantoms" and len(plan.runs()) == 18 and set(counts) == {"head", "ultrasound", "histology"}


def test_the_weights_are_part_of_a_run_also_where_they_are_the_default(tiny_set, tmp_path):
    """Else a finished run would count as done after the bundle's default has changed."""
    (run, *_) = read_plan(write_plan(tmp_path, tiny_set, settings={})).runs()
    assert run.identity["settings"]["weights"] == "embedded"
    run.folder.mkdir(parents=True)
    before = run.identity | {"settings": {**run.identity["settings"], "weights": "none"}}
    (run.folder / "run.json").write_text(json.dumps({"identity": before}))
    assert run.state() == "changed" and run.changes() == ["weights: none before, now embedded"]


def test_a_bundle_of_ones_own_needs_no_setting_for_weights(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("lr: 0.1\n")
    data = DataSet("head", tmp_path, tmp_path / "manifest.json", None, {})
    run = Run(Method("own", tmp_path, {}), data, 0, tmp_path / "run", {"lr": 0.2})
    assert run.identity["settings"] == {"weights": None, "lr": 0.2}


def test_yaml_traps(tiny_set, tmp_path):
    path = write_plan(tmp_path, tiny_set)
    text = path.read_text()
    path.write_text(text.replace("lr: 0.001", "lr: 1e-3"))
    assert read_plan(path).methods["slow"].settings == {"lr": 0.001}
    path.write_text(text.replace("  slow:", "  rd4ad:"))
    with pytest.raises(ValueError, match="'rd4ad' stands twice"):
        read_plan(path)


def test_seed_comes_first_and_special_settings_win(tiny_set, tmp_path):
    both = {"dataset_dir": str(tiny_set), "settings": {"channels": 3, "lr": 0.5, "batch_size": 2}}
    plan = read_plan(write_plan(tmp_path, tiny_set, data={"head": both}))
    runs = plan.runs()
    assert [(r.method.name, r.seed) for r in runs] == [("rd4ad", 0), ("slow", 0), ("rd4ad", 1), ("slow", 1)]
    assert runs[1].settings == TINY | {"channels": 3, "batch_size": 2, "lr": 0.001}


# running


def test_interrupted_training_goes_on_and_a_finished_one_is_only_evaluated(finished, tiny_set, tmp_path, monkeypatch):
    run = read_plan(write_plan(tmp_path, tiny_set)).runs()[0]
    save, epochs = ResumableCheckpoint._save, []

    def interrupt(self, engine):
        save(self, engine)
        epochs.append(engine.state.epoch)
        if len(epochs) == 1:
            raise RuntimeError("stopped after the first epoch")

    monkeypatch.setattr(ResumableCheckpoint, "_save", interrupt)
    with pytest.raises(RuntimeError) as caught:
        execute(run, CONTEXT)
    assert "stopped after" in str(root_cause(caught.value))
    assert run.state() == "interrupted"

    monkeypatch.setattr("monai_rdad.apps.benchmark_worker.evaluation_settings", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(run, CONTEXT)
    assert epochs == [1, 2] and run.read("training.json") == {"seconds": None}
    monkeypatch.undo()

    before = (run.folder / "models" / "model.pt").stat().st_mtime_ns
    execute(run, CONTEXT)
    assert (run.folder / "models" / "model.pt").stat().st_mtime_ns == before
    assert run.state() == "done" and not (run.folder / "models" / "checkpoint.pt").exists()
    assert (run.read("run.json") or {})["metrics"] == metrics(finished)["rd4ad head seed 0"]


def test_weights_go_where_they_are_not_wanted(finished, tmp_path):
    # a run whose training is that of another one, so that only the evaluation is made
    shutil.copytree(finished.runs()[0].folder, tmp_path / "seed0", ignore=shutil.ignore_patterns("run.json", "eval"))
    run = replace(finished.runs()[0], folder=tmp_path / "seed0")
    execute(run, replace(CONTEXT, keep_models=False))
    assert [p.name for p in (run.folder / "models").iterdir()] == ["model.json"]
    assert run.state() == "done" and (run.folder / "eval" / "report.html").is_file()


@pytest.mark.slow
def test_killed_benchmark_ends_as_if_it_had_not_been(finished, tiny_set, tmp_path):
    path = write_plan(tmp_path, tiny_set)
    plan = read_plan(path)
    runs = plan.runs()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "monai_rdad.apps.cli", "benchmark", str(path)], stdout=log, stderr=log, cwd=ROOT
        )
        end = time.monotonic() + 300
        while not (runs[1].folder / "models" / "checkpoint.pt").exists():
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.01)
        with pytest.raises(ValueError, match="Another benchmark is running"):
            run_benchmark(plan)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert runs[0].state() == "done" and runs[-1].state() == "waiting"
    first = (runs[0].folder / "run.json").stat().st_mtime_ns

    assert run_benchmark(plan) == {}
    assert [run.state() for run in runs] == ["done"] * 4
    assert (runs[0].folder / "run.json").stat().st_mtime_ns == first  # not made twice
    assert metrics(plan) == metrics(finished)
    write_tables(finished)
    ours, theirs = (pandas.read_csv(p.out / "comparisons.csv") for p in (plan, finished))
    pandas.testing.assert_frame_equal(ours, theirs)


@pytest.mark.slow
def test_failing_runs_are_named_and_the_others_go_on(finished, tiny_set, tmp_path, capsys):
    methods = {
        "wrong": {"bundle": "rd4ad", "settings": {"lr": -1.0}},
        "dead": {"bundle": "rd4ad", "settings": {"lr": "$os.kill(os.getpid(), 9)"}},
        "rd4ad": {},
    }
    path = write_plan(tmp_path, tiny_set, methods=methods, seeds=[0])
    assert cli.main(["benchmark", str(path)]) == 1
    output = capsys.readouterr().out
    assert "failed: wrong head seed 0: Invalid learning rate: -1.0" in output
    assert "failed: dead head seed 0: its process ended with SIGKILL: out of memory?" in output
    assert "1 of 3 runs done, 2 failed" in output
    plan = read_plan(path)
    assert [run.state() for run in plan.runs()] == ["failed", "failed", "done"]
    assert "Traceback" in (plan.runs()[0].folder / "log.txt").read_text()
    # in a process that has seen other runs before, the same comes out
    assert metrics(finished)["rd4ad head seed 0"] == (plan.runs()[2].read("run.json") or {})["metrics"]
    results = pandas.read_csv(plan.out / "results.csv")
    assert set(results.method) == {"rd4ad"} and len(results) == 4


def test_changed_settings_are_not_passed_over(finished, tiny_set, tmp_path):
    changed = {**TINY, "lr": 0.01, "num_workers": 1}
    plan = read_plan(write_plan(tmp_path, tiny_set, settings=changed, out=str(finished.out)))
    assert [run.state() for run in plan.runs()] == ["changed", "done", "changed", "done"]
    with pytest.raises(ValueError, match=r"2 of 4 runs .* rd4ad head seed 0 \(lr: None before, now 0.01\).*--rerun"):
        run_benchmark(plan)
    assert [run.state() for run in finished.runs()] == ["done"] * 4

    manifest = json.loads((tiny_set / "manifest.json").read_text())
    manifest["training"] = manifest["training"][1:]
    (tmp_path / "other.json").write_text(json.dumps(manifest))
    entry = {"dataset_dir": str(tiny_set), "manifest": str(tmp_path / "other.json")}
    plan = read_plan(write_plan(tmp_path, tiny_set, data={"head": entry}, out=str(finished.out)))
    assert "manifest_sha256" in plan.runs()[0].changes()[0]


# tables


def test_tables_of_finished_runs(finished, capsys):
    files = write_tables(finished)
    names = ["results.csv", "results.parquet", "summary.csv", "comparisons.csv", "ranks.csv", "table.md", "table.tex"]
    assert [p.name for p in files] == names
    results = pandas.read_csv(finished.out / "results.csv")
    pandas.testing.assert_frame_equal(results, pandas.read_parquet(finished.out / "results.parquet"), check_dtype=False)
    assert len(results) == 2 * 2 * 4 and set(results.n_images) == {8} and set(results.n_groups) == {8}
    run = finished.runs()[3]
    own = results[(results.method == "slow") & (results.seed == 1)].set_index("metric")
    found = metrics(finished)[run.name]
    for metric in ("image_auroc", "aupro_0.3"):
        assert own.loc[metric, "value"] == pytest.approx(found[metric])
        assert own.loc[metric, "ci_low"] == pytest.approx(found[f"{metric}_ci_low"])
    assert set(own.manifest_sha256) == {run.data.sha256}


def test_tracking_is_taken_up_again(tmp_path, monkeypatch):
    from monai_rdad.apps.benchmark_tracking import BenchmarkTracking

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlruns.db"
    first = BenchmarkTracking(uri, "trial")
    first.start(None)
    client = first._client
    experiment = client.get_run(first.run_id).info.experiment_id
    child = client.create_run(experiment, tags={"mlflow.parentRunId": first.run_id}).info.run_id
    (tmp_path / "table.md").write_text("table")
    again = BenchmarkTracking(uri, "trial")
    again.start(first.run_id)
    assert again.run_id == first.run_id and client.get_run(child).info.status == "KILLED"
    again.finish(True, [tmp_path / "table.md"])
    assert client.get_run(again.run_id).info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(again.run_id)] == ["table.md"]
    unknown = BenchmarkTracking(uri, "trial")
    unknown.start("0" * 32)
    assert unknown.run_id not in (None, first.run_id)
    assert BenchmarkTracking("none", "trial").uri == "none"
