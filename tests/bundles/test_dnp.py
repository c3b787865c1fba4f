# SPDX-License-Identifier: Apache-2.0
"""What the bundle of DNP does beyond the others: a momentum encoder, a schedule, and figures on its prototypes."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_rdad.data.phantoms import phantom_slice
from monai_rdad.networks.nets import DNP

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "dnp" / "configs"


def _run(*names: str, **settings) -> ConfigWorkflow:
    files = [str(CONFIGS / f"{name}.yaml") for name in names]
    workflow = ConfigWorkflow(workflow_type="train", config_file=files, logging_file=False, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dnp")
    manifest = {"training": [], "testing": []}
    for i in range(8):
        image, _ = phantom_slice(np.random.default_rng(i), lesion=i > 6, size=64)
        Image.fromarray(image).save(folder / f"{i}.png")
        item = {"image": f"{i}.png", "label": int(i > 6), "group": str(i)}
        manifest["training" if i < 5 else "testing"].append(item)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    settings = {"bundle_root": str(folder), "dataset_dir": str(folder), "image_size": 64, "batch_size": 2}
    settings |= {"max_epochs": 2, "encoder_lr": 0.001, "momentum": 0.5, "blocks": 2}
    workflow = _run("train", **settings)
    evaluation = _run("train", "evaluate", bootstrap=0, **settings)
    return folder, workflow, evaluation


def test_the_trained_weights_hold_a_teacher_that_has_followed(trained):
    folder, _, _ = trained
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    torch.manual_seed(0)
    start = DNP("resnet18", "none", blocks=2).state_dict()
    name = "layer2.0.conv1.weight"
    teacher, encoder = state[f"teacher.{name}"], state[f"encoder.{name}"]
    assert not torch.equal(teacher, start[f"teacher.{name}"]) and not torch.equal(teacher, encoder)
    assert (teacher - encoder).norm() < (start[f"teacher.{name}"] - encoder).norm()


def test_the_learning_rates_fall_along_the_cosine(trained):
    _, workflow, _ = trained
    optimizer = workflow.trainer.optimizer
    assert workflow.trainer.state.iteration == 6
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-5, 1e-5])
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.001, 0.001]


def test_usage_of_the_prototypes_is_tracked_and_drawn(trained):
    folder, _, evaluation = trained
    client = mlflow.MlflowClient(f"sqlite:///{folder}/eval/mlruns.db")
    runs = client.search_runs([client.get_experiment_by_name("monai_rdad").experiment_id])
    training, tested = sorted(runs, key=lambda run: run.info.start_time)
    history = client.get_metric_history(training.info.run_id, "prototype_entropy")
    assert [m.step for m in history] == [1, 2] and all(0 <= m.value <= 1 for m in history)
    shares = [training.data.metrics[f"prototype_usage_{i}"] for i in range(6)]
    assert sum(shares) == pytest.approx(1)
    entropy = -sum(s * np.log(s) for s in shares if s > 0) / np.log(6)
    assert training.data.metrics["prototype_entropy"] == pytest.approx(entropy)
    figures = evaluation.parser.get_parsed_content("validate#evaluator").state.metrics
    assert tested.data.metrics["prototype_entropy"] == pytest.approx(figures["prototype_entropy"])
    assert "prototypes.png" in {a.path for a in client.list_artifacts(tested.info.run_id)}
    assert Image.open(folder / "eval" / "prototypes.png").size[0] > 500
