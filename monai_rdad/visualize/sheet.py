# SPDX-License-Identifier: Apache-2.0
"""One picture of several cases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_rdad.utils import atomic_path
from monai_rdad.visualize.overlay import COLORMAP, CONTOUR, overlay, to_rgb

__all__ = ["Case", "contact_sheet"]

PANEL = 2.1  # inches of one panel's edge
PER_LINE = 2  # cases beside each other
MARGIN = 0.12
STEP = 3 * PANEL + 2 * MARGIN  # from a case to the one beside it
DPI = 110


class Case(NamedTuple):
    """One case of a sheet or a gallery.

    Attributes:
        name: of the image.
        label: 0 normal, 1 abnormal.
        score: anomaly score of the image.
        image: (H, W), (1, H, W) or (3, H, W); uint8, or float in [0, 1].
        anomaly_map: (H, W).
        mask: (H, W), 1 on the lesion, or None.
        group: heading under which the case stands on a sheet, for instance why it was chosen.
        slice: index of the slice shown and number of slices, of a volume.
        outlined: map value above which a calibrated detector marks the image, or None.
    """

    name: str
    label: int
    score: float
    image: NDArray[Any]
    anomaly_map: NDArray[Any]
    mask: NDArray[Any] | None = None
    group: str = ""
    slice: tuple[int, int] | None = None
    outlined: float | None = None


def contact_sheet(cases: Sequence[Case], path: str | os.PathLike[str], vmin: float, vmax: float) -> None:
    """Write a PNG with image, map and overlay of each case, in the order given, all maps in one colour scale.

    Cases of the same ``group`` in a row stand together under their heading. The lesion's outline is drawn into the
    overlay. Above each case stand its label, score and name.

    Args:
        cases: at least one.
        path: of the PNG; written completely or not at all.
        vmin: value of the maps that is black and transparent.
        vmax: value of the maps that is brightest.

    Raises:
        ValueError: no cases, or sizes within a case differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    if not cases:
        raise ValueError("A sheet needs at least one case.")
    lines = _lines(cases)
    heights = [0.42 if isinstance(line, str) else PANEL + 0.3 for line in lines]
    footer = 0.75
    width, height = PER_LINE * STEP, sum(heights) + footer
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def place(left: float, bottom: float, w: float, h: float) -> Any:
        axes = figure.add_axes((left / width, bottom / height, w / width, h / height))
        axes.set_axis_off()
        return axes

    top = height
    for line, line_height in zip(lines, heights, strict=True):
        top -= line_height
        if isinstance(line, str):
            figure.text((MARGIN + 0.03) / width, (top + 0.06) / height, line, fontsize=12, weight="bold")
            continue
        for i, case in enumerate(line):
            left = MARGIN + i * STEP
            title = f"{'abnormal' if case.label else 'normal'}   {case.score:.3f}   {_shorten(case.name)}"
            figure.text((left + 0.03) / width, (top + PANEL + 0.08) / height, title, fontsize=8.5)
            panels = (to_rgb(case.image), None, overlay(case.image, case.anomaly_map, vmin, vmax, mask=case.mask))
            for k, picture in enumerate(panels):
                axes = place(left + k * PANEL + 0.03, top + 0.03, PANEL - 0.06, PANEL - 0.06)
                if picture is None:
                    axes.imshow(case.anomaly_map.astype(np.float32), cmap=COLORMAP, vmin=vmin, vmax=vmax)
                else:
                    axes.imshow(picture)
    bar = place(MARGIN + 0.03, 0.42, 3 * PANEL - 0.06, 0.14)
    bar.set_axis_on()
    scale = ScalarMappable(Normalize(vmin, vmax), cmap=COLORMAP)
    figure.colorbar(scale, cax=bar, orientation="horizontal").ax.tick_params(labelsize=8)
    figure.text((MARGIN + 0.03) / width, 0.08 / height, "anomaly map: one scale for all cases", fontsize=8.5)
    if any(case.mask is not None and (case.mask == 1).any() for case in cases):
        color = tuple(c / 255 for c in CONTOUR)
        box = {"facecolor": "0.25", "edgecolor": "none", "pad": 3}
        figure.text((MARGIN + STEP + 0.08) / width, 0.45 / height, "outline: lesion", color=color, fontsize=9, bbox=box)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _lines(cases: Sequence[Case]) -> list[str | list[Case]]:
    """Headings, and the cases that stand beside each other."""
    lines: list[str | list[Case]] = []
    group = ""
    for case in cases:
        last = lines[-1] if lines else None
        if case.group != group:
            group = case.group
            lines += [group, [case]]
        elif isinstance(last, list) and len(last) < PER_LINE:
            last.append(case)
        else:
            lines.append([case])
    return lines


def _shorten(name: str, length: int = 62) -> str:
    return name if len(name) <= length else f"…{name[-length + 1 :]}"
