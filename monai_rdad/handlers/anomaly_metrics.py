# SPDX-License-Identifier: Apache-2.0
"""Evaluation of anomaly maps inside MONAI's evaluator."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.utils.type_conversion import convert_to_tensor
from numpy.typing import NDArray

from monai_rdad.handlers.calibration import Calibration
from monai_rdad.metrics import (
    PixelAccumulator,
    bootstrap_image_metrics,
    bootstrap_rate,
    group_strata,
    image_metrics,
    is_abnormal,
    resample_pixel_metrics,
    resampled_intervals,
)
from monai_rdad.transforms.slices.array import through_slices
from monai_rdad.utils import atomic_path, write_csv

__all__ = ["AnomalyMetrics", "ImageScore", "SliceScore"]

logger = logging.getLogger(__name__)


class ImageScore(NamedTuple):
    """One row of scores.csv.

    Attributes:
        name: of the image.
        group: its patient, scan or slide.
        label: 0 normal, 1 abnormal.
        score: of its map.
        p_value: conformal p-value of the score, empty without calibration.
        area: fraction of its map above the calibrated threshold, empty without calibration.
    """

    name: str
    group: str
    label: int
    score: float
    p_value: float | str = ""
    area: float | str = ""


class SliceScore(NamedTuple):
    """One row of slices.csv.

    Attributes:
        name: of the volume.
        group: its patient.
        slice: counted towards right, front or head.
        label: 0 normal, 1 with an abnormal voxel in the mask.
        score: of its map; 0 if it was left out for want of foreground.
    """

    name: str
    group: str
    slice: int
    label: int
    score: float


class _Sample(NamedTuple):
    row: ImageScore
    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.uint8] | None
    slices: list[SliceScore]


def _largest(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(1).amax(1)


class AnomalyMetrics:
    """Image and pixel metrics of a `SupervisedEvaluator(..., decollate=False)`, with n and 95 % intervals.

    Each iteration takes `engine.state.output["pred"]`, float (B, 1, H, W) or (B, 1, H, W, D), and from
    `engine.state.batch` "label" (0 or 1) and, where present, "mask" (0 normal, 1 abnormal, 255 unknown), "group" and
    "name". When the epoch is complete `engine.state.metrics` holds floats:

    - `image_auroc`, `image_ap`, `oracle_f1`, `oracle_accuracy`, `sensitivity_at_95_specificity`;
    - if any mask has shown both kinds of pixel: `pixel_auroc`, `pixel_ap`, `aupro_0.3`, `oracle_dice`;
    - with a calibration, at the false-positive rate `alpha` that it promises: `false_positive_rate_at_<alpha>` of the
      normal and `sensitivity_at_<alpha>` of the abnormal images; `normal_area_at_<area_alpha>`, the mean fraction of
      normal images above the map value that promises at most `area_alpha`, and with masks `dice_at_area_<area_alpha>`
      at that value, pooled over all pixels;
    - of volumes with masks, over slices: `slice_auroc`, `slice_ap`, `n_slices`, `n_abnormal_slices`. Normal slices
      without any map value, which were left out for want of foreground, are not counted;
    - for each of them but `dice_at_area_...`, with `bootstrap` > 0, `<name>_ci_low` and `<name>_ci_high`;
    - `n_images`, `n_abnormal` (images), `n_groups`; for pixels `n_pixel_images` (with known pixels) and `n_regions`.

    Under torch.distributed every rank ends with the figures of all ranks. The images with which a `DistributedSampler`
    pads the last batches are told by their names and count once.

    It can be given as a handler or as `key_val_metric={"image_auroc": AnomalyMetrics()}`. Among handlers it comes
    before those that read the metrics.

    Args:
        reduction: from maps (B, 1, ...) to one score per image; default is each map's maximum.
        bootstrap: number of resamples; 0 for no intervals.
        pixel: whether to evaluate masks.
        seed: seed of the resamples.
        output_dir: folder for what :meth:`write` writes, when the epoch is complete, by rank 0 only.
        calibration: of the network, or None; not used, with a warning, where it is of volumes and the maps are of
            images, or the other way round.
        alpha: nominal false-positive rate of images.
        area_alpha: nominal false-positive area of a normal image.

    Attributes:
        scores: after the epoch one row per image, sorted by name.
    """

    def __init__(
        self,
        reduction: Callable[[torch.Tensor], torch.Tensor] | None = None,
        bootstrap: int = 1000,
        pixel: bool = True,
        seed: int = 0,
        output_dir: str | os.PathLike[str] | None = None,
        calibration: Calibration | None = None,
        alpha: float = 0.05,
        area_alpha: float = 0.01,
    ) -> None:
        self.calibration = calibration
        self.alpha = alpha
        self.area_alpha = area_alpha
        self.reduction = reduction or _largest
        self.bootstrap = bootstrap
        self.pixel = pixel
        self.seed = seed
        self.output_dir = output_dir
        self.scores: list[ImageScore] = []
        self._metrics: dict[str, float] = {}
        self._reset()

    def attach(self, engine: Engine, name: str | None = None) -> None:
        """Attach to an evaluator; `name` is what MONAI passes to a key metric and changes nothing."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def write(self, output_dir: str | os.PathLike[str]) -> None:
        """Write what comes of the evaluation.

        - ``scores.csv``: an :class:`ImageScore` per image;
        - ``slices.csv``, for volumes with masks: a :class:`SliceScore` per slice;
        - ``pixel_resamples.npz``, with masks and a bootstrap: each pixel metric in each resample, from which two
          methods are compared pair by pair;
        - ``metrics.json``: all figures, null for those that do not exist. It comes last.
        """
        write_csv(os.path.join(output_dir, "scores.csv"), ImageScore._fields, self.scores)
        Path(output_dir, "slices.csv").unlink(missing_ok=True)  # of an earlier evaluation
        if self._slices:
            write_csv(os.path.join(output_dir, "slices.csv"), SliceScore._fields, sorted(self._slices))
        Path(output_dir, "pixel_resamples.npz").unlink(missing_ok=True)
        if self._resampled:
            with atomic_path(os.path.join(output_dir, "pixel_resamples.npz")) as path:
                arrays: dict[str, Any] = dict(self._resampled)
                np.savez(path, **arrays)
        figures = {k: v if math.isfinite(v) else None for k, v in self._metrics.items()}
        with atomic_path(os.path.join(output_dir, "metrics.json")) as path:
            path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    def _reset(self) -> None:
        self._rows: list[ImageScore] = []
        self._slices: list[SliceScore] = []
        self._names: set[str] = set()
        self._resampled: dict[str, NDArray[np.float64]] = {}
        self._pixels = PixelAccumulator(by_group=self.bootstrap > 0)
        # The last batch waits here: only it can hold the image that pads this rank's share of a DistributedSampler.
        self._pending: list[_Sample] = []

    def _update(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        if not isinstance(batch, dict) or not isinstance(output, dict):
            raise ValueError("AnomalyMetrics reads whole batches: give the evaluator decollate=False.")
        self._commit()
        maps = convert_to_tensor(output["pred"], dtype=torch.float32, track_meta=False)
        scores = self.reduction(maps).reshape(-1).tolist()
        if len(scores) != len(maps):
            raise ValueError(f"The reduction made {len(scores)} scores of {len(maps)} maps; it has to make one each.")
        labels = _column(batch, "label", len(maps))
        if labels is None:
            raise ValueError('The batch has no "label" (0 normal, 1 abnormal): image metrics need one per image.')
        # Without names no duplicate can be told; these only have to differ, over ranks too.
        names = _column(batch, "name", len(maps)) or [
            f"rank{_rank()}_{len(self._names) + i:06d}" for i in range(len(maps))
        ]
        groups = _column(batch, "group", len(maps)) or names
        arrays = maps[:, 0].cpu().numpy()
        decisions = self._decisions(batch, scores, arrays)
        masks: Sequence[Any] = [None] * len(maps)
        if self.pixel and "mask" in batch:
            masks = convert_to_tensor(batch["mask"], track_meta=False)[:, 0].cpu().numpy()
        for name, group, label, score, decision, array, mask, anomaly_map in zip(
            names, groups, labels, scores, decisions, arrays, masks, maps, strict=True
        ):
            if not math.isfinite(score):
                raise ValueError(f"The score of {name!r} is {score}: its anomaly map or the reduction is broken.")
            if label not in (0, 1):
                raise ValueError(f"The label of {name!r} is {label}, not 0 (normal) or 1 (abnormal).")
            if str(name) in self._names:
                raise ValueError(f"{name!r} came twice in one epoch: every image needs a name of its own.")
            self._names.add(str(name))
            row = ImageScore(str(name), str(group or name), int(label), score, *decision)
            slices = [] if mask is None or mask.ndim == 2 else self._slice_scores(row, anomaly_map, mask)
            self._pending.append(_Sample(row, array, mask, slices))

    def _slice_scores(self, row: ImageScore, anomaly_map: torch.Tensor, mask: NDArray[np.uint8]) -> list[SliceScore]:
        """Scores of the slices of a volume whose label the mask tells."""
        planes = through_slices(anomaly_map[None])
        scores, seen = self.reduction(planes).reshape(-1).tolist(), planes.flatten(1).any(1).tolist()
        abnormal, unknown = ((mask == value).any((0, 1)).tolist() for value in (1, 255))
        return [
            SliceScore(row.name, row.group, k, int(abnormal[k]), scores[k])
            for k in range(len(scores))
            if abnormal[k] or (seen[k] and not unknown[k])
        ]

    def _decisions(
        self, batch: dict[str, Any], scores: list[float], maps: NDArray[np.float32]
    ) -> list[tuple[float | str, float | str]]:
        """(p-value, area above the threshold) of each image, empty without a calibration for this kind of image."""
        if self.calibration is None or not self.calibration.fits(maps.ndim == 4):
            return [("", "")] * len(scores)
        strata = _column(batch, "stratum", len(scores)) or [""] * len(scores)
        return [
            (self.calibration.p_value(score, s), self.calibration.area(array, self.area_alpha, s))
            for score, array, s in zip(scores, maps, strata, strict=True)
        ]

    def _commit(self) -> None:
        """Take the waiting batch in."""
        for row, anomaly_map, mask, slices in self._pending:
            self._rows.append(row)
            self._slices += slices
            if mask is not None:
                self._pixels.update(anomaly_map, mask, row.group, row.name)
        self._pending = []

    def _gather(self) -> None:
        """Make this rank's rows and pixels those of all ranks, each image once."""
        mine = ([r.name for r in self._rows], [s.row.name for s in self._pending])
        everyone = _all_gather(mine)
        taken = {name for committed, _ in everyone for name in committed}
        taken.update(name for _, pending in everyone[: _rank()] for name in pending)
        self._pending = [s for s in self._pending if s.row.name not in taken]
        self._commit()
        shares = _all_gather((self._rows, self._pixels, self._slices))
        rows = [row for share, _, _ in shares for row in share]
        self._slices = [row for _, _, share in shares for row in share]
        name, times = Counter(row.name for row in rows).most_common(1)[0] if rows else ("", 1)
        if times > 1:
            raise ValueError(
                f"{name!r} was evaluated on {times} ranks: give the evaluation's DataLoader a DistributedSampler, and "
                "every image a name of its own."
            )
        self._rows, self._pixels = rows, PixelAccumulator(by_group=self.bootstrap > 0)
        for _, pixels, _ in shares:
            self._pixels.merge(pixels)

    def _complete(self, engine: Engine) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._gather()
        self._commit()
        self.scores = sorted(self._rows)
        names, groups = [row.name for row in self.scores], [row.group for row in self.scores]
        labels, scores = [row.label for row in self.scores], [row.score for row in self.scores]
        figures = image_metrics(scores, labels, names) | self._pixels.compute()
        strata = group_strata(groups, labels)
        if self.bootstrap:
            intervals = bootstrap_image_metrics(scores, labels, groups, self.bootstrap, self.seed)
            self._resampled = resample_pixel_metrics(self._pixels, strata, self.bootstrap, self.seed)
            intervals |= resampled_intervals(self._resampled)
            for name, (low, high) in intervals.items():
                figures |= {f"{name}_ci_low": low, f"{name}_ci_high": high}
        figures |= self._slice_figures() | self._decision_figures()
        figures |= {"n_images": len(labels), "n_abnormal": sum(labels), "n_groups": len(strata)}
        if "pixel_auroc" in figures:
            figures |= {"n_pixel_images": self._pixels.images, "n_regions": self._pixels.regions}
        self._metrics = {k: float(v) for k, v in figures.items()}
        engine.state.metrics.update(self._metrics)
        if _rank() == 0:
            logger.info("%d images, %d abnormal: %s", len(labels), sum(labels), self._summary())
            if self.output_dir is not None:
                self.write(self.output_dir)

    def _slice_figures(self) -> dict[str, float]:
        """Image metrics of slices; empty unless there are normal and abnormal ones."""
        labels, scores = [row.label for row in self._slices], [row.score for row in self._slices]
        if len(set(labels)) < 2:
            return {}
        names = {"image_auroc": "slice_auroc", "image_ap": "slice_ap"}
        found = image_metrics(scores, labels)
        figures: dict[str, float] = {names[k]: found[k] for k in names}
        if self.bootstrap:
            groups = [row.group for row in self._slices]
            intervals = bootstrap_image_metrics(scores, labels, groups, self.bootstrap, self.seed)
            for k, name in names.items():
                figures |= {f"{name}_ci_low": intervals[k][0], f"{name}_ci_high": intervals[k][1]}
        return figures | {"n_slices": len(labels), "n_abnormal_slices": sum(labels)}

    def _decision_figures(self) -> dict[str, float]:
        """What came of the calibrated thresholds; empty without them."""
        if self.calibration is None or any(row.p_value == "" for row in self.scores):
            return {}
        figures: dict[str, float] = {}
        called = [is_abnormal(float(r.p_value), self.alpha) for r in self.scores]
        columns: tuple[tuple[str, int, Sequence[float]], ...] = (
            (f"false_positive_rate_at_{self.alpha:g}", 0, called),
            (f"sensitivity_at_{self.alpha:g}", 1, called),
            (f"normal_area_at_{self.area_alpha:g}", 0, [float(r.area) for r in self.scores]),
        )
        for name, label, values in columns:
            chosen = [i for i, row in enumerate(self.scores) if row.label == label]
            if not chosen:
                continue
            mine, groups = [float(values[i]) for i in chosen], [self.scores[i].group for i in chosen]
            figures[name] = float(np.mean(mine))
            if self.bootstrap:
                low, high = bootstrap_rate(mine, groups, self.bootstrap, self.seed)
                figures |= {f"{name}_ci_low": low, f"{name}_ci_high": high}
        threshold = self.calibration.area_threshold(self.area_alpha)
        lesions = 0.0 if self._pixels.total is None else self._pixels.total.counts[1].sum()
        # one threshold for all: with strata there are several
        if (
            self._pixels.total is not None
            and lesions
            and math.isfinite(threshold)
            and len(self.calibration.scores) == 1
        ):
            normal, abnormal, _ = self._pixels.total.above(threshold)
            figures[f"dice_at_area_{self.area_alpha:g}"] = float(2 * abnormal / (abnormal + normal + lesions))
        return figures

    def _summary(self) -> str:
        """The main figures with their intervals, for people who watch."""
        parts = []
        for name in ("image_auroc", "pixel_auroc", "aupro_0.3"):
            if name in self._metrics:
                low, high = (self._metrics.get(f"{name}_ci_{end}") for end in ("low", "high"))
                interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
                parts.append(f"{name} {self._metrics[name]:.3f}{interval}")
        return ", ".join(parts)


def _column(batch: dict[str, Any], key: str, size: int) -> list[Any] | None:
    """The batch's values under a key as a list, one per image, or None if it has none."""
    if key not in batch:
        return None
    values = batch[key]
    values = values.reshape(-1).tolist() if isinstance(values, torch.Tensor | np.ndarray) else list(values)
    if len(values) != size:
        raise ValueError(f'The batch has {size} maps but {len(values)} values under "{key}".')
    return values


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _all_gather(value: Any) -> list[Any]:
    """One value from each rank, in the order of ranks."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
