# SPDX-License-Identifier: Apache-2.0
"""Pictures and a page at the end of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.type_conversion import convert_to_tensor

from monai_rdad.handlers.anomaly_metrics import AnomalyMetrics
from monai_rdad.handlers.mlflow import AnomalyMLFlow
from monai_rdad.visualize.page import result_page
from monai_rdad.visualize.reduce import color_scale, fit_map, fit_mask, fit_picture
from monai_rdad.visualize.sheet import Case, contact_sheet

__all__ = ["EvaluationReport"]

EDGE = 256  # longest edge of a kept case in pixels

# Heading, label, and which scores are wanted: 1 the highest, -1 the lowest.
GROUPS = (
    ("Normal images with the highest scores", 0, 1),
    ("Abnormal images with the lowest scores", 1, -1),
    ("Abnormal images with the highest scores", 1, 1),
)


class EvaluationReport:
    """Writes sheet.png and result.html when a MONAI evaluator (``decollate=False``) has completed.

    The sheet shows the cases that tell most: the normal images with the highest scores, the abnormal ones with the
    lowest and with the highest. Only these are kept, no longer than 256 px, so that memory does not grow with the
    data. Of a volume the slice with the highest value of the map is shown. Under torch.distributed rank 0 writes, and
    shows cases of its own share.

    Reads per iteration "image", float (B, C, H, W[, D]) in [0, 1], "label", "name" and, where present, "mask" of the
    batch, and "pred" of the output; at the end the figures in ``engine.state.metrics`` and the scores of ``metrics``,
    which has to come before this one among the handlers.

    Args:
        output_dir: folder of the two files.
        metrics: handler on the same evaluator; its reduction and its scores are used.
        title: of the page.
        commands: that led to the result, for the page.
        notes: sentences for below the page's title.
        cases: number of cases per group.
        scale: values of the maps that are transparent and brightest; None for the median and the 99.9th percentile of
            the maps shown.
        tracker: gets both files, or None.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        metrics: AnomalyMetrics,
        title: str = "Evaluation",
        commands: Sequence[str] = (),
        notes: Sequence[str] = (),
        cases: int = 4,
        scale: tuple[float, float] | None = None,
        tracker: AnomalyMLFlow | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.metrics = metrics
        self.title = title
        self.commands = commands
        self.notes = notes
        self.cases = cases
        self.scale = scale
        self.tracker = tracker
        self._kept: list[list[Case]] = [[] for _ in GROUPS]

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self._kept = [[] for _ in GROUPS]

    def _iteration_completed(self, engine: Engine) -> None:
        batch = engine.state.batch
        maps = convert_to_tensor(engine.state.output["pred"], dtype=torch.float32, track_meta=False)
        scores = self.metrics.reduction(maps).reshape(-1).tolist()
        for i, score in enumerate(scores):
            for (group, label, sign), kept in zip(GROUPS, self._kept, strict=True):
                if int(batch["label"][i]) != label:
                    continue
                if len(kept) == self.cases and sign * score <= sign * kept[-1].score:
                    continue
                mask = batch["mask"][i, 0] if "mask" in batch else None
                kept.append(_case(str(batch["name"][i]), label, score, batch["image"][i], maps[i, 0], mask, group))
                kept.sort(key=lambda case, sign=sign: -sign * case.score)  # type: ignore[misc]
                del kept[self.cases :]

    def _completed(self, engine: Engine) -> None:
        if engine.state.rank != 0:
            return
        cases: list[Case] = []
        for kept in self._kept:  # a small data set has the same image among the lowest and the highest
            cases += [case for case in kept if case.name not in {c.name for c in cases}]
        vmin, vmax = self.scale or color_scale([case.anomaly_map for case in cases])
        sheet, page = self.output_dir / "sheet.png", self.output_dir / "result.html"
        contact_sheet(cases, sheet, vmin, vmax)
        rows = self.metrics.scores
        scores, labels = [row.score for row in rows], [row.label for row in rows]
        result_page(page, self.title, engine.state.metrics, scores, labels, sheet, self.commands, self.notes)
        if self.tracker is not None:
            self.tracker.log_artifact(sheet)
            self.tracker.log_artifact(page)


def _case(
    name: str,
    label: int,
    score: float,
    image: torch.Tensor,
    anomaly_map: torch.Tensor,
    mask: torch.Tensor | None,
    group: str,
) -> Case:
    """A case on the CPU, small, 2D."""
    if anomaly_map.ndim == 3:
        k = int(anomaly_map.amax((0, 1)).argmax())
        image, anomaly_map = image[..., k], anomaly_map[..., k]
        mask = None if mask is None else mask[..., k]
    picture, small = fit_picture(image, EDGE), fit_map(anomaly_map, EDGE)
    return Case(name, label, score, picture, small.astype(np.float16), fit_mask(mask, EDGE), group)
