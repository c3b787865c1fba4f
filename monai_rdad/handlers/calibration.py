# SPDX-License-Identifier: Apache-2.0
"""Calibration of a trained detector on normal images: one handler makes it and stores it beside the weights."""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.type_conversion import convert_to_tensor
from numpy.typing import NDArray

from monai_rdad.handlers.trained import CALIBRATION, WEIGHTS
from monai_rdad.metrics import AreaRisk, ConformalScores, PixelHistogram
from monai_rdad.utils import atomic_path, file_sha256

__all__ = ["Calibration", "CalibrationWriter", "load_calibration"]

logger = logging.getLogger(__name__)

_COARSENING = 6  # bits: 64 thresholds per octave of map values, 1.1 % apart


class Calibration(NamedTuple):
    """What normal images of the calibration split say about new images.

    Args:
        scores: per stratum the scores; "" holds all images, whatever their stratum.
        areas: per stratum the fractions of normal images above map values; the same keys.
        volumes: whether the calibration images were volumes: a volume's score is the highest of many slices, so that
            scores of slices say nothing about it.
        model_sha256: of the weights file that made the scores.
        settings: preprocessing and reduction that the scores depend on.
    """

    scores: dict[str, ConformalScores]
    areas: dict[str, AreaRisk]
    volumes: bool
    model_sha256: str
    settings: dict[str, Any]

    def stratum(self, name: str | None) -> str:
        """The stratum to use for an image of a scanner or site; "" (all images) if none is named or none was told.

        Raises:
            ValueError: there are strata, but not this one.
        """
        known = sorted(key for key in self.scores if key)
        name = "" if name is None else str(name)  # the command line makes a number of "3"
        if name == "" or not known:
            return ""
        if name not in known:
            raise ValueError(
                f"Stratum '{name}' was not calibrated; known are: {', '.join(known)}. Add normal images of it to the "
                "calibration split and calibrate again."
            )
        return name

    def p_value(self, score: float, stratum: str | None = None) -> float:
        """Conformal p-value of a new score among the calibration images of its stratum."""
        return float(self.scores[self.stratum(stratum)].p_values(score))

    def fits(self, volumes: bool) -> bool:
        """Whether it was made of the same kind of image (volumes, or images); warns once if not."""
        if volumes != self.volumes:
            made, wanted = ("volumes", "images") if self.volumes else ("images", "volumes")
            warnings.warn(f"The calibration is of {made} and says nothing about {wanted}: no decisions.", stacklevel=2)
        return volumes == self.volumes

    def threshold(self, alpha: float, stratum: str | None = None) -> float:
        """Score above which an image is abnormal at the false-positive rate ``alpha``."""
        return self.scores[self.stratum(stratum)].threshold(alpha)

    def area_threshold(self, alpha: float, stratum: str | None = None) -> float:
        """Map value above which lies at most the fraction ``alpha`` of a normal image, in expectation."""
        return self.areas[self.stratum(stratum)].threshold(alpha)

    def area(self, anomaly_map: NDArray[np.float32], alpha: float, stratum: str | None = None) -> float:
        """Fraction of a map at or above the threshold for ``alpha``."""
        return float((anomaly_map >= self.area_threshold(alpha, stratum)).mean())

    def save(self, ckpt_dir: str | os.PathLike[str]) -> Path:
        """Write calibration.json beside the weights, complete or not at all."""
        content = {
            "version": 1,
            "model_sha256": self.model_sha256,
            "volumes": self.volumes,
            "settings": self.settings,
            "strata": {
                name: {
                    "scores": scores.scores.tolist(),
                    "groups": scores.groups.tolist(),
                    "area": {"values": list(self.areas[name].values), "fractions": list(self.areas[name].fractions)},
                }
                for name, scores in self.scores.items()
            },
        }
        target = Path(ckpt_dir) / CALIBRATION
        with atomic_path(target) as path:
            path.write_text(json.dumps(content) + "\n", encoding="utf-8")
        return target


def load_calibration(
    ckpt_dir: str | os.PathLike[str], settings: Mapping[str, Any] | None = None, required: bool = False
) -> Calibration | None:
    """The calibration of the trained network in a folder, or None if there is none.

    Args:
        ckpt_dir: folder of model.pt.
        settings: those in use, of what the scores depend on; None to take the calibration as it is.
        required: raise instead of returning None.

    Raises:
        FileNotFoundError: there is none, but it is required.
        ValueError: it is broken, or belongs to other weights or settings.
    """
    path = Path(ckpt_dir) / CALIBRATION
    if not path.is_file():
        if required:
            raise FileNotFoundError(
                f"There is no {CALIBRATION} in {ckpt_dir}. Calibrate first (configs/calibrate.yaml)."
            )
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores, areas = {}, {}
        for name, stratum in content["strata"].items():
            scores[name] = ConformalScores(stratum["scores"], [str(group) for group in stratum["groups"]])
            area = stratum["area"]
            areas[name] = AreaRisk(tuple(area["values"]), tuple(area["fractions"]), scores[name].n_groups)
        made_with = dict(content["settings"])
        result = Calibration(scores, areas, bool(content["volumes"]), str(content["model_sha256"]), made_with)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a calibration ({error!r}). Calibrate again.") from error
    if (weights := Path(ckpt_dir) / WEIGHTS).is_file() and result.model_sha256 != file_sha256(weights):
        raise ValueError(
            f"{path} belongs to other weights than {weights}: the network was trained anew. Calibrate again."
        )
    for name, value in json.loads(json.dumps(dict(settings or {}))).items():
        if made_with.get(name) != value:
            raise ValueError(
                f"{path} was made with {name} {made_with.get(name)}, not {value}: its thresholds do not hold. "
                "Calibrate again with the settings in use."
            )
    return result


class CalibrationWriter:
    """Ignite handler that calibrates a trained network when an evaluator has seen all normal calibration images.

    For a ``SupervisedEvaluator(..., decollate=False)``, one process. Reads "pred", float (B, 1, H, W[, D]), of the
    output, and of the batch "label" (all 0) and, where present, "group" (default: the name) and "stratum". Memory: one
    histogram of at most a few thousand bins per image.

    Args:
        ckpt_dir: folder of model.pt, where calibration.json goes.
        reduction: from maps (B, 1, ...) to scores (B,), as in evaluation and inference.
        settings: preprocessing and reduction, values that JSON can hold; where others are used it is refused.

    Raises:
        ValueError: (during the run) an abnormal image, images and volumes mixed, or a score that is not finite; the
            message names the image.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike[str],
        reduction: Callable[[torch.Tensor], torch.Tensor],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.ckpt_dir = ckpt_dir
        self.settings = dict(settings or {})
        self.reduction = reduction

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self._rows: list[tuple[str, str, float]] = []  # stratum, group, score
        self._tails: dict[str, dict[str, list[_Tail]]] = {"": {}}
        self._volumes = False

    def _iteration_completed(self, engine: Engine) -> None:
        batch = engine.state.batch
        maps = convert_to_tensor(engine.state.output["pred"], dtype=torch.float32, track_meta=False)
        scores = self.reduction(maps).reshape(-1).tolist()
        names = batch["name"]
        if self._rows and self._volumes != (maps.ndim == 5):
            raise ValueError(f"{names[0]!r}: the calibration split mixes images and volumes. Use one kind of them.")
        self._volumes = maps.ndim == 5
        groups, strata = batch.get("group", names), batch.get("stratum", [""] * len(names))
        arrays = maps[:, 0].cpu().numpy()
        for name, label, group, stratum, score, array in zip(
            names, batch["label"], groups, strata, scores, arrays, strict=True
        ):
            if int(label) != 0:
                raise ValueError(f"{name!r} is abnormal: calibration takes normal images only. Move it to testing.")
            if not math.isfinite(score):
                raise ValueError(f"The score of {name!r} is {score}: its anomaly map or the reduction is broken.")
            self._rows.append((str(stratum), str(group), score))
            tail = _Tail.of_map(array)
            for key in {"", str(stratum)}:
                self._tails.setdefault(key, {}).setdefault(str(group), []).append(tail)

    def _completed(self, engine: Engine) -> None:
        scores, areas = {}, {}
        for key, by_group in self._tails.items():
            rows = [row for row in self._rows if key in ("", row[0])]
            scores[key] = ConformalScores([row[2] for row in rows], [row[1] for row in rows])
            areas[key] = _area_risk(by_group.values())
        calibration = Calibration(
            scores, areas, self._volumes, file_sha256(Path(self.ckpt_dir) / WEIGHTS), self.settings
        )
        path = calibration.save(self.ckpt_dir)
        logger.info(
            "calibrated on %d normal images of %d groups; score thresholds: %s; %s",
            len(self._rows),
            scores[""].n_groups,
            ", ".join(f"{calibration.threshold(alpha):.4g} at {alpha:g}" for alpha in (0.05, 0.1)),
            path,
        )
        for key, stratum in scores.items():
            if stratum.n_groups < 19:
                logger.warning(
                    "only %d groups%s: a false-positive rate of 0.05 needs at least 19, so no image will be called "
                    "abnormal at 0.05",
                    stratum.n_groups,
                    f" in stratum '{key}'" if key else "",
                )


class _Tail(NamedTuple):
    """Fraction of one map at or above the lower edge of each bin, the bins numbered from ``first`` on."""

    first: int
    fractions: NDArray[np.float64]

    @classmethod
    def of_map(cls, anomaly_map: NDArray[np.float32]) -> _Tail:
        histogram = PixelHistogram.from_map(anomaly_map, np.zeros(anomaly_map.shape, np.uint8))
        assert histogram is not None  # no pixel is unknown
        coarse = histogram.coarsened(_COARSENING)
        above = np.cumsum(coarse.counts[0, ::-1], dtype=np.float64)[::-1]
        return cls(coarse.first, above / above[0])


def _area_risk(groups: Iterable[list[_Tail]]) -> AreaRisk:
    """Mean over groups of the mean over a group's images, on the bins of all, with one bin more that holds nothing."""
    members = list(groups)
    tails = [tail for group in members for tail in group]
    first = min(tail.first for tail in tails)
    last = max(tail.first + tail.fractions.size for tail in tails)
    total = np.zeros(last - first + 1)
    for group in members:
        for tail in group:
            at = tail.first - first
            weight = 1 / (len(members) * len(group))
            total[:at] += weight
            total[at : at + tail.fractions.size] += weight * tail.fractions
    values = PixelHistogram.lower_edges(np.arange(first, last + 1), _COARSENING)
    return AreaRisk(tuple(values.tolist()), tuple(total.tolist()), len(members))
