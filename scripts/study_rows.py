# SPDX-License-Identifier: Apache-2.0
"""Rows of results, one JSON object per line, as the studies write them, and their Markdown table."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

PIXEL = {"pixel_auroc": "pixel AUROC", "aupro_0.3": "AUPRO"}


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a results file, none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table: mean over seeds, their range, and the mean 95 % bootstrap interval over test images.

    One row per data set, method, teacher and further settings; image AUROC for each reduction of the map.
    """
    modes = [mode for mode in ("max", "top", "mean") if any(mode in row["metrics"] for row in rows)]
    figures = [("image_auroc", mode) for mode in modes] + [(figure, "") for figure in PIXEL]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = row["key"]
        further = ", ".join(f"{k} {v}" for k, v in key.items() if k not in ("data", "method", "weights", "seed"))
        groups.setdefault((key["data"], key["method"], key["weights"], further), []).append(row["metrics"])
    common = set.intersection(*({*key[3].split(", ")} for key in groups)) if groups else set()
    heads = ["data", "method", "teacher", "n (abnormal)", "seeds"]
    heads += [f"image AUROC, {mode}" for mode in modes] + list(PIXEL.values())
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (data, method, weights, further), runs in sorted(groups.items()):
        own = ", ".join(part for part in further.split(", ") if part and part not in common)
        first = next(iter(runs[0].values()))
        cells = [data, method + (f" ({own})" if own else ""), weights]
        cells += [f"{first['n_images']:.0f} ({first['n_abnormal']:.0f})", str(len(runs))]
        for figure, mode in figures:
            found = [run.get(mode, {}) if mode else next(iter(run.values())) for run in runs]
            values = [metrics[figure] for metrics in found if figure in metrics]
            if not values:
                cells.append("")
                continue
            low, high = (
                statistics.fmean(metrics[f"{figure}_ci_{end}"] for metrics in found if figure in metrics)
                for end in ("low", "high")
            )
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread} [{low:.2f}, {high:.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
