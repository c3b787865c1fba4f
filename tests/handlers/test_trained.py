# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

from monai_rdad.handlers.checkpoint import ResumableCheckpoint
from monai_rdad.handlers.trained import TrainedCheckpointLoader, load_data_record, load_settings

DATA = [{"image": torch.ones(1, 1, 2, 2)}]


def train(folder: Path, network: nn.Module, settings: dict[str, object], data: dict[str, object] | None = None) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=DATA,
        network=network,
        optimizer=optimizer,
        loss_function=lambda pred, _: pred.mean(),
        train_handlers=[ResumableCheckpoint(folder, {"network": network}, seed=0, settings=settings, data=data)],
    ).run()


def evaluate(folder: Path, network: nn.Module) -> None:
    SupervisedEvaluator(
        device="cpu", val_data_loader=DATA, network=network, val_handlers=[TrainedCheckpointLoader(folder, network)]
    ).run()


@pytest.mark.parametrize("wrap", [False, True])
def test_what_a_training_leaves_is_taken_up(tmp_path: Path, wrap: bool) -> None:
    trained, fresh = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    settings = {"encoder": "resnet18", "window": [40, 80], "scale_weights": True, "weights": None}
    train(tmp_path, trained, settings)
    evaluate(tmp_path, nn.DataParallel(fresh) if wrap else fresh)
    assert torch.equal(fresh.weight, trained.weight)
    assert load_settings(tmp_path) == settings
    assert load_data_record(tmp_path) == {}


def test_data_are_recorded_and_are_no_setting(tmp_path: Path) -> None:
    network = nn.Conv2d(1, 1, 1)
    record = {"manifest": "/data/manifest.json", "manifest_sha256": "ab"}
    train(tmp_path, network, {"seed": 0}, record)
    assert load_data_record(tmp_path) == record and load_settings(tmp_path) == {"seed": 0}


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no trained network in .*model.json. Train first"):
        load_settings(tmp_path)
    with pytest.raises(FileNotFoundError, match="no trained network in .*model.pt. Train first"):
        evaluate(tmp_path, nn.Conv2d(1, 1, 1))
    train(tmp_path, nn.Conv2d(1, 1, 1), {"method": "scrd"})
    assert load_settings(tmp_path, "scrd") == {"method": "scrd"}
    with pytest.raises(ValueError, match="holds a trained scrd, not rd4ad"):
        load_settings(tmp_path, "rd4ad")
    with pytest.raises(ValueError, match="belongs to another network"):
        evaluate(tmp_path, nn.Conv2d(1, 2, 1))
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        evaluate(tmp_path, nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="not JSON serializable"):
        train(tmp_path, nn.Conv2d(1, 1, 1), {"device": torch.device("cpu")})
