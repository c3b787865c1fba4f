# SPDX-License-Identifier: Apache-2.0
"""``monai-rdad benchmark``: methods x data sets x seeds from one file, with tables at the end."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_rdad.apps.command import add_command

if TYPE_CHECKING:
    from monai_rdad.apps.benchmark_plan import Plan, Run

__all__ = ["add_parser", "run_benchmark"]

PACKAGES = ("monai_rdad", "torch", "monai", "pytorch-ignite", "numpy", "scipy", "scikit-learn", "mlflow")
_RECORD = "benchmark.json"


def add_parser(groups: Any) -> None:
    """Add the command."""
    parser = add_command(
        groups,
        "benchmark",
        _benchmark,
        "train and evaluate methods on data sets, with tables",
        "FILE.yaml names methods, data sets and seeds (docs/user_guide.md). results.csv, comparisons.csv, ranks.csv, "
        "tables and a report go into its 'out' folder. Started again it goes on where it stopped, whatever stopped it.",
        """
        monai-rdad benchmark benchmark.yaml --processes 2
        monai-rdad benchmark benchmark.yaml --list
        """,
    )
    parser.add_argument("file", type=Path, metavar="FILE.yaml")
    parser.add_argument("--processes", type=int, metavar="N", help="runs at a time; default: as the file says, else 1")
    parser.add_argument("--rerun", action="store_true", help="make runs anew whose settings or manifest have changed")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--table", action="store_true", help="only make the tables again, from the finished runs")
    what.add_argument("--list", action="store_true", help="only show the state of every run")


def _benchmark(arguments: argparse.Namespace) -> int:
    from monai_rdad.apps.benchmark_plan import read_plan

    plan = read_plan(arguments.file)
    if arguments.processes is not None:
        if arguments.processes < 1:
            raise ValueError(f"--processes is {arguments.processes}, it must be at least 1.")
        plan = dataclasses.replace(plan, processes=arguments.processes)
    if arguments.list:
        _list(plan)
        return 0
    if arguments.table:
        _write_results(plan)
        print((plan.out / "table.md").read_text(encoding="utf-8"))
        return 0
    command = shlex.join(["monai-rdad", *sys.argv[1:]])
    return 1 if run_benchmark(plan, arguments.rerun, command) else 0


def run_benchmark(plan: Plan, rerun: bool = False, command: str = "") -> dict[str, str]:
    """Make all runs of a benchmark that are not done, then the tables.

    Args:
        plan: what to run.
        rerun: make runs anew whose settings or manifest have changed; otherwise they are an error.
        command: for the records.

    Returns:
        the error of each run that failed, by its name.

    Raises:
        FileNotFoundError, ValueError: as ``check_plan``; a run in the folder has other settings; another runner is at
            work in the folder.
    """
    from filelock import FileLock, Timeout

    from monai_rdad.apps.benchmark_plan import check_plan

    counts = check_plan(plan)
    plan.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.out / ".lock", timeout=0):
            return _run_locked(plan, counts, rerun, command)
    except Timeout:
        raise ValueError(f"Another benchmark is running in {plan.out}. Wait for it, or choose another 'out'.") from None


def _run_locked(plan: Plan, counts: dict[str, dict[str, int]], rerun: bool, command: str) -> dict[str, str]:
    from monai_rdad.apps.benchmark_tracking import BenchmarkTracking
    from monai_rdad.apps.benchmark_worker import Context, execute_all, remove_run, write_json
    from monai_rdad.handlers.mlflow import git_commit

    runs = plan.runs()
    changed = [run for run in runs if run.state() == "changed"]
    if changed and not rerun:
        raise ValueError(
            f"{len(changed)} of {len(runs)} runs in {plan.out} were made differently, the first is {changed[0].name} "
            f"({'; '.join(changed[0].changes())}). Make these anew with --rerun, or choose another 'out'."
        )
    for run in changed:
        remove_run(run)
    todo = [run for run in runs if run.state() != "done"]
    commit, path = git_commit(), plan.out / _RECORD
    tracking = BenchmarkTracking(plan.tracking_uri, plan.name)
    tracking.start(_record(path).get("mlflow_run"))
    record: dict[str, Any] = {
        "name": plan.name,
        "yaml": plan.text,
        "seeds": list(plan.seeds),
        "methods": {
            m.name: {
                "bundle": m.bundle.resolve().name,
                "config_files": list(m.config_files),
                "settings": m.settings,
            }
            for m in plan.methods.values()
        },
        "data": {
            d.name: {"manifest": str(d.manifest), "manifest_sha256": d.sha256, "settings": d.settings} | counts[d.name]
            for d in plan.data.values()
        },
        "settings": plan.settings,
        "metrics": list(plan.metrics),
        "mlflow_run": tracking.run_id,
        "commands": [*_record(path).get("commands", []), command],
        "commit": commit,
        "versions": _versions(),
        "platform": platform.platform(),
    }
    write_json(path, record)
    about = {"command": command, "commit": commit, "versions": record["versions"]}
    context = Context(tracking.uri, tracking.run_id, plan.keep_models, plan.processes, about)
    errors: dict[str, str] = {}
    progress = _Progress(plan, runs, todo)

    def report(run: Run, seconds: float, error: str | None) -> None:
        if error is not None:
            errors[run.name] = error
        progress.show(run, seconds, error)

    try:
        execute_all(todo, context, report)
        tracking.finish(not errors, [path, *_write_results(plan)])
    except BaseException:
        tracking.finish(False, [])
        raise
    for name, error in errors.items():
        print(f"failed: {name}: {error}")
    done = sum(run.state() == "done" for run in runs)
    print(f"{done} of {len(runs)} runs done, {len(errors)} failed: table.md, report.html in {plan.out}")
    return errors


def _write_results(plan: Plan) -> list[Path]:
    """The tables and, as soon as a run is finished, the page made from them."""
    from monai_rdad.apps.benchmark_tables import write_tables
    from monai_rdad.visualize import benchmark_report

    files = write_tables(plan)
    if (plan.out / _RECORD).is_file() and any(run.state() == "done" for run in plan.runs()):
        files.append(benchmark_report(plan.out))
    return files


class _Progress:
    """One line per run: what came out, the time since the start and the time that the rest may take."""

    def __init__(self, plan: Plan, runs: list[Run], todo: list[Run]) -> None:
        self.plan = plan
        self.done, self.total = len(runs) - len(todo), len(runs)
        self.waiting = list(todo)
        self.start = time.monotonic()
        self.seconds: dict[tuple[str, str], list[float]] = {}
        for run in runs:
            content = run.read("run.json")
            if content is not None and content["train_seconds"] is not None:
                self._add(run, content["train_seconds"] + content["evaluate_seconds"])
        print(f"{plan.name}: {self.total} runs, {self.done} done, {len(todo)} to do in {plan.out}", flush=True)

    def show(self, run: Run, seconds: float, error: str | None) -> None:
        self.done += error is None
        self.waiting.remove(run)
        if error is None:
            self._add(run, seconds)
            metrics = (run.read("run.json") or {})["metrics"]
            figures = [f"{m} {metrics[m]:.3f}" for m in self.plan.metrics if metrics.get(m) is not None]
            outcome = ", ".join(figures)
        else:
            outcome = f"FAILED: {error}"
        elapsed = _clock(time.monotonic() - self.start)
        left = f", about {_clock(self._remaining())} left" if self.waiting and self.seconds else ""
        print(f"[{self.done}/{self.total}] {run.name}: {outcome} ({seconds:.0f} s; {elapsed}{left})", flush=True)

    def _add(self, run: Run, seconds: float) -> None:
        self.seconds.setdefault((run.method.name, run.data.name), []).append(seconds)

    def _remaining(self) -> float:
        """Other seeds tell what a run takes; where there are none yet, all runs on average."""
        means = {key: sum(values) / len(values) for key, values in self.seconds.items()}
        average = sum(means.values()) / len(means)
        total = sum(means.get((run.method.name, run.data.name), average) for run in self.waiting)
        return total / min(self.plan.processes, len(self.waiting))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _list(plan: Plan) -> None:
    for run in plan.runs():
        state = run.state()
        detail = ""
        if state == "failed":
            detail = (run.read("failed.json") or {})["error"]
        elif state == "changed":
            detail = "; ".join(run.changes())
        elif state == "done":
            metrics = (run.read("run.json") or {})["metrics"]
            detail = ", ".join(f"{m} {metrics[m]:.3f}" for m in plan.metrics if metrics.get(m) is not None)
        print(f"{state:<12} {run.name}" + (f": {detail}" if detail else ""))


def _record(path: Path) -> dict[str, Any]:
    import json

    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
