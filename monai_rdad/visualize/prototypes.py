# SPDX-License-Identifier: Apache-2.0
"""Which prototype stands for which part of an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray

from monai_rdad.handlers.mlflow import AnomalyMLFlow
from monai_rdad.handlers.prototypes import PrototypeUsage
from monai_rdad.utils import atomic_path
from monai_rdad.visualize.overlay import to_rgb
from monai_rdad.visualize.reduce import fit_picture

__all__ = ["Assignment", "PrototypeReport", "assignment_overlay", "prototype_sheet"]

EDGE = 256  # longest edge of a kept image in pixels
PER_LINE = 4


class Assignment(NamedTuple):
    """One image of a sheet.

    Attributes:
        name: of the image, with what else its title shall say.
        image: (H, W), (1, H, W) or (3, H, W); uint8, or float in [0, 1].
        nearest: index of the nearest prototype per token, (h, w).
    """

    name: str
    image: NDArray[Any]
    nearest: NDArray[np.int64]


def prototype_colors(count: int) -> NDArray[np.float64]:
    """Colours (count, 3) in [0, 1], well apart, the same ones for the same index; they repeat after 20."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if count <= 10 else "tab20"]
    return np.asarray(palette(np.arange(count) % palette.N))[:, :3]


def assignment_overlay(
    image: NDArray[Any], nearest: NDArray[np.int64], prototypes: int, alpha: float = 0.5
) -> NDArray[np.uint8]:
    """The image, tinted by the colour of the prototype that each token belongs to.

    Args:
        image: (H, W), (1, H, W) or (3, H, W); uint8, or float in [0, 1].
        nearest: index of the prototype per token, (h, w), in [0, prototypes).
        prototypes: number of prototypes.
        alpha: opacity of the colours, in [0, 1].

    Returns:
        uint8 (H, W, 3).
    """
    picture = to_rgb(image)
    rows, columns = (
        np.arange(size) * cells // size for size, cells in zip(picture.shape[:2], nearest.shape, strict=True)
    )
    tint = prototype_colors(prototypes)[nearest[rows[:, None], columns]] * 255
    return np.rint(picture * (1 - alpha) + tint * alpha).astype(np.uint8)


def prototype_sheet(cases: Sequence[Assignment], usage: NDArray[np.float64], path: str | os.PathLike[str]) -> None:
    """Write a PNG: each image above its prototype assignment, and the usage of the prototypes as bars.

    Args:
        cases: at least one.
        usage: share of all tokens per prototype, (M,).
        path: of the PNG; written completely or not at all.

    Raises:
        ValueError: no cases.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not cases:
        raise ValueError("A sheet needs at least one image.")
    m = len(usage)
    lines = -(-len(cases) // PER_LINE)
    figure = Figure(figsize=(2.3 * PER_LINE, 4.7 * lines + 2.2), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 * lines + 1, PER_LINE)
    for i, case in enumerate(cases):
        line, column = divmod(i, PER_LINE)
        for k, picture in enumerate((to_rgb(case.image), assignment_overlay(case.image, case.nearest, m))):
            axes = figure.add_subplot(grid[2 * line + k, column])
            axes.imshow(picture)
            axes.set_axis_off()
            if k == 0:
                axes.set_title(case.name, fontsize=7)
    bars = figure.add_subplot(grid[2 * lines, :])
    bars.bar(np.arange(m), usage, color=prototype_colors(m))
    bars.axhline(1 / m, color="0.3", linewidth=0.8, linestyle="--")
    entropy = float(-(usage * np.log(np.clip(usage, 1e-300, None))).sum() / np.log(m))
    bars.set_title(f"share of all tokens per prototype (dashed: equal), entropy {entropy:.2f} ln {m}", fontsize=8)
    bars.set_xticks(np.arange(m))
    bars.tick_params(labelsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


class PrototypeReport:
    """Ignite handler that writes prototypes.png when a MONAI evaluator (``decollate=False``) has completed.

    It shows the first images of each kind, normal and abnormal; slices of volumes are left out. Under torch.distributed
    rank 0 writes, with images of its own share.

    Args:
        output_dir: folder of the file.
        usage: handler on the same evaluator, before this one.
        images: number of images of each kind.
        tracker: gets the file, or None.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        usage: PrototypeUsage,
        images: int = 4,
        tracker: AnomalyMLFlow | None = None,
    ) -> None:
        self.path = Path(output_dir) / "prototypes.png"
        self.usage = usage
        self.images = images
        self.tracker = tracker

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self._kept: tuple[list[Assignment], list[Assignment]] = ([], [])

    def _iteration_completed(self, engine: Engine) -> None:
        batch, nearest = engine.state.batch, self.usage.last
        if nearest is None or batch["image"].ndim != 4:
            return
        for i, label in enumerate(batch["label"]):
            kept = self._kept[int(label)]
            if len(kept) < self.images:
                title = f"{'abnormal' if label else 'normal'} {str(batch['name'][i])[-40:]}"
                kept.append(Assignment(title, fit_picture(batch["image"][i], EDGE), nearest[i].cpu().numpy()))

    def _completed(self, engine: Engine) -> None:
        cases = self._kept[0] + self._kept[1]
        if engine.state.rank != 0 or not cases or self.usage.usage is None:
            return
        prototype_sheet(cases, self.usage.usage.numpy(), self.path)
        if self.tracker is not None:
            self.tracker.log_artifact(self.path)
