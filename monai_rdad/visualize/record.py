# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves in its folder for the report: figures, scores, pictures of some cases, provenance.

========================  ==============================================================================================
``metrics.json``          figures by name, of :class:`~monai_rdad.handlers.AnomalyMetrics`
``scores.csv``            a row per image, of the same
``evaluation.json``       title, commands, settings, hashes, versions, colour scale and the list of cases
``cases/``                image, map and mask of each case, grey or RGB PNG of 8 bits, at most 256 px
``calibration.json``      a copy of the calibration that was used, if one was
========================  ==============================================================================================
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_rdad.metrics import is_abnormal, misordered
from monai_rdad.utils import atomic_path
from monai_rdad.visualize.maps import read_map, write_map
from monai_rdad.visualize.overlay import to_rgb
from monai_rdad.visualize.sheet import Case

__all__ = ["Record", "Score", "choose", "errors", "read_metrics", "read_record", "sample_key", "write_record"]

RECORD, CASES, CALIBRATION = "evaluation.json", "cases", "calibration.json"
CONTENT: tuple[str, ...] = (
    "title",
    "data",
    "split",
    "created",
    "device",
    "commands",
    "notes",
    "settings",
    "software",
    "hashes",
    "scale",
)
CONTENT += ("calibrated", "alpha", "area_alpha", "threshold", "strata", "cases")
ERRORS = 2 / 3  # of the gallery; the rest is a random sample


class Score(NamedTuple):
    """One image of scores.csv.

    Attributes:
        name: of the image.
        group: its patient, scan or slide.
        label: 0 normal, 1 abnormal.
        score: of its map.
        p_value: conformal p-value, None without calibration.
    """

    name: str
    group: str
    label: int
    score: float
    p_value: float | None = None

    def called(self, alpha: float) -> bool | None:
        """Whether it is called abnormal at the false-positive rate ``alpha``; None without calibration."""
        return None if self.p_value is None else is_abnormal(self.p_value, alpha)

    def wrong(self, alpha: float) -> bool:
        """Whether it has been called what it is not."""
        called = self.called(alpha)
        return called is not None and called != bool(self.label)


class Record(NamedTuple):
    """An evaluation's folder in memory, the pictures not yet read.

    Attributes:
        folder: where it lies.
        content: of evaluation.json.
        metrics: figures by name, NaN where not defined.
        scores: one per image.
        calibration: scores and groups of the calibration images of all strata, or None.
    """

    folder: Path
    content: dict[str, Any]
    metrics: dict[str, float]
    scores: list[Score]
    calibration: tuple[NDArray[np.float64], list[str]] | None

    def case(self, entry: Mapping[str, Any], score: Score) -> Case:
        """One of ``content["cases"]`` with its pictures."""
        from PIL import Image

        def pixels(name: str) -> NDArray[np.uint8]:
            with Image.open(self.folder / CASES / name) as image:
                return np.asarray(image)

        try:
            image = pixels(entry["image"])
            planes = image.transpose(2, 0, 1) if image.ndim == 3 else image
            mask = None if entry["mask"] is None else pixels(entry["mask"])
            anomaly_map = read_map(self.folder / CASES / entry["map"])
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: the pictures of case '{score.name}' cannot be read ({error}). Evaluate again."
            ) from error
        place = None if entry["slice"] is None else (entry["slice"][0], entry["slice"][1])
        return Case(
            score.name, score.label, score.score, planes, anomaly_map, mask, slice=place, outlined=entry["outlined"]
        )


def errors(scores: Sequence[Score], alpha: float) -> NDArray[np.float64]:
    """How wrong each image is, (N,); the highest come first in the gallery.

    With calibration it is the natural logarithm of the factor by which the p-value lies on the wrong side of alpha:
    positive for a false decision, negative for a right one. Without, it is the fraction of images of the other class
    that are on the wrong side of it; without another class, the score of a normal and minus the score of an abnormal
    image.
    """
    labels = np.array([s.label for s in scores])
    values = np.array([s.score for s in scores])
    if scores and all(s.p_value is not None for s in scores):
        factor = np.log(np.array([s.p_value for s in scores], dtype=np.float64) / alpha)
        return np.where(labels == 1, factor, -factor)
    wrong = misordered(values, labels)
    return np.where(np.isnan(wrong), np.where(labels == 1, -values, values), wrong)


def order(scores: Sequence[Score], alpha: float) -> list[int]:
    """Indices of the scores, worst error first; equally wrong ones by how far their score lies on that side."""
    wrong = errors(scores, alpha)
    lean = [-s.score if s.label else s.score for s in scores]
    return sorted(range(len(scores)), key=lambda i: (-wrong[i], -lean[i], scores[i].name))


def sample_key(name: str) -> str:
    """The images with the lowest keys are a random sample, the same one in every run and in every order."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


def choose(scores: Sequence[Score], alpha: float, count: int) -> set[str]:
    """Names of the images for the gallery: the worst errors, then a random sample, normal and abnormal by turns.

    Errors are false decisions where there is a calibration, and otherwise all images in the order of :func:`errors`.
    They take at most two thirds of the places.
    """
    worst = [scores[i] for i in order(scores, alpha)]
    if any(s.p_value is not None for s in scores):
        worst = [s for s in worst if s.wrong(alpha)]
    chosen = set(islice(_by_turns(worst), round(ERRORS * count)))
    sample = (name for name in _by_turns(sorted(scores, key=lambda s: sample_key(s.name))) if name not in chosen)
    return chosen | set(islice(sample, count - len(chosen)))


def _by_turns(scores: Sequence[Score]) -> list[str]:
    classes = [[s.name for s in scores if s.label == label] for label in (0, 1)]
    return [name for name in chain.from_iterable(zip_longest(*classes)) if name is not None]


def write_record(folder: str | os.PathLike[str], cases: Sequence[Case], content: Mapping[str, Any]) -> None:
    """Write the pictures and evaluation.json. An earlier evaluation.json is gone until the new one is complete.

    Args:
        folder: of the evaluation.
        cases: for the gallery.
        content: the values of :data:`CONTENT` but "cases", which is added.
    """
    from PIL import Image

    target = Path(folder)
    (target / RECORD).unlink(missing_ok=True)
    entries = []
    with atomic_path(target / CASES) as pictures:
        pictures.mkdir()
        for number, case in enumerate(cases):
            stem = f"{number:04d}"
            entry: dict[str, Any] = {"name": case.name, "image": f"{stem}_image.png", "map": f"{stem}_map.png"}
            rgb = to_rgb(case.image)
            grey = case.image.ndim == 2 or case.image.shape[0] == 1
            Image.fromarray(rgb[..., 0] if grey else rgb).save(pictures / entry["image"], optimize=True)
            top = max(float(case.anomaly_map.max()), 1e-6)
            write_map(pictures / entry["map"], case.anomaly_map, top, bits=8)
            entry["mask"] = None if case.mask is None else f"{stem}_mask.png"
            if case.mask is not None:
                Image.fromarray(case.mask.astype(np.uint8)).save(pictures / entry["mask"], optimize=True)
            entry["slice"] = case.slice
            entry["outlined"] = case.outlined
            entries.append(entry)
        shutil.rmtree(target / CASES, ignore_errors=True)  # a folder cannot be renamed onto a full one
    with atomic_path(target / RECORD) as path:
        path.write_text(json.dumps({"version": 1, **content, "cases": entries}, indent=1) + "\n", encoding="utf-8")


def read_metrics(path: str | os.PathLike[str]) -> dict[str, float]:
    """Figures of metrics.json, NaN where they are not defined.

    Raises:
        ValueError: the file is missing or broken.
    """
    return {str(k): math.nan if v is None else float(v) for k, v in _read_json(Path(path)).items()}


def read_record(folder: str | os.PathLike[str]) -> Record:
    """Read an evaluation's folder.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: a file is broken.
    """
    place = Path(folder)
    content = _read_json(place / RECORD)
    try:
        absent = [name for name in CONTENT if name not in content]
        if absent:
            raise ValueError(f"{RECORD} lacks {', '.join(absent)}")
        scores = _read_scores(place / "scores.csv")
        known = {s.name for s in scores}
        missing = [e["name"] for e in content["cases"] if e["name"] not in known]
        if missing:
            raise ValueError(f"case '{missing[0]}' is not in scores.csv")
        low, high = content["scale"]
        if not high > low:
            raise ValueError("the colour scale is empty")
        calibration = None
        if content["calibrated"]:
            if any(s.p_value is None for s in scores):
                raise ValueError("scores.csv lacks p-values")
            everyone = _read_json(place / CALIBRATION)["strata"][""]
            calibration = np.array(everyone["scores"], dtype=np.float64), [str(g) for g in everyone["groups"]]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename or error}: not there. Evaluate again.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} cannot be read as an evaluation ({error}). Evaluate again.") from error
    return Record(place, content, read_metrics(place / "metrics.json"), scores, calibration)


def _read_scores(path: Path) -> list[Score]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = [
            Score(
                r["name"], r["group"], int(r["label"]), float(r["score"]), float(r["p_value"]) if r["p_value"] else None
            )
            for r in csv.DictReader(file)
        ]
    if not rows:
        raise ValueError("scores.csv has no row")
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Evaluate first (configs/evaluate.yaml), or name another folder.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Evaluate again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold names and values. Evaluate again.")
    return content
