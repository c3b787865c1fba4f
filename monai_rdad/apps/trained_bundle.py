# SPDX-License-Identifier: Apache-2.0
"""A trained bundle as the truth that exported files are compared with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import nn

import monai_rdad
from monai_rdad.apps.bundle import open_bundle
from monai_rdad.apps.export_files import OUTPUTS, Array
from monai_rdad.handlers import SupportSet, TrainedCheckpointLoader, load_data_record, load_settings
from monai_rdad.handlers.mlflow import git_commit
from monai_rdad.handlers.trained import CALIBRATION, WEIGHTS
from monai_rdad.inferers import Detector
from monai_rdad.networks.precision import supports_bfloat16
from monai_rdad.networks.support import load_support
from monai_rdad.transforms import ResizeInPlaned, ScoreReduction
from monai_rdad.transforms.intensity.array import HIGH, LOW
from monai_rdad.utils import file_sha256

__all__ = ["Expected", "TrainedBundle", "largest_difference", "plain"]

FORMAT = "monai_rdad export 1"
FEW = 4  # images to measure the effect of bfloat16 on


def plain(image: torch.Tensor) -> torch.Tensor:
    """A tensor without MONAI's meta data."""
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def largest_difference(a: Array, b: Array) -> float:
    """Largest absolute difference of two maps.

    Raises:
        ValueError: their shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"The exported map has shape {a.shape}, that of the bundle {b.shape}.")
    return float(np.abs(a - b).max())


class Expected(NamedTuple):
    """What a bundle makes of a file: input of the exported graph, and the results to compare with."""

    name: str
    image: MetaTensor  # (C, H, W[, D]) in [0, 1], as it was read
    anomaly_map: Array  # (1, H, W[, D]) in the order of the file
    score: float


class TrainedBundle:
    """A trained bundle after its inference, in float32 on the CPU, on some images.

    Args:
        method: name of the bundle, or its folder.
        items: images, with "image" (path) and "name".
        temporary: folder for what the inference writes.
        ckpt_dir: folder of model.pt.
        support: of a few-shot network: support file, or folder of images; None for the file beside the weights.

    Attributes:
        expected: what the inference made of each image.
        network: the anomaly map with its weights and supports.
        low_precision: largest differences of "map" and "score" that bfloat16 makes, the default where the hardware has
            it; None where it has not.
    """

    def __init__(
        self,
        method: str,
        items: list[dict[str, Any]],
        temporary: Path,
        ckpt_dir: str | os.PathLike[str],
        support: str | os.PathLike[str] | None,
    ) -> None:
        overrides: dict[str, Any] = {
            "precision": "fp32",
            "device": "$torch.device('cpu')",
            "batch_size": 1,
            "ckpt_dir": os.fspath(ckpt_dir),
            "output_dir": str(temporary),
            "dataset#data": [{"image": item["image"], "name": item["name"]} for item in items],
        }
        overrides |= {} if support is None else {"support": os.fspath(support)}
        workflow = open_bundle(method, "infer", overrides)
        self.parser = workflow.parser
        # what gives the network its weights and supports; nothing is to be written
        keep = {f"monai_rdad.handlers.{kind.__name__}" for kind in (TrainedCheckpointLoader, SupportSet)}
        self.parser["handlers"] = [entry for entry in self.parser.get()["handlers"] if entry["_target_"] in keep]
        workflow.initialize()
        self.ckpt_dir = Path(self.get("ckpt_dir"))
        self.settings = load_settings(self.ckpt_dir)
        self.channels, self.size = int(self.get("channels")), int(self.get("image_size"))
        transforms = list(self.get("preprocessing").transforms)
        cut = next(i for i, transform in enumerate(transforms) if isinstance(transform, ResizeInPlaned))
        self.read, self.prepare = Compose(transforms[:cut]), Compose(transforms[cut:])
        self.resizer = transforms[cut]
        self.reduction = ScoreReduction(self.get("score_mode"), float(self.get("score_fraction")))
        self.expected = self._infer(items)
        self.network: nn.Module = self.get("network").eval()
        self.support = self._support_record(temporary)
        workflow.finalize()
        self.low_precision = self._low_precision()

    def get(self, name: str) -> Any:
        """Value or object of the inference's configuration."""
        return self.parser.get_parsed_content(name)

    def detector(self) -> Detector:
        """The module to export."""
        return Detector(self.network, self.size, self.reduction.mode, self.reduction.fraction).eval()

    def _infer(self, items: list[dict[str, Any]]) -> list[Expected]:
        """Run the bundle's own evaluator and keep what it makes."""
        from ignite.engine import Events
        from monai.engines.utils import IterationEvents

        scores: list[float] = []
        maps: list[Array] = []
        evaluator = self.get("evaluator")
        evaluator.add_event_handler(
            IterationEvents.FORWARD_COMPLETED,
            lambda engine: scores.extend(self.reduction(plain(engine.state.output["pred"])).tolist()),
        )
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: maps.extend(plain(output["pred"]).numpy() for output in engine.state.output),
        )
        self.get("run")
        return [
            Expected(item["name"], self.read({"image": item["image"]})["image"], anomaly_map, score)
            for item, anomaly_map, score in zip(items, maps, scores, strict=True)
        ]

    def reference(self, image: torch.Tensor) -> tuple[Array, float]:
        """Map (1, H, W) and score of one image (C, H, W) by the transforms of the bundle."""
        prepared = self.prepare({"image": MetaTensor(image)})["image"]
        with torch.no_grad():
            model_map = self.network(plain(prepared)[None])
        turned = self.resizer.inverse({"image": MetaTensor(model_map[0]).copy_meta_from(prepared)})["image"]
        return plain(turned).numpy(), float(self.reduction(model_map))

    def as_file(self, anomaly_map: Array, image: MetaTensor) -> Array:
        """A map in the order of the file that the image was read from."""
        carrier = MetaTensor(torch.from_numpy(anomaly_map)).copy_meta_from(image)
        return plain(self.read.transforms[0].inverse({"image": carrier})["image"]).numpy()

    def _low_precision(self) -> dict[str, float] | None:
        """Difference that bfloat16 makes, the default where the hardware has it; None where it has not."""
        inner: Any = self.network.network
        if not supports_bfloat16("cpu"):
            return None
        pictures = [entry for entry in self.expected if entry.image.ndim == 3][:FEW]
        inner.precision = "bf16"
        found = [self.reference(plain(entry.image)) for entry in pictures]
        inner.precision = "fp32"
        exact = [self.reference(plain(entry.image)) for entry in pictures]
        if not pictures:
            return None
        return {
            "map": max(largest_difference(a[0], b[0]) for a, b in zip(found, exact, strict=True)),
            "score": max(abs(a[1] - b[1]) for a, b in zip(found, exact, strict=True)),
        }

    def _support_record(self, temporary: Path) -> dict[str, Any] | None:
        """Of a few-shot network: names and hashes of the supports that its map compares with."""
        network: Any = self.network.network
        if not hasattr(network, "set_support"):
            return None
        given = Path(self.get("support")).expanduser()
        return load_support(given if given.is_file() else temporary / "support.safetensors", network)

    def metadata(self) -> dict[str, Any]:
        """What somebody needs who has nothing but the file; of JSON types."""
        calibration = None
        # known to the configuration, and checked there against weights and settings
        if "calibration" in self.parser and self.get("calibration") is not None:
            calibration = json.loads((self.ckpt_dir / CALIBRATION).read_text(encoding="utf-8"))
        record = load_data_record(self.ckpt_dir)
        settings = dict(self.settings)
        if os.sep in str(settings.get("weights")):  # where a file lies is nobody's business
            settings["weights"] = Path(settings["weights"]).name
        names = {"manifest": Path(record["manifest"]).name} if record else {}
        content = {
            "format": FORMAT,
            "method": self.settings["method"],
            "settings": settings,
            "version": monai_rdad.__version__,
            "commit": git_commit(),
            "torch": str(torch.__version__),
            "model_sha256": file_sha256(self.ckpt_dir / WEIGHTS),
            "data": {**names, **{k: v for k, v in record.items() if k in ("manifest_sha256", "tasks")}},
            "input": {
                "name": "image",
                "layout": "float32 (batch, channels, height, width), rows first, any height and width",
                "channels": self.channels,
                "colour": "1 channel: 0.299 R + 0.587 G + 0.114 B, of 8-bit images rounded; 3: RGB, grey repeated",
                "range": [0.0, 1.0],
                "intensity": self.get("intensity"),
                "window": self.get("window"),
                "percentiles": [LOW, HIGH],
                "presets": {
                    "8bit": "value / 255",
                    "percentile": "range between the percentiles of all values above the image's minimum to "
                    "[0, 1]; of a volume over all of its slices together",
                    "ct": "window (level, width) in Hounsfield units to [0, 1]",
                    "auto": "8bit for unsigned bytes, else percentile",
                },
                "clip": True,
            },
            "outputs": OUTPUTS,
            "size": self.size,
            "score": {"mode": self.reduction.mode, "fraction": self.reduction.fraction},
            "max_value": float(self.get("max_value")),
            "calibration": calibration,
            "support": self.support,
            "licence": "Apache-2.0",
            "intended_use": "Research only. Not for clinical use: this is no medical device.",
        }
        return dict(json.loads(json.dumps(content)))  # as it comes back from a file
