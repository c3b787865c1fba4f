# SPDX-License-Identifier: Apache-2.0
"""What a finished training leaves for evaluation and inference: weights, and the settings that belong to them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.networks.utils import get_state_dict
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from monai_rdad.utils import atomic_path

__all__ = ["TrainedCheckpointLoader", "load_data_record", "load_settings", "load_weights", "save_trained"]

WEIGHTS, SETTINGS, CALIBRATION = "model.pt", "model.json", "calibration.json"
_DATA = "data"  # entry of model.json that is no setting


def save_trained(
    ckpt_dir: str | os.PathLike[str],
    network: nn.Module,
    settings: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Write the weights and settings of a trained network, each file complete or not at all.

    - ``model.json``: the settings, first, so that weights never stand beside older settings.
    - ``model.pt``: the state dict on the CPU, without the prefix of a distributed wrapper.
    - a ``calibration.json`` of earlier weights is deleted.
    - ``model_final.pt``: the same file, the name that MONAI's ``MonaiAlgo`` asks for.

    Args:
        ckpt_dir: folder of the files.
        network: the trained network.
        settings: what it takes to build the network again and to prepare images for it; values that JSON can hold.
        data: what it was trained on, see :func:`~monai_rdad.data.data_record`.

    Returns:
        Path of the weights.
    """
    folder = Path(ckpt_dir)
    (folder / CALIBRATION).unlink(missing_ok=True)  # of earlier weights
    with atomic_path(folder / SETTINGS) as path:
        content = dict(settings) | ({_DATA: dict(data)} if data else {})
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with atomic_path(folder / WEIGHTS) as path:
        torch.save({key: value.cpu() for key, value in get_state_dict(network).items()}, path)
    with atomic_path(folder / "model_final.pt") as path:
        try:
            os.link(folder / WEIGHTS, path)
        except OSError:  # a file system without hard links
            shutil.copyfile(folder / WEIGHTS, path)
    return folder / WEIGHTS


def load_settings(ckpt_dir: str | os.PathLike[str], method: str | None = None) -> dict[str, Any]:
    """Settings of the training whose weights lie in a folder.

    Args:
        ckpt_dir: folder of the weights.
        method: what was trained, as "method" of the settings names it; None for any.

    Raises:
        FileNotFoundError: no finished training has left its settings there.
        ValueError: they are of another method.
    """
    settings = {key: value for key, value in _read_settings(ckpt_dir).items() if key != _DATA}
    if method is not None and settings.get("method") != method:
        raise ValueError(
            f"{ckpt_dir} holds a trained {settings.get('method')}, not {method}. Use that method, or another ckpt_dir."
        )
    return settings


def load_data_record(ckpt_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """What the network in a folder was trained on, see :func:`~monai_rdad.data.data_record`; empty if not known.

    Raises:
        FileNotFoundError: no finished training has left its settings there.
    """
    return dict(_read_settings(ckpt_dir).get(_DATA, {}))


def _read_settings(ckpt_dir: str | os.PathLike[str]) -> dict[str, Any]:
    return dict(json.loads(_find(ckpt_dir, SETTINGS).read_text(encoding="utf-8")))


def load_weights(ckpt_dir: str | os.PathLike[str], network: nn.Module) -> None:
    """Load ``model.pt`` into a network that takes exactly these weights.

    Raises:
        FileNotFoundError: no finished training has left weights there.
        ValueError: they cannot be read, or belong to another network.
    """
    path = _find(ckpt_dir, WEIGHTS)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights ({error}). Train again.") from error
    try:
        network.load_state_dict(weights)
    except Exception as error:
        raise ValueError(f"{path} belongs to another network; use the settings it was trained with: {error}") from error


class TrainedCheckpointLoader:
    """Ignite handler that loads ``model.pt`` into the network when an evaluator starts.

    Args:
        ckpt_dir: folder of the weights.
        network: takes exactly these weights; may be wrapped for distributed evaluation.

    Raises:
        FileNotFoundError, ValueError: (at the start) see :func:`load_weights`.
    """

    def __init__(self, ckpt_dir: str | os.PathLike[str], network: nn.Module) -> None:
        self.ckpt_dir = ckpt_dir
        self.network = network.module if isinstance(network, DataParallel | DistributedDataParallel) else network

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)

    def _started(self, engine: Engine) -> None:
        load_weights(self.ckpt_dir, self.network)


def _find(ckpt_dir: str | os.PathLike[str], name: str) -> Path:
    path = Path(ckpt_dir) / name
    if not path.is_file():
        raise FileNotFoundError(f"There is no trained network in {ckpt_dir}: no {name}. Train first, or set ckpt_dir.")
    return path
