# SPDX-License-Identifier: Apache-2.0
"""One page with the result of an evaluation."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from monai_rdad.utils import atomic_path

__all__ = ["figure_label", "result_page"]

LABELS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image average precision",
    "oracle_f1": "Image F1, oracle threshold",
    "oracle_accuracy": "Image accuracy, oracle threshold",
    "sensitivity_at_95_specificity": "Sensitivity at 95 % specificity",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel average precision",
    "aupro_0.3": "AUPRO, false-positive rate up to 0.3",
    "oracle_dice": "Pixel Dice, oracle threshold",
}

DECISIONS = {
    "false_positive_rate_at_": "False-positive rate, calibrated for {}",
    "sensitivity_at_": "Sensitivity, calibrated for a false-positive rate of {}",
    "normal_area_at_": "Outlined area of normal images, calibrated for {}",
    "dice_at_area_": "Pixel Dice of the outline calibrated for an area of {}",
}
"""Metrics of the page in their order; others follow under their own names."""

PIXEL = ("pixel", "aupro", "oracle_dice")

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff; max-width: 64rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #d0d4d9; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid #e4e7eb; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { font-weight: 600; font-size: .85rem; color: #4a5058; }
.scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
img { display: block; width: 100%; height: auto; }
img.wide { min-width: 44rem; }
pre { background: #f4f5f7; padding: .75rem; overflow-x: auto; font-size: .85rem; }
p.note { color: #4a5058; font-size: .9rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  img.wide { min-width: 0; }
  pre { white-space: pre-wrap; }
  h2 { break-after: avoid; }
  table, img { break-inside: avoid; }
}
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def result_page(
    path: str | os.PathLike[str],
    title: str,
    metrics: Mapping[str, float],
    scores: ArrayLike,
    labels: ArrayLike,
    sheet: str | os.PathLike[str] | None = None,
    commands: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write one HTML file that needs no other: figures with intervals, ROC curve, scores, cases, commands.

    Args:
        path: of the HTML file; written completely or not at all.
        title: heading of the page.
        metrics: as :class:`~monai_rdad.handlers.AnomalyMetrics` leaves them: figures by name, with
            ``<name>_ci_low`` and ``<name>_ci_high`` (95 % interval) where there are any, and counts ``n_...``.
        scores: one per image, (N,).
        labels: 0 normal, 1 abnormal, (N,).
        sheet: PNG of cases, or None.
        commands: how the result came about, one per line.
        notes: sentences for below the title: data set, weights, seed, what the page does not show.
    """
    parts = [f"<p>{html.escape(note)}</p>" for note in notes]
    parts += ["<h2>Figures</h2>", _table(metrics)]
    values, classes = np.asarray(scores, dtype=float), np.asarray(labels)
    plots = _image(_roc(values, classes), "ROC curve") + _image(_histogram(values, classes), "Histogram of the scores")
    parts += ["<h2>Scores of the images</h2>", f'<div class="pair">{plots}</div>']
    if sheet is not None:
        picture = _image(Path(sheet).read_bytes(), "Images, anomaly maps and overlays", wide=True)
        parts += ["<h2>Cases</h2>", f'<div class="scroll">{picture}</div>']
    if commands:
        parts += ["<h2>Commands</h2>", f"<pre>{html.escape(chr(10).join(commands))}</pre>"]
    text = PAGE.substitute(title=html.escape(title), body="\n".join(parts))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _table(metrics: Mapping[str, float]) -> str:
    names = [n for n in metrics if not n.endswith(("_ci_low", "_ci_high")) and not n.startswith("n_")]
    names.sort(key=lambda name: list(LABELS).index(name) if name in LABELS else len(LABELS))
    rows = []
    for name in names:
        low, high = metrics.get(f"{name}_ci_low"), metrics.get(f"{name}_ci_high")
        interval = "–" if low is None or high is None else f"{_number(low)} to {_number(high)}"
        n = _count(name, metrics)
        count = "–" if n is None else f"{n:.0f}"
        cells = (html.escape(figure_label(name)), _number(metrics[name]), interval, count)
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>Metric</th><th>Value</th><th>95 % interval</th><th>Images</th></tr>"
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    remarks = []
    if "n_images" in metrics and "n_abnormal" in metrics:
        groups = f" from {metrics['n_groups']:.0f} groups" if "n_groups" in metrics else ""
        remarks.append(f"{metrics['n_images']:.0f} images{groups}, {metrics['n_abnormal']:.0f} of them abnormal.")
    if any(f"{name}_ci_low" in metrics for name in names):
        remarks.append("Intervals: bootstrap over groups (patients, scans), normal and abnormal ones apart.")
    if any(name.startswith("oracle_") for name in names):
        remarks.append("Oracle: the threshold was chosen on these very labels, so the figure flatters.")
    return table + (f'<p class="note">{" ".join(remarks)}</p>' if remarks else "")


def _count(name: str, metrics: Mapping[str, float]) -> float | None:
    """Number of images that a figure is about."""
    if name.startswith((*PIXEL, "dice_at_area_")):
        return metrics.get("n_pixel_images")
    images, abnormal = metrics.get("n_images"), metrics.get("n_abnormal")
    if images is None or abnormal is None:
        return images
    if name.startswith(("false_positive_rate_at_", "normal_area_at_")):
        return images - abnormal
    return abnormal if name.startswith("sensitivity_at_") and name not in LABELS else images


def figure_label(name: str) -> str:
    """A figure's name for people; that of a calibrated decision holds its nominal rate."""
    for prefix, text in DECISIONS.items():
        if name.startswith(prefix) and name not in LABELS:
            return text.format(name.removeprefix(prefix))
    return LABELS.get(name, name)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not defined"


def _image(png: bytes, alt: str, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f'<img{kind} alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _figure(title: str, xlabel: str, ylabel: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _roc(scores: Any, labels: Any) -> bytes:
    from sklearn.metrics import roc_curve

    figure, axes = _figure("ROC curve", "false-positive rate (1 - specificity)", "sensitivity")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    if 0 < labels.sum() < labels.size:
        false_rate, true_rate, _ = roc_curve(labels, scores)
        axes.plot(false_rate, true_rate, color="#0b6e99", linewidth=2)
    else:
        axes.text(0.5, 0.42, "needs both classes", ha="center", color="0.4")
    return _png(figure)


def _histogram(scores: Any, labels: Any) -> bytes:
    figure, axes = _figure("Scores", "anomaly score", "images")
    edges = np.histogram_bin_edges(scores, bins=min(40, max(5, 2 * round(math.sqrt(scores.size)))))
    for label, name, color in ((0, "normal", "#0b6e99"), (1, "abnormal", "#d9480f")):
        of_class = scores[labels == label]
        axes.hist(of_class, edges, color=color, alpha=0.55, label=f"{name} ({of_class.size})")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return _png(figure)
