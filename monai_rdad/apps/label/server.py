# SPDX-License-Identifier: Apache-2.0
"""The classes that MONAI Label asks for; what they do is done by the other modules, which work without it."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.async_tasks.utils import tasks

import monai_rdad
from monai_rdad.apps.label.detector import Detector, Prediction
from monai_rdad.apps.label.reading import Datastore, next_image, normal_images, score_images, unscored
from monai_rdad.apps.label.results import LABELS, result_json, result_suffix, write_heat_map, write_label_map
from monai_rdad.apps.label.training import MIN_IMAGES, train_version
from monai_rdad.handlers import load_settings
from monai_rdad.handlers.trained import WEIGHTS
from monai_rdad.utils import root_cause

__all__ = ["AnomalyLabelApp"]


class _Infer(InferTask):
    """Label map, or heat map, and scores of one image."""

    def __init__(self, detector: Detector, heat_map: bool) -> None:
        what = "anomaly map, the higher the more abnormal" if heat_map else "anomalies: the map above a threshold"
        super().__init__(
            # "others" keeps the heat map out of the lists of 3D Slicer, which takes every result for a label map
            type=InferType.OTHERS if heat_map else InferType.SEGMENTATION,
            labels={} if heat_map else LABELS,
            dimension=3,
            description=f"{detector.versions.method}: {what}",
        )
        self.detector = detector
        self.write = write_heat_map if heat_map else write_label_map

    def is_valid(self) -> bool:
        return True

    def get_path(self, validate: bool = True) -> str:
        return str(self.detector.versions.newest() / WEIGHTS)

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        if not request["image"]:
            raise HTTPException(status_code=404, detail="There is no image of this id in the studies.")
        threshold = request.get("threshold")
        try:
            prediction = self.detector(request["image"], None if threshold is None else float(threshold))
            if not request.get("result_write_to_file", True):
                return None, result_json(prediction)
            suffix = result_suffix(prediction, request.get("result_extension"))
            return self._write(prediction, suffix), result_json(prediction)
        except (ValueError, OSError, RuntimeError) as error:
            raise HTTPException(status_code=422, detail=str(root_cause(error))) from error

    def _write(self, prediction: Prediction, suffix: str) -> str:
        handle, path = tempfile.mkstemp(suffix, "monai_rdad-")  # MONAI Label deletes it when it was sent
        os.close(handle)
        try:
            self.write(path, prediction)
        except BaseException:
            os.unlink(path)
            raise
        return path


class _Scoring(ScoringMethod):
    """Anomaly scores of all unread images."""

    def __init__(self, model: str, detector: Detector) -> None:
        super().__init__(f"scores of the model {model} for all unread images, kept in their info")
        self.model = model
        self.detector = detector

    @property
    def version(self) -> str:
        return self.detector.versions.name_of(self.detector.versions.newest())

    def pending(self, datastore: Datastore) -> bool:
        return bool(unscored(datastore, self.model, self.version))

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        def score(path: str) -> dict[str, Any]:
            scores = self.detector(path).scores
            return {key: scores[name] for name, key in _KEPT.items() if name in scores}

        return {"model": self.model, **score_images(datastore, self.model, self.version, score)}


_KEPT = {"anomaly_score": "score", "p_value": "p_value", "abnormal": "abnormal"}


class _MostAnomalous(Strategy):
    """The unread image with the highest score."""

    def __init__(self, model: str) -> None:
        super().__init__(f"the unread image with the highest score of the model {model}")
        self.model = model

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        datastore.refresh()  # scores are written by another process
        return next_image(datastore, self.model, request["strategy"])


class _Train(TrainTask):
    """Training on the images that readers call normal."""

    def __init__(self, detector: Detector) -> None:
        super().__init__("goes on with the training on the images marked normal, and calibrates")
        self.detector = detector

    def config(self) -> dict[str, Any]:
        epochs = load_settings(self.detector.versions.newest())["max_epochs"]
        return {"max_epochs": epochs, "pretrained": True, "calibration": 0.25, "min_images": MIN_IMAGES, "seed": 0}

    def stats(self) -> dict[str, Any]:
        return {"version": self.detector.versions.name_of(self.detector.versions.newest())}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        datastore.refresh()
        images = {
            datastore.get_image_uri(image): str(datastore.get_image_info(image).get("group") or image)
            for image in normal_images(datastore)
        }
        options = {key: request[key] for key in self.config() if request.get(key) is not None}
        return train_version(self.detector.versions.folder, images, device=str(self.detector.device), **options)


class AnomalyLabelApp(MONAILabelApp):
    """Trained bundles as a MONAI Label app; ``conf`` is what :mod:`monai_rdad.apps.label` puts there.

    Per model NAME: the inference models ``NAME`` (label map) and ``NAME_heatmap``, the trainer ``NAME``, and a scoring
    method and a strategy, both named ``NAME_anomaly``; the strategies ``first`` and ``random`` of MONAI Label as well.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        options: dict[str, Any] = {key: conf[key] for key in ("device", "stratum") if key in conf}
        options |= {key: float(conf[key]) for key in ("alpha", "area_alpha") if key in conf}
        self.detectors = {name: Detector(folder, **options) for name, folder in json.loads(conf["models"]).items()}
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="monai_rdad",
            description="Anomaly detection by reverse distillation. Research only, not for clinical decisions.",
            version=monai_rdad.__version__,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """The inference models."""
        found = {}
        for name, detector in self.detectors.items():
            found[name] = _Infer(detector, heat_map=False)
            found[f"{name}_heatmap"] = _Infer(detector, heat_map=True)
        return found

    def init_trainers(self) -> dict[str, TrainTask]:
        """The trainers."""
        return {name: _Train(detector) for name, detector in self.detectors.items()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """The scoring methods."""
        return {f"{name}_anomaly": _Scoring(name, detector) for name, detector in self.detectors.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """The strategies."""
        found: dict[str, Strategy] = {f"{name}_anomaly": _MostAnomalous(name) for name in self.detectors}
        return found | {"first": First(), "random": Random()}

    def async_scoring(self, method: str | None, params: dict[str, Any] | None = None) -> Any:
        """As MONAI Label does, but without asking only where there is something to score, and once at a time.

        It starts a process each time, and asks whenever a client gets an image.
        """
        if method is None and self._server_mode:
            if any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks("scoring")):
                return {}
            return {
                name: super(AnomalyLabelApp, self).async_scoring(name, params)
                for name, task in self._scoring_methods.items()
                if task.pending(self.datastore())
            }
        return super().async_scoring(method, params)
