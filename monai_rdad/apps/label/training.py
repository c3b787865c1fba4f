# SPDX-License-Identifier: Apache-2.0
"""New versions of a model's weights, from images that readers call normal."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_rdad.apps.label.detector import Versions
from monai_rdad.data import split_by_group
from monai_rdad.data.probe import probe
from monai_rdad.handlers import load_calibration, load_settings, load_weights
from monai_rdad.utils import atomic_path

__all__ = ["MIN_IMAGES", "train_version"]

logger = logging.getLogger(__name__)

MIN_IMAGES = 20


def train_version(
    folder: str | os.PathLike[str],
    images: Mapping[str, str],
    max_epochs: int | None = None,
    pretrained: bool = True,
    calibration: float = 0.25,
    min_images: int = MIN_IMAGES,
    device: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a model on normal images by its bundle's own training, calibrate it, and publish it as a new version.

    The settings are those of the model's training. Until all is done, and when it fails or is cancelled, the version
    that counts stays as it is; what a killed training left behind is removed by the next one.

    Args:
        folder: ``ckpt_dir`` of the model.
        images: normal images, path -> patient, scan or slide; the images of one are not divided.
        max_epochs: of this training; None for as many as the model was trained for.
        pretrained: go on from the weights that count now; otherwise start as the bundle does.
        calibration: fraction of the images that are set aside to calibrate; 0 for none.
        min_images: fewer are refused.
        device: None for the first GPU if there is one, else the CPU.
        seed: of the training and of which images are set aside.

    Returns:
        What was done: "version", the number of "training" and "calibration" images, and "decides_at", the lowest
        false-positive rate at which so many calibration images can call an image abnormal.

    Raises:
        ValueError: too few images, pictures and volumes to calibrate on, a few-shot model, or what the bundle raises
            about the images.
        RuntimeError: another training of the model is running.
    """
    versions = Versions(folder)
    newest = versions.newest()
    settings = load_settings(newest)
    configs = versions.bundle / "configs"
    known = ConfigParser.load_config_files(str(configs / "train.yaml"))
    if "manifests" in known:  # of several tasks
        raise ValueError(
            f"A model of '{versions.method}' is not trained here: it takes its notion of normal from support images. "
            "Give it others, see the page of its bundle."
        )
    if len(images) < min_images:
        raise ValueError(
            f"{len(images)} images are marked normal, training needs at least {min_images}. Mark more, or give a lower "
            "min_images."
        )
    if calibration > 0 and len({_is_volume(image) for image in images}) > 1:
        raise ValueError(
            "The images marked normal are pictures and volumes, and no calibration holds for both: give calibration 0, "
            "or keep them in two studies folders."
        )
    versions.published.mkdir(exist_ok=True)
    lock = FileLock(versions.published / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"{versions.published}: another training of this model is running. Let it end.") from None
    with lock:
        for left in versions.published.glob(".writing-*"):  # by a training that was killed
            shutil.rmtree(left, ignore_errors=True)
        name = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
        with atomic_path(versions.published / name) as place, tempfile.TemporaryDirectory() as scratch:
            place.mkdir()
            counts = _write_manifest(place / "manifest.json", images, calibration, seed)
            options = {key: value for key, value in settings.items() if key in known}
            options |= {
                "bundle_root": str(versions.bundle),
                "ckpt_dir": str(place),
                "output_dir": scratch,
                "dataset_dir": "/",
                "manifest": str(place / "manifest.json"),
                "tracking_uri": "none",
                "resume": False,
                "seed": seed,
            }
            if max_epochs is not None:
                options["max_epochs"] = max_epochs
            if device is not None:
                options["device"] = device
            if pretrained:
                # the teacher comes with the weights: nothing to download
                options["network_def::weights"] = "none"
                options["settings::started_from"] = versions.name_of(newest)
            _run(configs, ("train",), options, newest if pretrained else None)
            if counts["calibration"]:
                _run(configs, ("train", "evaluate", "calibrate"), options, None)
            for left in place.glob("checkpoint*.pt"):  # to resume a training, which nobody will
                left.unlink()
    groups = 0
    if counts["calibration"]:
        made = load_calibration(versions.published / name, required=True)
        groups = made.scores[""].n_groups if made else 0
    logger.info("version %s: trained on %d images, calibrated on %d", name, counts["training"], counts["calibration"])
    return {"version": name, **counts, "decides_at": 1 / (groups + 1) if groups else None}


def _is_volume(image: str) -> bool:
    try:
        return sum(size > 1 for size in probe(image)) > 2
    except (OSError, ValueError):
        return False  # the training says what is wrong with it


def _write_manifest(path: Path, images: Mapping[str, str], calibration: float, seed: int) -> dict[str, int]:
    items = [{"image": image, "label": 0, "group": group} for image, group in sorted(images.items())]
    splits = {"training": items, "calibration": []}
    if calibration > 0:
        splits = split_by_group(items, {"training": 1 - calibration, "calibration": calibration}, seed)
    path.write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8")
    return {split: len(members) for split, members in splits.items()}


def _run(configs: Path, names: tuple[str, ...], options: dict[str, Any], start: Path | None) -> None:
    workflow = ConfigWorkflow(
        workflow_type="train",
        config_file=[str(configs / f"{name}.yaml") for name in names],
        logging_file=False,  # the server's logging stays as it is
        **options,
    )
    workflow.initialize()
    if start is not None:
        load_weights(start, workflow.parser.get_parsed_content("network"))
    workflow.run()
    workflow.finalize()
