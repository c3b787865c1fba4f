# SPDX-License-Identifier: Apache-2.0
"""The page of a benchmark, made from the tables in its folder."""

from __future__ import annotations

import csv
import html
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from monai_rdad.utils import file_sha256
from monai_rdad.visualize.page import (
    Html,
    Section,
    definitions,
    figure_grid,
    figure_label,
    interval,
    metric_names,
    number,
    paragraph,
    table,
    write_page,
)
from monai_rdad.visualize.plots import Interval, interval_plot, rank_plot
from monai_rdad.visualize.report import REPORT

__all__ = ["benchmark_report"]

TABLES = ("results.csv", "comparisons.csv", "ranks.csv")
LEVEL = 0.05  # of p-values that are stressed
CHANCE = {"image_auroc": 0.5, "pixel_auroc": 0.5, "aupro_0.3": 0.15}


class _Result(NamedTuple):
    method: str
    data: str
    seed: str
    metric: str
    figure: Interval
    images: str
    abnormal: str
    groups: str
    seconds: float


class _Comparison(NamedTuple):
    data: str
    metric: str
    name: str
    difference: Interval
    p_value: float
    adjusted: float
    test: str
    n: str
    seeds: str
    agreement: float  # share of pairs of seeds whose difference has the same sign

    @property
    def clear(self) -> bool:
        """Whether the benchmark's tables, too, call it a difference."""
        return self.adjusted < LEVEL and self.agreement == 1


class _Benchmark(NamedTuple):
    folder: Path
    content: dict[str, Any]
    results: list[_Result]
    means: dict[tuple[str, str, str], Interval]  # (data, metric, method), over the seeds
    comparisons: list[_Comparison]
    ranks: dict[str, dict[str, tuple[float, str, float]]]  # metric, method: mean rank, data sets, p of Friedman's test

    @property
    def metrics(self) -> list[str]:
        """The benchmark's own order, its main metric first."""
        found = {row.metric for row in self.results}
        listed = [name for name in self.content.get("metrics", []) if name in found]
        return listed or metric_names(sorted(found))

    @property
    def data(self) -> list[str]:
        return list(dict.fromkeys(row.data for row in self.results))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.results))


def benchmark_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the HTML report of a benchmark: figures with intervals, paired differences, ranks, runs, provenance.

    Reads ``benchmark.json``, ``results.csv``, ``comparisons.csv``, ``ranks.csv`` and, where it is there,
    ``summary.csv`` with the intervals of the means over the seeds. Runs that have a report of their own
    (``runs/<method>/<data>/seed<k>/eval/report.html``) are linked.

    Args:
        folder: of the benchmark.
        out: file to write; default: report.html in the folder. Links start from its folder.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken.
    """
    benchmark = _read(Path(folder))
    path = Path(out) if out is not None else benchmark.folder / REPORT
    seeds = {row.seed for row in benchmark.results}
    runs = {row[:3] for row in benchmark.results}
    lead = (
        f"{_number_of(len(benchmark.methods), 'method')} on {_number_of(len(benchmark.data), 'data set')} with "
        f"{_number_of(len(seeds), 'seed')}: {_number_of(len(runs), 'finished run')}."
    )
    sections: list[Section] = [
        ("figures", "Figures", _figures(benchmark)),
        ("plots", "Figures with intervals", _plots(benchmark)),
        ("differences", "Differences between methods", _differences(benchmark)),
        ("ranks", "Mean ranks", _ranks(benchmark)),
        ("runs", "Runs", _runs(benchmark, path)),
        ("provenance", "How this was made", _provenance(benchmark)),
    ]
    write_page(path, str(benchmark.content.get("name", "Benchmark")), paragraph(lead), sections)
    return path


def _read(folder: Path) -> _Benchmark:
    try:
        content = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
        results = [
            _Result(
                row["method"],
                row["data"],
                row["seed"],
                row["metric"],
                _interval(row, "value"),
                row["n_images"],
                row["n_abnormal"],
                row["n_groups"],
                _float(row["seconds"]),
            )
            for row in _rows(folder / "results.csv")
        ]
        comparisons = [
            _Comparison(
                row["data"],
                row["metric"],
                f"{row['method_a']} − {row['method_b']}",
                _interval(row, "difference"),
                _float(row["p_value"]),
                _float(row.get("p_holm", "")),
                row["test"],
                row["n"],
                row["seeds"],
                _float(row.get("seeds_agree", "")),
            )
            for row in _rows(folder / "comparisons.csv")
        ]
        ranks: dict[str, dict[str, tuple[float, str, float]]] = {}
        for row in _rows(folder / "ranks.csv"):
            entry = _float(row["mean_rank"]), row.get("data_sets", ""), _float(row.get("friedman_p", ""))
            ranks.setdefault(row["metric"], {})[row["method"]] = entry
        means = {}
        if (folder / "summary.csv").is_file():
            means = {
                (row["data"], row["metric"], row["method"]): _interval(row, "mean")
                for row in _rows(folder / "summary.csv")
            }
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no {error.filename}. Run the benchmark to its end, or name another folder."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read as a benchmark ({error!r}). Make its tables anew.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{folder / 'benchmark.json'} does not hold names and values. Run the benchmark again.")
    return _Benchmark(folder, content, results, means, comparisons, ranks)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _float(text: str) -> float:
    return float(text) if text else math.nan


def _interval(row: Mapping[str, str], value: str) -> Interval:
    return Interval(_float(row[value]), _float(row["ci_low"]), _float(row["ci_high"]))


def _of(benchmark: _Benchmark, data: str, metric: str, method: str) -> list[_Result]:
    """The seeds of a method."""
    return [row for row in benchmark.results if (row.data, row.metric, row.method) == (data, metric, method)]


def _cell(benchmark: _Benchmark, data: str, metric: str, method: str) -> str:
    """Mean over the seeds (range) [interval]."""
    figures = [row.figure for row in _of(benchmark, data, metric, method)]
    values = [figure.value for figure in figures if math.isfinite(figure.value)]
    if not values:
        return "–"
    mean = benchmark.means.get((data, metric, method))
    if mean is None:
        mean = figures[0] if len(figures) == 1 else Interval(sum(values) / len(values))
    span = interval(mean.low, mean.high)
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{number(mean.value)}{spread}" + ("" if span == "–" else f" [{span}]")


def _figures(benchmark: _Benchmark) -> str:
    if not benchmark.results:
        return paragraph("No run is finished.")
    rows = []
    for data in benchmark.data:
        for method in benchmark.methods:
            mine = [row for row in benchmark.results if (row.data, row.method) == (data, method)]
            if mine:
                cells = (_cell(benchmark, data, metric, method) for metric in benchmark.metrics)
                size = f"{mine[0].images} ({mine[0].abnormal}), {mine[0].groups} groups"
                rows.append((data, method, size, *cells))
    head = ("Data set", "Method", "Images (abnormal)", *map(figure_label, benchmark.metrics))
    words = "Mean over the seeds (their range) [95 % interval, bootstrap over the groups of the test images]"
    text = table(head, rows, words, words=2)
    text += paragraph(
        "The range tells what another training would give, the interval what other test images would.", "note"
    )
    if any("oracle" in figure_label(metric) for metric in benchmark.metrics):
        text += paragraph("Oracle: the threshold was chosen by looking at the labels of the test images.", "note")
    return text


def _plots(benchmark: _Benchmark) -> str:
    text = ""
    for m, metric in enumerate(benchmark.metrics):
        figures = []
        for d, data in enumerate(benchmark.data):
            rows = {
                method: [row.figure for row in found]
                for method in benchmark.methods
                if (found := _of(benchmark, data, metric, method))
            }
            if not rows:
                continue
            told = "; ".join(f"{method}: {_cell(benchmark, data, metric, method)}" for method in rows)
            label, reference = figure_label(metric), CHANCE.get(metric)
            figures.append((interval_plot(f"plot-{m}-{d}", data, rows, label, reference, (-0.02, 1.02), told), ""))
        text += _group(figure_label(metric), figures)
    if text:
        text += paragraph(
            "Each dot is a seed with its 95 % interval, a diamond the mean over several seeds. Dashed: chance.", "note"
        )
    return text


def _differences(benchmark: _Benchmark) -> str:
    if not benchmark.comparisons:
        return ""
    text = paragraph(
        "Pairs of methods on the same test images: the first less the second, so that a difference above 0 speaks for "
        "the first. An interval that holds 0 does not tell the two apart."
    )
    for m, metric in enumerate(benchmark.metrics):
        mine = [row for row in benchmark.comparisons if row.metric == metric]
        if not mine:
            continue
        limits = _limits([row.difference for row in mine])
        figures = []
        for d, data in enumerate(benchmark.data):
            rows = {row.name: [row.difference] for row in mine if row.data == data}
            if rows:
                told = "; ".join(
                    f"{name}: {_signed(d.value)} ({interval(d.low, d.high)})" for name, (d,) in rows.items()
                )
                figures.append((interval_plot(f"diff-{m}-{d}", data, rows, "difference", 0.0, limits, told), ""))
        cells = [
            (
                *(row.data, row.name, _signed(row.difference.value)),
                interval(row.difference.low, row.difference.high),
                *(_p_value(row.p_value), _p_value(row.adjusted) + " *" * row.clear),
                *(row.test, row.n, row.seeds, f"{row.agreement:.0%}" if math.isfinite(row.agreement) else "–"),
            )
            for row in mine
        ]
        head = ("Data set", "Pair", "Difference", "95 % interval", "p", "p (Holm)", "Test", "Images", "Seeds", "Agree")
        label = figure_label(metric)
        caption = f"{label}: all pairs; * p < {LEVEL} after Holm's correction, and all seeds agree"
        text += _group(label, figures) + table(head, cells, caption, words=2)
    return text


def _ranks(benchmark: _Benchmark) -> str:
    figures = []
    for m, (metric, ranks) in enumerate(benchmark.ranks.items()):
        means = {method: entry[0] for method, entry in ranks.items()}
        told = "; ".join(f"{method}: {rank:.2f}" for method, rank in means.items())
        _, sets, p_value = next(iter(ranks.values()))
        words = [f"Over {sets} data sets." if sets else ""]
        if math.isfinite(p_value):
            words.append(f"Friedman's test that all methods are alike: p = {_p_value(p_value)}.")
        figures.append((rank_plot(f"rank-{m}", figure_label(metric), means, len(means), told), " ".join(words)))
    return figure_grid(*figures)


def _runs(benchmark: _Benchmark, page: Path) -> str:
    rows = []
    runs: dict[tuple[str, str, str], float] = {row[:3]: row.seconds for row in benchmark.results}
    for (method, data, seed), seconds in runs.items():
        place = benchmark.folder / "runs" / method / data / f"seed{seed}"
        reports = [path for path in (place / "eval" / REPORT, place / REPORT) if path.is_file()]
        link = "–"
        if reports and reports[0].resolve().is_relative_to(benchmark.folder.resolve()):
            target = quote(Path(os.path.relpath(reports[0].resolve(), page.resolve().parent)).as_posix())
            link = Html(f'<a href="{target}">report</a>')
        rows.append((method, data, seed, f"{seconds:.0f}" if math.isfinite(seconds) else "–", link))
    head = ("Method", "Data set", "Seed", "Seconds", "Report")
    return table(head, rows, "Finished runs; seconds of training and evaluation together", words=2) if rows else ""


def _provenance(benchmark: _Benchmark) -> str:
    content = benchmark.content
    text = ""
    commands = content.get("commands") or []
    if commands:
        text += f"<h3>Commands</h3><pre>{html.escape(chr(10).join(map(str, commands)))}</pre>"
    if content.get("yaml"):
        text += f"<h3>Plan</h3><pre>{html.escape(str(content['yaml']))}</pre>"
    facts = {key: str(content[key]) for key in ("commit", "platform") if content.get(key)}
    versions = {key: str(value) for key, value in (content.get("versions") or {}).items()}
    seeds = {"seeds": ", ".join(map(str, content["seeds"]))} if content.get("seeds") else {}
    text += "<h3>Versions and seeds</h3>" + definitions(facts | versions | seeds)
    hashes = {str(name): str(value) for name, value in (content.get("hashes") or {}).items()}
    data = content.get("data")
    for name, entry in data.items() if isinstance(data, dict) else ():
        if isinstance(entry, dict) and entry.get("manifest_sha256"):
            hashes[f"manifest of {name}"] = str(entry["manifest_sha256"])
    hashes |= {name: file_sha256(benchmark.folder / name) for name in ("benchmark.json", *TABLES)}
    return text + "<h3>SHA-256</h3>" + definitions(hashes)


def _group(heading: str, figures: Sequence[tuple[str, str]]) -> str:
    return f"<h3>{html.escape(heading)}</h3>{figure_grid(*figures)}" if figures else ""


def _limits(figures: Sequence[Interval]) -> tuple[float, float]:
    """Ends of an axis that holds 0 and all figures, the same for all data sets."""
    known = [0.0, *(value for figure in figures for value in figure if math.isfinite(value))]
    margin = 0.05 * (max(known) - min(known)) or 0.05
    return min(known) - margin, max(known) + margin


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else "not defined"


def _p_value(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _number_of(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
