# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves besides its figures: pictures, provenance, and the report made of all."""

from __future__ import annotations

import math
import os
from bisect import insort
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.type_conversion import convert_to_tensor

from monai_rdad.data import manifest_hash, manifest_title
from monai_rdad.handlers.anomaly_metrics import AnomalyMetrics
from monai_rdad.handlers.mlflow import AnomalyMLFlow, software_versions
from monai_rdad.utils import command_line, file_sha256
from monai_rdad.visualize.record import Score, choose, sample_key, write_record
from monai_rdad.visualize.reduce import color_scale, fit_map, fit_mask, fit_picture
from monai_rdad.visualize.report import evaluation_report
from monai_rdad.visualize.sheet import Case, contact_sheet

__all__ = ["EvaluationReport"]

EDGE = 256  # longest edge of a kept case in pixels
PER_GROUP = 4  # cases under a heading of the sheet


class EvaluationReport:
    """Writes report.html and what it is made of when a MONAI evaluator (``decollate=False``) has completed.

    Into the folder of ``metrics`` go the pictures of the cases that tell most (``cases/``), ``evaluation.json``, a copy
    of the calibration if there is one, ``sheet.png`` with the clearest and the most mistaken cases, and
    ``report.html``, made of these files by :func:`~monai_rdad.visualize.evaluation_report`.

    At most ``cases`` images are shown: the worst errors, then a random sample
    (:func:`~monai_rdad.visualize.record.choose`). At most four times as many are held, no longer than 256 px, so that
    memory does not grow with the data. Of a volume the slice with the highest value of the map is shown. Under
    torch.distributed rank 0 writes, and shows cases of its own share.

    Reads per iteration "image", float (B, C, H, W[, D]) in [0, 1], "label", "name" and, where present, "mask" and
    "stratum" of the batch, and "pred" of the output; at the end the scores of ``metrics``, which has to come before
    this one among the handlers.

    Args:
        metrics: handler on the same evaluator, with an ``output_dir``.
        title: of the page.
        split: of the manifest, for the page.
        settings: of the training, its seed among them, for the page.
        manifest: its title and its SHA-256 go onto the page.
        weights: file of the trained network; its SHA-256 goes onto the page.
        commands: that led to the result; None for the command of this process.
        notes: sentences for below the page's title.
        cases: largest number of cases on the page.
        scale: values of the maps that are transparent and brightest; None for the median and the 99.9th percentile of
            the maps shown.
        tracker: gets the sheet and the page, or None.

    Raises:
        ValueError: ``metrics`` has no folder, or ``cases`` is below 1.
    """

    def __init__(
        self,
        metrics: AnomalyMetrics,
        title: str = "Evaluation",
        split: str = "testing",
        settings: Mapping[str, Any] | None = None,
        manifest: str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        commands: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        cases: int = 120,
        scale: tuple[float, float] | None = None,
        tracker: AnomalyMLFlow | None = None,
    ) -> None:
        if metrics.output_dir is None:
            raise ValueError("A report needs the files of AnomalyMetrics: give that handler an output_dir.")
        if cases < 1:
            raise ValueError(f"A report of {cases} cases cannot be made: show at least 1.")
        self.output_dir = Path(metrics.output_dir)
        self.metrics = metrics
        self.title = title
        self.split = split
        self.settings = dict(settings or {})
        self.manifest = manifest
        self.weights = weights
        self.commands = commands
        self.notes = notes
        self.cases = cases
        self.scale = scale
        self.tracker = tracker

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        # By label: the cases with the most mistaken scores, and those with the lowest of random keys.
        self._worst = [_Lowest(self.cases), _Lowest(self.cases)]
        self._sample = [_Lowest(self.cases), _Lowest(self.cases)]
        self._clear = _Lowest(PER_GROUP)

    def _iteration_completed(self, engine: Engine) -> None:
        batch = engine.state.batch
        maps = convert_to_tensor(engine.state.output["pred"], dtype=torch.float32, track_meta=False)
        scores = self.metrics.reduction(maps).reshape(-1).tolist()
        strata = batch.get("stratum", [None] * len(scores))
        for i, score in enumerate(scores):
            name, label = str(batch["name"][i]), int(batch["label"][i])
            places: list[tuple[_Lowest, Any]] = [
                (self._worst[label], score if label else -score),
                (self._sample[label], sample_key(name)),
            ]
            if label:
                places.append((self._clear, -score))
            places = [(lowest, key) for lowest, key in places if lowest.takes(key)]
            if not places:
                continue
            mask = batch["mask"][i, 0] if "mask" in batch else None
            outlined = self._outlined(maps.ndim == 5, strata[i])
            case = _case(name, label, score, batch["image"][i], maps[i, 0], mask, outlined)
            for lowest, key in places:
                lowest.add(key, case)

    def _outlined(self, volumes: bool, stratum: Any) -> float | None:
        """Map value whose outline is drawn."""
        calibration = self.metrics.calibration
        if calibration is None or calibration.volumes != volumes:
            return None
        value = calibration.area_threshold(self.metrics.area_alpha, stratum)
        return value if math.isfinite(value) else None

    def _completed(self, engine: Engine) -> None:
        if engine.state.rank != 0:
            return
        sheet = self._sheet()
        kept = {case.name: case for lowest in (*self._worst, *self._sample) for case in lowest.cases}
        rows = [
            Score(r.name, r.group, r.label, r.score, None if r.p_value == "" else float(r.p_value))
            for r in self.metrics.scores
        ]
        chosen = choose([row for row in rows if row.name in kept], self.metrics.alpha, self.cases)
        cases = [kept[row.name] for row in rows if row.name in chosen]
        write_record(self.output_dir, cases, self._content(engine, cases, rows))
        page = evaluation_report(self.output_dir)
        if self.tracker is not None:
            self.tracker.log_artifact(sheet)
            self.tracker.log_artifact(page)

    def _sheet(self) -> Path:
        cases: list[Case] = []
        for heading, lowest in (
            ("Normal images with the highest scores", self._worst[0]),
            ("Abnormal images with the lowest scores", self._worst[1]),
            ("Abnormal images with the highest scores", self._clear),
        ):  # a small data set has the same image among the lowest and the highest
            known = {case.name for case in cases}
            cases += [c._replace(group=heading) for c in lowest.cases[:PER_GROUP] if c.name not in known]
        path = self.output_dir / "sheet.png"
        contact_sheet(cases, path, *(self.scale or color_scale([case.anomaly_map for case in cases])))
        return path

    def _content(self, engine: Engine, cases: Sequence[Case], rows: Sequence[Score]) -> dict[str, Any]:
        """What evaluation.json says."""
        calibration = self.metrics.calibration
        calibrated = calibration is not None and all(row.p_value is not None for row in rows)
        strata: list[str] = []
        threshold: float | None = None
        if calibration is not None and calibrated:
            calibration.save(self.output_dir)
            strata = sorted(name for name in calibration.scores if name)
            value = calibration.threshold(self.metrics.alpha)
            threshold = None if strata or not math.isfinite(value) else value
        hashes = {}
        if self.manifest is not None:
            hashes[f"manifest {self.manifest}"] = manifest_hash(self.manifest)
        if self.weights is not None:
            hashes[f"weights {self.weights}"] = file_sha256(self.weights)
        return {
            "title": self.title,
            "data": None if self.manifest is None else manifest_title(self.manifest),
            "split": self.split,
            "created": datetime.now(timezone.utc).isoformat(" ", "seconds"),
            "device": str(engine.state.device),
            "commands": [command_line()] if self.commands is None else list(self.commands),
            "notes": list(self.notes),
            "settings": {name: str(value) for name, value in self.settings.items()},
            "software": {name: str(value) for name, value in software_versions().items()},
            "hashes": hashes,
            "scale": list(self.scale or color_scale([case.anomaly_map for case in cases])),
            "calibrated": calibrated,
            "alpha": self.metrics.alpha,
            "area_alpha": self.metrics.area_alpha,
            "threshold": threshold,
            "strata": strata,
        }


class _Lowest:
    """The cases with the lowest keys, at most ``size``, in that order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: list[tuple[Any, Case]] = []

    @property
    def cases(self) -> list[Case]:
        return [case for _, case in self._entries]

    def takes(self, key: Any) -> bool:
        return len(self._entries) < self.size or key < self._entries[-1][0]

    def add(self, key: Any, case: Case) -> None:
        insort(self._entries, (key, case), key=itemgetter(0))
        del self._entries[self.size :]


def _case(
    name: str,
    label: int,
    score: float,
    image: torch.Tensor,
    anomaly_map: torch.Tensor,
    mask: torch.Tensor | None,
    outlined: float | None,
) -> Case:
    """A case on the CPU, small, 2D."""
    place = None
    if anomaly_map.ndim == 3:
        k = int(anomaly_map.amax((0, 1)).argmax())
        place = (k, anomaly_map.shape[-1])
        image, anomaly_map = image[..., k], anomaly_map[..., k]
        mask = None if mask is None else mask[..., k]
    picture, small = fit_picture(image, EDGE), fit_map(anomaly_map, EDGE).astype(np.float16)
    return Case(name, label, score, picture, small, fit_mask(mask, EDGE), slice=place, outlined=outlined)
