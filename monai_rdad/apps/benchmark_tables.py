# SPDX-License-Identifier: Apache-2.0
"""Tables of a benchmark, from its finished runs alone."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monai_rdad.apps.benchmark_plan import RUN, Plan, Run
from monai_rdad.metrics import (
    IMAGE_METRICS,
    Comparison,
    compare_auroc,
    compare_resampled,
    friedman_p_value,
    holm,
    mean_ranks,
    resample_image_metrics,
    resampled_intervals,
)
from monai_rdad.utils import atomic_path

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["write_tables"]

RESAMPLES = 10000  # so that a p-value can stay below 0.05 after a correction for some hundred comparisons
LEVEL = 0.05

RESULTS = (
    *("method", "data", "seed", "metric", "value", "ci_low", "ci_high", "n_images", "n_abnormal", "n_groups"),
    *("seconds", "manifest_sha256", "commit"),
)
SUMMARY = ("data", "metric", "method", "mean", "lowest", "highest", "ci_low", "ci_high", "seeds")
COMPARISONS = (
    *("data", "metric", "method_a", "method_b", "difference", "ci_low", "ci_high", "p_value", "p_holm"),
    *("test", "resamples", "n", "seeds", "seeds_agree"),
)
RANKS = ("metric", "method", "mean_rank", "data_sets", "friedman_p")


@dataclass(frozen=True)
class _Finished:
    """A finished run: what it was and what it has measured."""

    run: Run
    record: dict[str, Any]

    def value(self, metric: str) -> float | None:
        found: float | None = self.record["metrics"].get(metric)
        return found

    def scores(self) -> list[tuple[str, str, int, float]]:
        """Name, group, label and score of each test image."""
        with (self.run.folder / "eval" / "scores.csv").open(encoding="utf-8", newline="") as file:
            return [(r["name"], r["group"], int(r["label"]), float(r["score"])) for r in csv.DictReader(file)]

    def resampled_pixels(self) -> dict[str, NDArray[np.float64]]:
        path = self.run.folder / "eval" / "pixel_resamples.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content}


class _OnData:
    """All finished runs on one data set, and their metrics in resamples that all of them share."""

    def __init__(self, found: Sequence[_Finished], metrics: Sequence[str]) -> None:
        self.runs = list(found)
        tables = [f.scores() for f in found]
        self.images = [row[:3] for row in tables[0]]
        for finished, table in zip(found, tables, strict=True):
            if [row[:3] for row in table] != self.images:
                raise ValueError(
                    f"{finished.run.name} was evaluated on other images than {found[0].run.name}: their files have "
                    "changed in between. Make the older run anew: remove its folder."
                )
        self.labels = [label for _, _, label in self.images]
        self.groups = [group for _, group, _ in self.images]
        self.scores = np.array([[row[3] for row in table] for table in tables])
        self.resampled: dict[str, list[NDArray[np.float64]]] = {}
        if any(metric in IMAGE_METRICS for metric in metrics):
            drawn = resample_image_metrics(list(self.scores), self.labels, self.groups, RESAMPLES)
            self.resampled = {name: list(values.T) for name, values in drawn.items()}
        pixels = [f.resampled_pixels() for f in found]
        for name in set.intersection(*(set(p) for p in pixels)):
            if len({p[name].size for p in pixels}) == 1:  # else made with different 'bootstrap'
                self.resampled[name] = [p[name] for p in pixels]

    @property
    def independent(self) -> bool:
        """Whether no two images are of the same group."""
        return len(set(self.groups)) == len(self.groups)

    def of(self, method: str, metric: str) -> dict[int, int]:
        """Index of the run of each seed in which a method has a metric."""
        return {
            f.run.seed: i
            for i, f in enumerate(self.runs)
            if f.run.method.name == method and f.value(metric) is not None
        }

    def mean(self, metric: str, index: Sequence[int]) -> float:
        return float(np.mean([self.runs[i].value(metric) for i in index]))

    def mean_resampled(self, metric: str, index: Sequence[int]) -> NDArray[np.float64] | None:
        if metric not in self.resampled:
            return None
        mean: NDArray[np.float64] = np.mean([self.resampled[metric][i] for i in index], axis=0)
        return mean

    def agreement(self, metric: str, a: Sequence[int], b: Sequence[int]) -> float:
        """Share of the pairs of a run of one method and a run of the other whose difference has the sign of the mean's.

        1 if no training of the one was as good as one of the other: what another training would change is small.
        """
        first, second = (np.array([self.runs[i].value(metric) for i in index], dtype=np.float64) for index in (a, b))
        return float((np.sign(first[:, None] - second) == np.sign(first.mean() - second.mean())).mean())

    def compare(self, metric: str, a: Sequence[int], b: Sequence[int]) -> tuple[Comparison, str, int]:
        """Comparison of two sets of runs, the name of the test, and the number of resamples."""
        if metric == "image_auroc" and self.independent and min(self.labels.count(0), self.labels.count(1)) > 1:
            return compare_auroc(self.scores[list(a)], self.scores[list(b)], self.labels), "DeLong", 0
        difference = self.mean(metric, a) - self.mean(metric, b)
        first, second = self.mean_resampled(metric, a), self.mean_resampled(metric, b)
        if first is None or second is None:
            return Comparison(difference, np.nan, np.nan, np.nan), "none", 0
        return compare_resampled(difference, first - second), "group bootstrap", first.size


def write_tables(plan: Plan) -> list[Path]:
    """Write all tables of a benchmark, each file complete or not at all.

    - ``results.csv`` and ``results.parquet``: a row per method, data set, seed and metric;
    - ``summary.csv``: mean, range and interval over the seeds;
    - ``comparisons.csv``: each pair of methods on each data set;
    - ``ranks.csv``: mean rank of each method over the data sets that all methods have finished;
    - ``table.md`` and ``table.tex``, for which LaTeX needs the package booktabs.

    Returns:
        their paths.

    Raises:
        ValueError: two runs were evaluated on different images.
    """
    from pandas import DataFrame

    found = [_Finished(run, run.read(RUN) or {}) for run in plan.runs() if run.state() == "done"]
    of_data = {
        name: _OnData(mine, plan.metrics)
        for name in plan.data
        if (mine := [f for f in found if f.run.data.name == name])
    }
    results = DataFrame(list(_results(plan, found)), columns=list(RESULTS))
    summary = DataFrame(list(_summary(plan, of_data)), columns=list(SUMMARY))
    comparisons = DataFrame(_comparisons(plan, of_data), columns=list(COMPARISONS))
    ranks = DataFrame(list(_ranks(plan, of_data)), columns=list(RANKS))
    cells = _cells(plan, of_data, summary, comparisons)
    written: list[tuple[str, Callable[[Path], Any]]] = [
        ("results.csv", lambda path: results.to_csv(path, index=False)),
        ("results.parquet", lambda path: results.to_parquet(path, index=False)),
        ("summary.csv", lambda path: summary.to_csv(path, index=False)),
        ("comparisons.csv", lambda path: comparisons.to_csv(path, index=False)),
        ("ranks.csv", lambda path: ranks.to_csv(path, index=False)),
        ("table.md", lambda path: path.write_text(_markdown(plan, found, cells, comparisons, ranks), encoding="utf-8")),
        ("table.tex", lambda path: path.write_text(_latex(plan, cells, ranks), encoding="utf-8")),
    ]
    for name, write in written:
        with atomic_path(plan.out / name) as path:
            write(path)
    return [plan.out / name for name, _ in written]


def _results(plan: Plan, found: Sequence[_Finished]) -> Iterator[tuple[Any, ...]]:
    for f in found:
        metrics, parts = f.record["metrics"], (f.record["train_seconds"], f.record["evaluate_seconds"])
        seconds = None if None in parts else sum(parts)
        for metric in plan.metrics:
            if f.value(metric) is None:
                continue
            yield (
                *(f.run.method.name, f.run.data.name, f.run.seed, metric, f.value(metric)),
                *(metrics.get(f"{metric}_ci_{end}") for end in ("low", "high")),
                *(int(metrics[key]) for key in ("n_images", "n_abnormal", "n_groups")),
                *(seconds, f.record["identity"]["manifest_sha256"], f.record["commit"]),
            )


def _summary(plan: Plan, of_data: dict[str, _OnData]) -> Iterator[tuple[Any, ...]]:
    for (name, on), metric, method in itertools.product(of_data.items(), plan.metrics, plan.methods):
        if not (index := list(on.of(method, metric).values())):
            continue
        values = [on.runs[i].value(metric) for i in index]
        drawn = on.mean_resampled(metric, index)
        low, high = (np.nan, np.nan) if drawn is None else resampled_intervals({metric: drawn})[metric]
        yield name, metric, method, on.mean(metric, index), min(values), max(values), low, high, len(index)  # type: ignore[type-var]


def _comparisons(plan: Plan, of_data: dict[str, _OnData]) -> list[tuple[Any, ...]]:
    """Rows of comparisons.csv; the correction is for all comparisons of a metric."""
    rows: list[tuple[Any, ...]] = []
    for metric in plan.metrics:
        mine: list[tuple[Any, ...]] = []
        for (name, on), (a, b) in itertools.product(of_data.items(), itertools.combinations(plan.methods, 2)):
            first, second = on.of(a, metric), on.of(b, metric)
            if not (seeds := [seed for seed in first if seed in second]):
                continue
            indices = [first[s] for s in seeds], [second[s] for s in seeds]
            result, test, resamples = on.compare(metric, *indices)
            pixels = metric not in IMAGE_METRICS
            n = int(on.runs[0].record["metrics"]["n_pixel_images"]) if pixels else len(on.images)
            agree = on.agreement(metric, *indices)
            mine.append((name, metric, a, b, *result, test, resamples, n, len(seeds), agree))
        adjusted = holm([row[7] for row in mine])
        rows += [(*row[:8], float(p), *row[8:]) for row, p in zip(mine, adjusted, strict=True)]
    return rows


def _ranks(plan: Plan, of_data: dict[str, _OnData]) -> Iterator[tuple[Any, ...]]:
    for metric in plan.metrics:
        figures = []
        for on in of_data.values():
            index = [list(on.of(method, metric).values()) for method in plan.methods]
            if all(index):
                figures.append([on.mean(metric, i) for i in index])
        if not figures or len(plan.methods) < 2:
            continue
        p_value = friedman_p_value(figures)
        for method, rank in zip(plan.methods, mean_ranks(figures), strict=True):
            yield metric, method, float(rank), len(figures), p_value


@dataclass(frozen=True)
class _Cell:
    text: str
    best: bool


def _cells(
    plan: Plan, of_data: dict[str, _OnData], summary: DataFrame, comparisons: DataFrame
) -> list[tuple[str, str, str, dict[str, _Cell]]]:
    """Data set, method, n (abnormal) and the cell of each metric, for each row of the table."""
    rows = []
    for (name, on), method in itertools.product(of_data.items(), plan.methods):
        mine = summary[(summary.data == name) & (summary.method == method)]
        if mine.empty:
            continue
        cells = {}
        for entry in mine.itertuples():
            spread = f" ({entry.lowest:.3f} to {entry.highest:.3f})" if entry.seeds > 1 else ""
            missing = f" {entry.seeds} of {len(plan.seeds)} seeds" if entry.seeds < len(plan.seeds) else ""
            interval = "" if np.isnan(entry.ci_low) else f" [{entry.ci_low:.2f}, {entry.ci_high:.2f}]"
            best = _is_best(comparisons, name, entry.metric, method, len(plan.methods))
            cells[entry.metric] = _Cell(f"{entry.mean:.3f}{spread}{interval}{missing}", best)
        rows.append((name, method, f"{len(on.labels)} ({sum(on.labels)})", cells))
    return rows


def _is_best(comparisons: DataFrame, data: str, metric: str, method: str, methods: int) -> bool:
    """Whether a method is clearly ahead of every other one."""
    mine = comparisons[(comparisons.data == data) & (comparisons.metric == metric) & _clear(comparisons)]
    ahead = (mine.method_a == method) & (mine.difference > 0) | (mine.method_b == method) & (mine.difference < 0)
    return methods > 1 and int(ahead.sum()) == methods - 1


def _clear(comparisons: DataFrame) -> Any:
    """Whether a difference would be seen on other test images and after other trainings, for each row."""
    return (comparisons.p_holm < LEVEL) & (comparisons.seeds_agree == 1)


def _shown(plan: Plan, cells: Sequence[tuple[str, str, str, dict[str, _Cell]]]) -> list[str]:
    return [metric for metric in plan.metrics if any(metric in row[3] for row in cells)]


def _markdown(
    plan: Plan,
    found: Sequence[_Finished],
    cells: Sequence[tuple[str, str, str, dict[str, _Cell]]],
    comparisons: DataFrame,
    ranks: DataFrame,
) -> str:
    metrics = _shown(plan, cells)
    total = len(plan.runs())
    lines = [f"# {plan.name}", ""]
    lines += [f"{len(found)} of {total} runs are finished; {len(plan.seeds)} seeds.", ""]
    heads = ["data", "method", "n (abnormal)", *metrics]
    lines += _rows(heads, [[d, m, n, *(_marked(c.get(k)) for k in metrics)] for d, m, n, c in cells])
    lines += [
        "",
        "Mean over the seeds (their range) [95 % interval of the mean, bootstrap over the test images' groups]. The",
        "range tells what another training would give, the interval what other test images would. Bold: ahead of every",
        f"other method, each time with p < {LEVEL} after Holm's correction for all comparisons of that metric and",
        "with every seed of the one above every seed of the other.",
    ]
    if not ranks.empty:
        lines += ["", "## Mean ranks", ""]
        ranked = [metric for metric in metrics if metric in set(ranks.metric)]
        rows = []
        for method in plan.methods:
            mine = {r.metric: r.mean_rank for r in ranks[ranks.method == method].itertuples()}
            rows.append([method, *(f"{mine[metric]:.2f}" for metric in ranked)])
        by_metric = {r.metric: r for r in ranks.itertuples()}
        rows.append(["data sets", *(str(by_metric[metric].data_sets) for metric in ranked)])
        if ranks.friedman_p.notna().any():
            rows.append(["p (Friedman)", *(_p_value(by_metric[metric].friedman_p) for metric in ranked)])
        lines += _rows(["method", *ranked], rows)
    clear = comparisons[_clear(comparisons)]
    lines += ["", "## Differences", ""]
    lines += [
        f"{len(clear)} of {len(comparisons)} comparisons have p < {LEVEL} after Holm's correction, per metric, and",
        "seeds that all agree.",
    ]
    for metric, mine in comparisons[comparisons.resamples > 0].groupby("metric", sort=False):
        lowest = 2 / (mine.resamples.max() + 1) * int((comparisons.metric == metric).sum())
        if lowest >= LEVEL:
            lines.append(
                f"With so few resamples no p-value of {metric} can fall below {lowest:.2f}: raise 'bootstrap'."
            )
    if not clear.empty:
        rows = []
        for entry in clear.itertuples():
            a, b, sign = (
                (entry.method_a, entry.method_b, 1) if entry.difference > 0 else (entry.method_b, entry.method_a, -1)
            )
            low, high = sorted((sign * entry.ci_low, sign * entry.ci_high))
            difference = f"{sign * entry.difference:.3f} [{low:.3f}, {high:.3f}]"
            rows.append([entry.metric, entry.data, f"{a} over {b}", difference, _p_value(entry.p_holm), entry.test])
        lines += ["", *_rows(["metric", "data", "methods", "difference", "p (Holm)", "test"], rows)]
    return "\n".join(lines) + "\n"


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _marked(cell: _Cell | None) -> str:
    return "" if cell is None else f"**{cell.text}**" if cell.best else cell.text


def _p_value(value: float) -> str:
    return "" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _latex(plan: Plan, cells: Sequence[tuple[str, str, str, dict[str, _Cell]]], ranks: DataFrame) -> str:
    metrics = _shown(plan, cells)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lll" + "l" * len(metrics) + "}",
        r"\toprule",
        " & ".join(_escaped(text) for text in ("data", "method", "n (abnormal)", *metrics)) + r" \\",
    ]
    for _, rows in itertools.groupby(cells, key=lambda row: row[0]):
        lines.append(r"\midrule")
        for i, (data, method, n, own) in enumerate(rows):
            texts = [_escaped(data) if i == 0 else "", _escaped(method), _escaped(n) if i == 0 else ""]
            for metric in metrics:
                cell = own.get(metric)
                text = "" if cell is None else cell.text.replace(" to ", "--")
                texts.append(rf"\textbf{{{text}}}" if cell is not None and cell.best else text)
            lines.append(" & ".join(texts) + r" \\")
    if not ranks.empty:
        lines.append(r"\midrule")
        for i, method in enumerate(plan.methods):
            mine = {r.metric: f"{r.mean_rank:.2f}" for r in ranks[ranks.method == method].itertuples()}
            row = ["mean rank" if i == 0 else "", _escaped(method), "", *(mine.get(metric, "") for metric in metrics)]
            lines.append(" & ".join(row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")
