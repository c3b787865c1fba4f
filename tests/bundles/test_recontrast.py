# SPDX-License-Identifier: Apache-2.0
"""What the bundle of ReContrast adds: two learning rates, and a loss whose state is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_rdad.data.phantoms import phantom_slice
from monai_rdad.utils import root_cause

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CONFIG = Path(__file__).resolve().parents[2] / "bundles" / "recontrast" / "configs" / "train.yaml"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    items = []
    for i in range(4):
        image, _ = phantom_slice(np.random.default_rng(i), lesion=False, size=64)
        Image.fromarray(image).save(folder / f"{i}.png")
        items.append({"image": f"{i}.png", "label": 0, "group": f"subject{i}"})
    (folder / "manifest.json").write_text(json.dumps({"training": items}))
    return {"dataset_dir": str(folder), "image_size": 64, "batch_size": 2, "val_interval": 1, "tracking_uri": "none"}


def workflow(root, **settings) -> ConfigWorkflow:
    result = ConfigWorkflow(
        config_file=str(CONFIG), workflow_type="train", logging_file=False, bundle_root=str(root), **settings
    )
    result.initialize()
    return result


def train(root, **settings) -> dict:
    made = workflow(root, **settings)
    made.run()
    made.finalize()
    return torch.load(root / "models" / "checkpoint.pt", weights_only=True)


def test_each_trainable_parameter_has_one_learning_rate(settings, tmp_path):
    made = workflow(tmp_path, **settings)
    network, optimizer = made.trainer.network, made.trainer.optimizer
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert groups[1] == {id(p) for p in network.encoder.parameters()}
    assert groups[0] | groups[1] == {id(p) for p in network.parameters() if p.requires_grad}
    assert not groups[0] & groups[1]
    assert [group["lr"] for group in optimizer.param_groups] == [0.002, 1e-5]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-5}
    made.finalize()


def test_warmup_is_a_tenth_of_the_training(settings, tmp_path):
    made = workflow(tmp_path, **settings, max_epochs=25)
    assert made.trainer.loss_function.warmup == 5  # of 50 iterations
    made.finalize()


def test_a_resumed_training_goes_on_with_the_mining(settings, tmp_path):
    settings = settings | {"warmup": 5}
    straight = train(tmp_path / "straight", **settings, max_epochs=2)
    half = train(tmp_path / "resumed", **settings, max_epochs=1)
    assert half["loss"]["iteration"] == 2
    resumed = train(tmp_path / "resumed", **settings, max_epochs=2, resume=True)
    assert resumed["loss"]["iteration"] == straight["loss"]["iteration"] == 4
    assert all(torch.equal(v, resumed["network"][k]) for k, v in straight["network"].items())


def test_resuming_with_another_warmup_is_refused(settings, tmp_path):
    train(tmp_path, **settings, max_epochs=1, warmup=5)
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        train(tmp_path, **settings, max_epochs=2, warmup=6, resume=True)
    assert "another warmup: 5, now it is 6" in str(root_cause(caught.value))
