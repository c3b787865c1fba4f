# SPDX-License-Identifier: Apache-2.0
"""One page with the figures and some pictures of a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_rdad.utils import atomic_path
from monai_rdad.visualize.overlay import overlay

__all__ = ["Example", "Part", "description_page"]

COLORS = {"training, normal": "#4c72b0", "testing, normal": "#55a868", "testing, abnormal": "#c44e52"}
LEVELS = {"none": "#555555", "doubt": "#dd8452", "leak": "#c44e52"}
PER_LINE = 8  # pictures under a heading; more are left out
MAX_POINTS = 2000  # of a scatter plot: more hide each other
DPI = 110


class Part(NamedTuple):
    """Figures of the images of one split and label.

    Attributes:
        name: one of "training, normal", "testing, normal", "testing, abnormal".
        sizes: (N, 2), rows and columns.
        histogram: of the intensities 0 to 255, sum 1.
        group_sizes: images in each group.
        moments: (N, 2), mean and standard deviation of the intensity.
    """

    name: str
    sizes: NDArray[Any]
    histogram: NDArray[np.float64]
    group_sizes: NDArray[Any]
    moments: NDArray[np.float64]


class Example(NamedTuple):
    """One picture of the page.

    Attributes:
        part: heading that it stands under.
        picture: (H, W), bytes.
        mask: (H, W), True on the lesion, or None.
    """

    part: str
    picture: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None


def description_page(
    description: Mapping[str, Any], parts: Sequence[Part], examples: Sequence[Example], path: str | os.PathLike[str]
) -> None:
    """Write a PNG with counts, sizes, intensities, group sizes, trivial scores, warnings and pictures of a data set.

    Args:
        description: of ``monai_rdad.apps.describe``.
        parts: what the plots show.
        examples: pictures, in the order of their headings.
        path: of the PNG; written completely or not at all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    headings = list(dict.fromkeys(example.part for example in examples))
    figure = Figure(figsize=(13, 8.95 + 1.65 * len(headings)), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    height = float(figure.get_figheight())
    figure.text(0.03, 1 - 0.35 / height, shorten(description["title"], 100), fontsize=15, weight="bold", va="center")
    figure.text(
        0.03, 1 - 0.68 / height, f"manifest SHA-256 {description['manifest_sha256'][:16]}", fontsize=9, va="center"
    )
    grid = figure.add_gridspec(
        2, 3, left=0.06, right=0.98, top=1 - 1.15 / height, bottom=1 - 7.05 / height, wspace=0.3, hspace=0.46
    )
    _counts(figure.add_subplot(grid[0, 0]), description["splits"])
    _sizes(figure.add_subplot(grid[0, 1]), parts)
    _groups(figure.add_subplot(grid[0, 2]), parts)
    _histograms(figure.add_subplot(grid[1, 0]), parts)
    _moments(figure.add_subplot(grid[1, 1]), parts)
    _leaks(figure.add_subplot(grid[1, 2]), description["trivial_scores"])
    warnings = [shorten(text, 150) for text in description["warnings"][:5]] or ["no warning"]
    if len(description["warnings"]) > 5:
        warnings.append(f"and {len(description['warnings']) - 5} more, see description.json")
    figure.text(
        0.03,
        1 - 7.8 / height,
        "\n".join(warnings),
        fontsize=9,
        va="top",
        color=LEVELS["leak" if description["warnings"] else "none"],
    )
    for row, heading in enumerate(headings):
        top = 1.65 * (len(headings) - row) / height
        figure.text(0.03, top - 0.12 / height, heading, fontsize=10, weight="bold", va="center")
        axes = figure.add_axes((0.03, top - 1.6 / height, 0.95, 1.38 / height))
        axes.set_axis_off()
        axes.imshow(_strip([example for example in examples if example.part == heading]))
        axes.set_anchor("W")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _strip(examples: Sequence[Example]) -> NDArray[np.uint8]:
    """Pictures beside each other on white, each in the middle of a square, with the outlines of their lesions."""
    edge = max(max(example.picture.shape) for example in examples)
    strip = np.full((edge, PER_LINE * (edge + edge // 16), 3), 255, np.uint8)
    for i, (_, picture, mask) in enumerate(examples[:PER_LINE]):
        lesion = None if mask is None else mask.astype(np.uint8)
        drawn = overlay(picture, np.zeros(picture.shape, np.float32), 0.0, 1.0, mask=lesion)
        rows, columns = picture.shape
        top, left = (edge - rows) // 2, i * (edge + edge // 16) + (edge - columns) // 2
        strip[top : top + rows, left : left + columns] = drawn
    return strip


def _counts(axes: Any, splits: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(splits)
    normal = [splits[name]["images"] - splits[name]["abnormal"] for name in names]
    abnormal = [splits[name]["abnormal"] for name in names]
    axes.barh(names, normal, color=COLORS["testing, normal"], label="normal")
    axes.barh(names, abnormal, left=normal, color=COLORS["testing, abnormal"], label="abnormal")
    for i, name in enumerate(names):
        text = f" {normal[i]} + {abnormal[i]}, {splits[name]['groups']} groups, {splits[name]['masks']} masks"
        axes.text(0, i + 0.46, text, fontsize=8, va="center")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title("Images: normal + abnormal", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7.5, loc="upper right", bbox_to_anchor=(1.0, -0.06), ncol=2, frameon=False)


def _sizes(axes: Any, parts: Sequence[Part]) -> None:
    # Marks of different forms and sizes, the largest first, so that equal sizes of different parts all show.
    for part, mark, area in zip(parts, "sox", (70, 30, 18), strict=False):
        sizes = np.unique(part.sizes, axis=0)
        axes.scatter(sizes[:, 1], sizes[:, 0], s=area, marker=mark, color=COLORS[part.name], alpha=0.6, label=part.name)
    axes.set_title("Image sizes", fontsize=10)
    axes.set_xlabel("columns", fontsize=8)
    axes.set_ylabel("rows", fontsize=8)
    axes.margins(0.15)
    axes.tick_params(labelsize=8)
    if parts:
        axes.legend(fontsize=7.5)


def _groups(axes: Any, parts: Sequence[Part]) -> None:
    largest = max((int(part.group_sizes.max()) for part in parts), default=1)
    edges = np.arange(largest + 2) - 0.5 if largest <= 30 else np.linspace(0.5, largest + 0.5, 31)
    for part in parts:
        axes.hist(part.group_sizes, edges, histtype="step", color=COLORS[part.name], linewidth=1.6, label=part.name)
    axes.set_yscale("log")
    axes.set_title("Images per group (patient, scan, slide)", fontsize=10)
    axes.set_xlabel("images", fontsize=8)
    axes.set_ylabel("groups", fontsize=8)
    axes.tick_params(labelsize=8)


def _histograms(axes: Any, parts: Sequence[Part]) -> None:
    for part in parts:
        centres = (np.arange(part.histogram.size) + 0.5) * 256 / part.histogram.size
        axes.plot(centres, part.histogram, color=COLORS[part.name], linewidth=1.6, label=part.name)
    tops = [float(part.histogram[3:-1].max()) for part in parts]
    axes.set_ylim(0, 1.2 * max(tops, default=1.0) or 1.0)  # the peaks of black and white background would hide the rest
    axes.set_title("Intensities (grey, 128 pixels)", fontsize=10)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("intensity", fontsize=8)
    if parts:
        axes.legend(fontsize=7.5)


def _moments(axes: Any, parts: Sequence[Part]) -> None:
    for part in parts:
        chosen = np.random.default_rng(0).permutation(len(part.moments))[:MAX_POINTS]
        points = part.moments[chosen]
        axes.scatter(points[:, 0], points[:, 1], s=7, alpha=0.5, color=COLORS[part.name], linewidths=0)
    axes.set_title("Each image: mean and deviation", fontsize=10)
    axes.set_xlabel("mean intensity", fontsize=8)
    axes.set_ylabel("standard deviation", fontsize=8)
    axes.tick_params(labelsize=8)


def _leaks(axes: Any, scores: Mapping[str, Mapping[str, Any]]) -> None:
    axes.set_title("AUROC of trivial scores, 95 % intervals", fontsize=10)
    axes.set_xlim(0, 1)
    for low, high in ((0, 0.25), (0.75, 1)):
        axes.axvspan(low, high, color=LEVELS["leak"], alpha=0.12, linewidth=0)
    axes.axvline(0.5, color="#999999", linewidth=0.8)
    for i, figures in enumerate(scores.values()):
        color = LEVELS[figures["level"]]
        axes.plot((figures["low"], figures["high"]), (i, i), color=color, linewidth=2)
        axes.plot(figures["auroc"], i, "o", color=color, markersize=5)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_yticks(range(len(scores)), [name.replace("_", " ") for name in scores])
    axes.tick_params(labelsize=8)
    if not scores:
        axes.text(0.5, 0.5, "needs normal and abnormal\ntest images", ha="center", transform=axes.transAxes, fontsize=9)
