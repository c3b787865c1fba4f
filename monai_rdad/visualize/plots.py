# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG elements for an HTML page: text stays text, colours follow the page, identifiers are unique."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval",
    "calibration_plot",
    "curve_plot",
    "histogram_plot",
    "interval_plot",
    "p_value_plot",
    "rank_plot",
]

# Colours that the plots are drawn with, and the page's own that they become: these differ on dark ground.
INK, FAINT = "#010203", "#aabbc1"
NORMAL, ABNORMAL, CALIBRATION = "#0072b1", "#b84c01", "#6a6f01"
VARIABLES = {
    INK: "currentColor",
    FAINT: "var(--line)",
    NORMAL: "var(--normal)",
    ABNORMAL: "var(--abnormal)",
    CALIBRATION: "var(--calibration)",
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "monai_rdad",  # the same plot has the same identifiers
    "text.parse_math": False,  # a name with two dollar signs is not a formula
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
WIDTH, HEIGHT = 4.9, 3.7  # inches


class Interval(NamedTuple):
    """A figure with its interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


P = ParamSpec("P")


def _styled(plot: Callable[P, str]) -> Callable[P, str]:
    """Draw with the style of the page, whatever the process has set."""

    @wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> str:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return plot(*args, **kwargs)

    return styled


def _axes(rows: int = 1, height: float = HEIGHT) -> tuple[Any, Sequence[Any]]:
    """A figure and its axes, below each other."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, list(figure.subplots(rows, sharex=True, squeeze=False)[:, 0])


def _svg(figure: Any, key: str, title: str, description: str) -> str:
    """The ``<svg>`` element. ``key`` is unique on the page, ``description`` says in words what the plot shows."""
    buffer = io.BytesIO()
    nothing: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):  # a style would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            plain = name.split("}")[-1]
            element.set(plain, _attribute(plain, value, key))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    text = ElementTree.tostring(root, encoding="unicode")
    head = f'<svg role="img" aria-labelledby="{key}-title {key}-desc"'
    told = (
        f'<title id="{key}-title">{html.escape(title)}</title><desc id="{key}-desc">{html.escape(description)}</desc>'
    )
    return re.sub(r"^<svg([^>]*)>", lambda match: f"{head}{match[1]}>{told}", text)


def _attribute(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return re.sub("^#", f"#{key}-", value)
    value = re.sub(r"url\(#", f"url(#{key}-", value)
    if name == "style":
        value = re.sub(r"font: ([^;]*?)([\d.]+px)[^;]*", _font, value)
        for color, variable in VARIABLES.items():
            value = value.replace(color, variable)
    return value


def _font(match: re.Match[str]) -> str:
    """Size and weight only: the family is the page's."""
    weight = re.search(r"\b(bold|[5-9]00)\b", match[1])
    return f"font-size: {match[2]}" + (f"; font-weight: {weight[1]}" if weight else "")


@_styled
def curve_plot(
    key: str,
    kind: str,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    band: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None,
    chance: float,
    point: tuple[float, float, str] | None,
    description: str,
) -> str:
    """ROC or precision-recall curve.

    Args:
        key: prefix of the identifiers.
        kind: "roc" or "precision_recall".
        x: false-positive rates, or sensitivities.
        y: sensitivities, or precisions.
        band: (x, lower, upper) of the 95 % band, or None.
        chance: AUROC, or precision, of a score that knows nothing.
        point: (x, y, text) of an operating point, or None.
        description: in words.
    """
    roc = kind == "roc"
    title = "ROC curve" if roc else "Precision-recall curve"
    figure, (axes,) = _axes(height=4.3)
    axes.set(title=title, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel("false-positive rate (1 − specificity)" if roc else "sensitivity (recall)")
    axes.set_ylabel("sensitivity" if roc else "precision")
    axes.plot([0, 1], [0, 1] if roc else [chance] * 2, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    if band is not None:
        axes.fill_between(*band, color=NORMAL, alpha=0.2, linewidth=0, label="95 % interval")
    if roc:
        axes.plot(x, y, color=NORMAL, linewidth=2)
    else:
        axes.step(x, y, where="pre", color=NORMAL, linewidth=2)
    if point is not None:
        axes.plot(*point[:2], marker="D", markersize=7, color=ABNORMAL, linestyle="none", label=point[2])
    axes.legend(loc="lower right" if roc else "best", fontsize=9)
    return _svg(figure, key, title, description)


@_styled
def histogram_plot(
    key: str, parts: Mapping[str, tuple[NDArray[np.float64], str]], threshold: float | None, description: str
) -> str:
    """Histograms of scores below each other, on the same bins.

    Args:
        key: prefix of the identifiers.
        parts: scores and "normal", "abnormal" or "calibration", by heading.
        threshold: of the decision, or None.
        description: in words.
    """
    values = np.concatenate([scores for scores, _ in parts.values()])
    edges = np.histogram_bin_edges(values, bins=min(40, max(8, 2 * round(math.sqrt(values.size)))))
    figure, panels = _axes(len(parts), 0.6 + 1.35 * len(parts))
    colors = {"normal": NORMAL, "abnormal": ABNORMAL, "calibration": CALIBRATION}
    for axes, (heading, (scores, kind)) in zip(panels, parts.items(), strict=True):
        axes.hist(scores, edges, color=colors[kind], alpha=0.75)
        axes.set_title(f"{heading} (n = {scores.size})", loc="left")
        axes.set_ylabel("images")
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    panels[-1].set_xlabel("anomaly score")
    return _svg(figure, key, "Scores by split", description)


@_styled
def calibration_plot(
    key: str,
    alphas: NDArray[np.float64],
    realised: NDArray[np.float64],
    band: tuple[NDArray[np.float64], NDArray[np.float64]],
    alpha: float,
    description: str,
) -> str:
    """Realised false-positive rate against the promised one, with the band in which it should lie."""
    figure, (axes,) = _axes(height=4.3)
    top = float(max(alphas[-1], band[1].max(), realised.max())) * 1.03
    axes.set(title="False-positive rate: promised and found", xlim=(0, float(alphas[-1])), ylim=(0, top))
    axes.set_xlabel("promised rate α")
    axes.set_ylabel("rate found on normal test images")
    axes.fill_between(alphas, *band, step="post", color=CALIBRATION, alpha=0.25, linewidth=0, label="expected, 95 %")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="found = promised")
    axes.step(alphas, realised, where="post", color=NORMAL, linewidth=2, label="found")
    axes.axvline(alpha, color=INK, linewidth=1, linestyle=":")
    axes.legend(loc="upper left", fontsize=9)
    return _svg(figure, key, "False-positive rate: promised and found", description)


@_styled
def p_value_plot(
    key: str, normal: NDArray[np.float64], abnormal: NDArray[np.float64], alpha: float, description: str
) -> str:
    """Fraction of the normal, and of the abnormal, images whose p-value is at most x."""
    figure, (axes,) = _axes(height=4.3)
    axes.set(title="p-values", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axes.set_xlabel("p-value")
    axes.set_ylabel("fraction of images at or below")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="uniform")
    for values, name, color, dashes in (
        (abnormal, "abnormal", ABNORMAL, (0, (6, 1.5))),
        (normal, "normal", NORMAL, "solid"),
    ):
        if values.size:
            ordered = np.sort(values)
            x = np.concatenate([[0], ordered, [1]])
            y = np.concatenate([[0], np.arange(1, ordered.size + 1) / ordered.size, [1]])
            axes.step(x, y, where="post", color=color, linewidth=2, linestyle=dashes, label=name)
    axes.axvline(alpha, color=INK, linewidth=1, linestyle=":")
    axes.legend(loc="lower right", fontsize=9)
    return _svg(figure, key, "p-values", description)


@_styled
def interval_plot(
    key: str,
    title: str,
    rows: Mapping[str, Sequence[Interval]],
    xlabel: str,
    reference: float | None,
    limits: tuple[float, float],
    description: str,
) -> str:
    """Figures with intervals, a line of the plot per name; several of one name (seeds) below each other.

    Args:
        key: prefix of the identifiers.
        title: of the plot.
        rows: figures by name; those that are not finite are left out.
        xlabel: what the figures are.
        reference: value of a vertical line, or None.
        limits: of the x axis.
        description: in words.
    """
    figure, (axes,) = _axes(height=1.0 + 0.42 * max(len(rows), 2))
    axes.set_title(_short(title, 52), loc="left")
    if reference is not None:
        axes.axvline(reference, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    for i, figures in enumerate(rows.values()):
        known = [f for f in figures if math.isfinite(f.value)]
        step = min(0.22, 0.7 / max(len(known), 1))
        for k, (value, low, high) in enumerate(known):
            at = i + step * (k - (len(known) - 1) / 2)
            if math.isfinite(low) and math.isfinite(high):
                axes.plot((low, high), (at, at), color=NORMAL, linewidth=1.6, solid_capstyle="butt")
            axes.plot(value, at, "o", color=NORMAL, markersize=5 if len(known) == 1 else 4)
        if len(known) > 1:
            axes.plot(np.mean([f.value for f in known]), i, "D", color=ABNORMAL, markersize=6, zorder=5)
    axes.set_yticks(range(len(rows)), [_short(name, 26) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(*limits)
    return _svg(figure, key, title, description)


@_styled
def rank_plot(key: str, title: str, ranks: Mapping[str, float], methods: int, description: str) -> str:
    """Mean ranks as bars, the best method first."""
    ordered = dict(sorted(ranks.items(), key=lambda entry: entry[1]))
    figure, (axes,) = _axes(height=1.0 + 0.42 * max(len(ordered), 2))
    axes.set_title(_short(title, 52), loc="left")
    axes.barh(range(len(ordered)), list(ordered.values()), height=0.55, color=NORMAL, alpha=0.8)
    for i, rank in enumerate(ordered.values()):
        axes.text(rank, i, f" {rank:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(ordered)), [_short(name, 26) for name in ordered])
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    axes.set_xlim(0, methods + 0.6)
    axes.set_xlabel("mean rank (1 is best)")
    return _svg(figure, key, title, description)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
