# SPDX-License-Identifier: Apache-2.0
"""A trained bundle in memory: one image in, map, scores and decision out."""

from __future__ import annotations

import math
import os
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.utils.type_conversion import convert_to_tensor
from numpy.typing import NDArray

from monai_rdad.handlers import Calibration, load_settings, load_weights
from monai_rdad.handlers.trained import WEIGHTS
from monai_rdad.metrics import is_abnormal
from monai_rdad.transforms import ScoreReduction
from monai_rdad.transforms.slices.array import through_slices
from monai_rdad.visualize.volume import axis_across, slice_indices

__all__ = ["Detector", "Prediction", "Versions", "bundle_folder"]

FALLBACK = 0.99  # quantile of an image's own map that is its threshold where no calibration gives one


def bundle_folder(method: str) -> Path:
    """Folder of a method's bundle: beside the package in a checkout, else where an installation puts it.

    Raises:
        ValueError: there is no bundle of this name.
    """
    beside = Path(__file__).resolve().parents[3] / "bundles"
    home = beside if beside.is_dir() else Path(sys.prefix) / "share" / "monai_rdad" / "bundles"
    folder = home / method
    if not (folder / "configs" / "inference.yaml").is_file():
        raise ValueError(f"{folder}: there is no bundle of the method '{method}'. Install the package completely.")
    return folder


class Versions:
    """The weights of one model: those that it started with, and those that later trainings published.

    Those of the start lie in ``folder`` itself and are never changed. A published version is a folder
    ``folder/label/<time>`` with the same files; it appears whole or not at all. The newest one counts; deleting it
    brings back the one before.

    Args:
        folder: ``ckpt_dir`` of a finished training.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @property
    def published(self) -> Path:
        """Folder of the published versions; it need not exist."""
        return self.folder / "label"

    def newest(self) -> Path:
        """Folder of the weights that count."""
        found = sorted(path.parent for path in self.published.glob(f"[0-9]*/{WEIGHTS}"))
        return found[-1] if found else self.folder

    def name_of(self, version: Path) -> str:
        """Name of a version's folder; "0" for the weights of the start."""
        return "0" if version == self.folder else version.name

    @property
    def method(self) -> str:
        """Of the training, which is also the name of the bundle."""
        return str(load_settings(self.folder)["method"])

    @property
    def bundle(self) -> Path:
        """Folder of the bundle."""
        return bundle_folder(self.method)


class Prediction(NamedTuple):
    """What a detector says about one image.

    Attributes:
        values: float32 anomaly map (H, W) of a picture or a single DICOM frame, (X, Y, Z) of a volume as its file
            has it.
        affine: (4, 4), RAS+ in mm, of a volume; None of a picture.
        max_value: largest value that the map can have.
        threshold: map value from which on a pixel belongs to the label map.
        threshold_source: "calibration": at most ``area_alpha`` of a normal image is marked, in expectation;
            "calibration_maximum": the calibration has too few images for that, so it is the highest map value on all of
            them; "image": there is no calibration, so the highest 1 % of this very image is marked, whatever it shows;
            "request": given by the caller.
        scores: what goes into the JSON: "anomaly_score", with a calibration "p_value", "abnormal" and "alpha"; of a
            volume "slice_scores", None for slices without foreground, and "slice_axis", the axis of ``values`` that
            they belong to.
        version: of the weights.
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64] | None
    max_value: float
    threshold: float
    threshold_source: str
    scores: dict[str, Any]
    version: str

    @property
    def label(self) -> NDArray[np.uint8]:
        """The label map: 1 where the map reaches the threshold."""
        return (self.values >= self.threshold).astype(np.uint8)


class Detector:
    """Applies the inference of a bundle (its own network, preprocessing, inferer and postprocessing) to single images.

    The network is read on the first call, and again when a new version of the weights was published. The last image's
    result is kept. Calls from several threads are done one after the other.

    Args:
        folder: ``ckpt_dir`` of a finished training.
        device: for the network; None for the first GPU if there is one, else the CPU.
        alpha: false-positive rate at which an image is called abnormal.
        area_alpha: fraction of a normal image that may be marked.
        stratum: scanner or site of the images, if the calibration has such.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        device: str | None = None,
        alpha: float = 0.05,
        area_alpha: float = 0.01,
        stratum: str | None = None,
    ) -> None:
        self.versions = Versions(folder)
        self.device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        self.alpha = alpha
        self.area_alpha = area_alpha
        self.stratum = stratum
        self._loaded: Path | None = None
        self._last: tuple[Any, Prediction] | None = None
        self._lock = threading.Lock()

    def __call__(self, image: str | os.PathLike[str], threshold: float | None = None) -> Prediction:
        """Map and scores of an image file, or of a folder with one DICOM series.

        Args:
            image: path.
            threshold: map value for the label map; None for that of the calibration.

        Raises:
            FileNotFoundError: no such image, or no weights.
            ValueError: a broken image, or weights that do not belong to the bundle.
        """
        path = os.fspath(image)
        with self._lock:
            self._load()
            # A viewer asks for scores, label map and heat map one after the other: one pass does for all.
            key = (path, os.stat(path).st_mtime_ns, self._loaded) if os.path.exists(path) else None
            if key is None or self._last is None or self._last[0] != key:
                self._last = (key, self._predict(path))
            prediction = self._last[1]
        if threshold is None:
            return prediction
        return prediction._replace(threshold=threshold, threshold_source="request")

    def _load(self) -> None:
        newest = self.versions.newest()
        if newest == self._loaded:
            return
        parser = ConfigParser()
        parser.read_config(str(self.versions.bundle / "configs" / "inference.yaml"))
        parser.update({"ckpt_dir": str(newest), "bundle_root": str(self.versions.bundle), "device": self.device})
        network = parser.get_parsed_content("network")
        load_weights(newest, network)
        self._network = network.eval()
        self._preprocessing, self._inferer, self._postprocessing = (
            parser.get_parsed_content(name) for name in ("preprocessing", "inferer", "postprocessing")
        )
        self._reduction = ScoreReduction(
            parser.get_parsed_content("score_mode"), parser.get_parsed_content("score_fraction")
        )
        self._axis = int(parser.get_parsed_content("axes")[0])
        self._max_value = float(parser.get_parsed_content("max_value"))
        # few-shot bundles have none
        self._calibration: Calibration | None = (
            parser.get_parsed_content("calibration") if parser.get("calibration", default=False) else None
        )
        self._loaded = newest

    @torch.no_grad()
    def _predict(self, path: str) -> Prediction:
        item = self._preprocessing({"image": path, "name": os.path.basename(path)})
        image = item["image"]
        batch = convert_to_tensor(image, dtype=torch.float32, track_meta=False)[None].to(self.device)
        maps = convert_to_tensor(self._inferer(batch, self._network), dtype=torch.float32, track_meta=False)
        volume = maps.ndim == 5
        score = float(self._reduction(maps))
        restored = self._postprocessing({"image": image, "pred": MetaTensor(maps[0].cpu())})["pred"]
        values = convert_to_tensor(restored, dtype=torch.float32, track_meta=False)[0].numpy()
        if not (math.isfinite(score) and np.isfinite(values).all()):
            raise ValueError("The anomaly map is not finite. Check the network's weights and precision.")
        flat = values.ndim == 2
        affine = None if flat or not isinstance(restored, MetaTensor) else np.asarray(restored.affine, np.float64)
        scores: dict[str, Any] = {"anomaly_score": score}
        calibration = self._calibration if self._calibration and self._calibration.fits(volume) else None
        if calibration:
            p_value = calibration.p_value(score, self.stratum)
            scores |= {"p_value": p_value, "abnormal": is_abnormal(p_value, self.alpha), "alpha": self.alpha}
        if volume and affine is not None:
            planes = through_slices(maps)
            seen = planes.flatten(1).any(1).tolist()  # slices without foreground were left out
            by_slice = [s if there else None for s, there in zip(self._reduction(planes).tolist(), seen, strict=True)]
            index = slice_indices(affine, self._axis, len(by_slice))
            ordered = [s for _, s in sorted(zip(index, by_slice, strict=True), key=lambda pair: pair[0])]
            scores |= {"slice_axis": axis_across(affine, self._axis)[0], "slice_scores": ordered}
        threshold, origin = self._threshold(values, calibration)
        assert self._loaded is not None
        version = self.versions.name_of(self._loaded)
        return Prediction(values, affine, self._max_value, threshold, origin, scores, version)

    def _threshold(self, values: NDArray[np.float32], calibration: Calibration | None) -> tuple[float, str]:
        if calibration is None:
            return float(np.quantile(values, FALLBACK)), "image"
        threshold = calibration.area_threshold(self.area_alpha, self.stratum)
        if math.isfinite(threshold):
            return threshold, "calibration"
        return calibration.areas[calibration.stratum(self.stratum)].values[-1], "calibration_maximum"
