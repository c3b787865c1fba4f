# SPDX-License-Identifier: Apache-2.0
"""Every bundle trains, evaluates, infers, exports and resumes. A new bundle is found by its folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.engines.utils import IterationEvents
from PIL import Image
from sklearn.metrics import roc_auc_score

from monai_rdad.data.phantoms import phantom_slice
from monai_rdad.handlers import load_calibration
from monai_rdad.utils import root_cause
from monai_rdad.visualize.writer import read_map

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted(p.name for p in (ROOT / "bundles").iterdir() if (p / "configs" / "train.yaml").is_file())
FEW_SHOT = {"d24fad"}
# settings under which a training takes seconds; bundles ignore those that they do not know
TINY = {"max_epochs": 2, "image_size": 64, "batch_size": 4, "val_interval": 1, "episodes": 8}
TINY |= {"schedule_epochs": 2}  # also of a training that stops earlier and is resumed
TINY |= {"encoder_lr": 0.001, "momentum": 0.5}  # so that a momentum encoder moves in a few steps


@pytest.fixture(scope="session")
def volume(tmp_path_factory) -> Path:
    """A NIfTI volume whose axes are permuted, flipped and oblique."""
    rng = np.random.default_rng(0)
    slices = [phantom_slice(rng, lesion=False, size=48)[0] for _ in range(5)]
    array = np.stack(slices, axis=0).astype(np.float32)[:, ::-1]
    affine = np.array([[0.1, 0.9, 0, -20], [0, 0.1, -0.9, 30], [-4.0, 0, 0.2, 10], [0, 0, 0, 1]])
    path = tmp_path_factory.mktemp("volume") / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def configs(bundle: str, *names: str) -> list[str]:
    return [str(ROOT / "bundles" / bundle / "configs" / f"{name}.yaml") for name in names]


def run(bundle: str, *names: str, **overrides) -> ConfigWorkflow:
    kind = "infer" if names == ("inference",) else "train"
    folder = ROOT / "bundles" / bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=configs(bundle, *names),
        meta_file=str(folder / "metadata.json"),
        logging_file=str(folder / "logging.conf"),
        workflow_type=kind,
        **overrides,
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    return workflow


@pytest.fixture(scope="module", params=BUNDLES)
def trained(request, tiny_set, tmp_path_factory):
    """(bundle, its root after training and evaluation, settings)."""
    root = tmp_path_factory.mktemp(request.param)
    settings = TINY | {"bundle_root": str(root), "dataset_dir": str(tiny_set)}
    run(request.param, "train", **settings)
    run(request.param, "train", "evaluate", tracking_uri="none", **settings)
    return request.param, root, settings


def test_training_leaves_weights_and_their_settings(trained):
    bundle, root, _ = trained
    names = {p.name for p in (root / "models").iterdir()}
    assert names - {"support.safetensors"} == {"model.pt", "model_final.pt", "model.json", "checkpoint.pt"}
    assert ("support.safetensors" in names) == (bundle in FEW_SHOT)
    settings = json.loads((root / "models" / "model.json").read_text())
    assert settings["image_size"] == 64 and settings["method"] == bundle
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in state.values())


def test_training_is_tracked(trained, tiny_set):
    import mlflow

    from monai_rdad.data import manifest_hash

    _, root, _ = trained
    client = mlflow.MlflowClient(f"sqlite:///{root}/eval/mlruns.db")
    experiment = client.get_experiment_by_name("monai_rdad")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["manifest_sha256"] == manifest_hash(tiny_set / "manifest.json")
    assert tracked.data.params["image_size"] == "64"
    history = client.get_metric_history(tracked.info.run_id, "image_auroc")
    assert [m.step for m in history] == [1, 2]
    assert "train_loss" in tracked.data.metrics


def test_evaluation_uses_the_testing_split_and_its_figures_hold(trained):
    _, root, _ = trained
    metrics = json.loads((root / "eval" / "metrics.json").read_text())
    with (root / "eval" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {r["name"] for r in rows} == {f"testing/{i}.png" for i in range(5)}
    expected = roc_auc_score([int(r["label"]) for r in rows], [float(r["score"]) for r in rows])
    assert metrics["image_auroc"] == pytest.approx(expected)
    assert metrics["n_images"] == 5 and 0 <= metrics["aupro_0.3"] <= 1
    assert metrics["image_auroc_ci_low"] <= expected <= metrics["image_auroc_ci_high"]
    page = (root / "eval" / "report.html").read_text(encoding="utf-8")
    assert page.count("<article") == 5 and "http://" not in page and "https://" not in page
    assert Image.open(root / "eval" / "sheet.png").size[0] > 300


def test_inference_on_pictures_agrees_with_the_evaluation(trained, tiny_set):
    bundle, root, _ = trained
    out = root / "pictures"
    inputs = root / "inputs"
    inputs.mkdir()
    for i in range(5):
        (inputs / f"{i}.png").symlink_to(tiny_set / "testing" / f"{i}.png")
    run(bundle, "inference", bundle_root=str(root), output_dir=str(out), dataset_dir=str(inputs))
    with (root / "eval" / "scores.csv").open() as file:
        expected = {Path(r["name"]).name: float(r["score"]) for r in csv.DictReader(file)}
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows] == sorted(expected)
    for row in rows:
        # where the hardware has bfloat16, batches of another size round differently
        assert float(row["score"]) == pytest.approx(expected[row["name"]], rel=5e-3)
        assert read_map(out / row["map"]).shape == (80, 80)
        assert Image.open(out / row["overlay"]).mode == "RGB"


def test_calibration_leads_to_decisions(trained, tiny_set, tmp_path):
    bundle, root, settings = trained
    run(bundle, "train", "evaluate", "calibrate", tracking_uri="none", **settings)
    calibration = load_calibration(root / "models", required=True)
    assert calibration.scores[""].n_groups == 1
    out = tmp_path / "predictions"
    inputs = str(tiny_set / "testing" / "0.png")
    run(bundle, "inference", bundle_root=str(root), output_dir=str(out), dataset_dir=".", input=inputs, alpha=0.6)
    with (out / "scores.csv").open() as file:
        (row,) = csv.DictReader(file)
    p_value = calibration.p_value(float(row["score"]))
    assert float(row["p_value"]) == p_value and row["abnormal"] == str(int(p_value <= 0.6))
    run(bundle, "train", "evaluate", tracking_uri="none", output_dir=str(out), bootstrap=0, alpha=0.6, **settings)
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"false_positive_rate_at_0.6", "sensitivity_at_0.6", "normal_area_at_0.01"} <= set(metrics)
    (root / "models" / "calibration.json").unlink()


def test_inference_on_a_volume_keeps_its_geometry(trained, volume):
    bundle, root, _ = trained
    out = root / "volume"
    run(bundle, "inference", bundle_root=str(root), output_dir=str(out), dataset_dir=".", input=str(volume))
    source, result = nibabel.load(volume), nibabel.load(out / "scan_map.nii.gz")
    assert result.shape == source.shape
    np.testing.assert_array_equal(result.affine, source.affine)
    values = result.get_fdata()
    assert np.isfinite(values).all() and values.std() > 0
    assert (out / "scan_overlay.png").is_file()


def test_resuming_equals_never_having_stopped(trained, tiny_set):
    bundle, root, settings = trained
    place = str(root / "resumed")
    settings = settings | {"bundle_root": place, "tracking_uri": "none"}
    run(bundle, "train", **settings | {"max_epochs": 1})
    run(bundle, "train", **settings | {"resume": True})
    straight = torch.load(root / "models" / "model.pt", weights_only=True)
    resumed = torch.load(root / "resumed" / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)


def test_resuming_with_other_settings_is_refused(trained):
    bundle, _, settings = trained
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        run(bundle, "train", **settings | {"resume": True, "tracking_uri": "none", "max_epochs": 3, "lr": 0.5})
    assert "another lr: " in str(root_cause(caught.value))


def test_every_training_iteration_runs_in_train_mode(trained):
    """Validation in between must not leave batch norms frozen."""
    bundle, root, settings = trained
    workflow = ConfigWorkflow(
        workflow_type="train",
        config_file=configs(bundle, "train"),
        logging_file=False,
        **settings | {"bundle_root": str(root / "modes"), "tracking_uri": "none", "max_epochs": 3},
    )
    workflow.initialize()
    modes = []
    trainer = workflow.trainer
    trainer.add_event_handler(
        IterationEvents.FORWARD_COMPLETED,
        lambda engine: modes.append((engine.network.decoder.training, engine.network.teacher.training)),
    )
    workflow.run()
    workflow.finalize()
    assert modes == [(True, False)] * trainer.state.iteration and len(modes) >= 6


def test_federated_evaluation_uses_the_weights_that_were_sent(trained, monkeypatch):
    from monai.fl.client import MonaiAlgo
    from monai.fl.utils.constants import ExtraItems
    from monai.fl.utils.exchange_object import ExchangeObject

    bundle, root, settings = trained
    place = root / "federated"
    place.mkdir()
    (place / "configs").symlink_to(ROOT / "bundles" / bundle / "configs")
    (place / "models").symlink_to(root / "models")
    options = {k: v for k, v in settings.items() if k != "bundle_root"} | {"tracking_uri": "none"}
    algorithm = MonaiAlgo(
        bundle_root=str(place),
        config_train_filename="configs/train.yaml",
        config_evaluate_filename=["configs/train.yaml", "configs/evaluate.yaml"],
        train_kwargs=options,
        eval_kwargs=options,
    )
    algorithm.initialize(extra={ExtraItems.CLIENT_NAME: "test", ExtraItems.APP_ROOT: ""})
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    zeros = {k: torch.zeros_like(v).numpy() for k, v in state.items()}
    algorithm.evaluate(data=ExchangeObject(weights=zeros), extra={})
    network = algorithm.eval_workflow.parser.get_parsed_content("network_def")
    assert all(not v.any() for k, v in network.state_dict().items())


def test_seeds_differ_and_repeat(trained):
    bundle, root, settings = trained
    states = []
    for name, seed in (("a", 5), ("b", 5)):
        run(bundle, "train", **settings | {"bundle_root": str(root / name), "tracking_uri": "none", "seed": seed})
        states.append(torch.load(root / name / "models" / "model.pt", weights_only=True))
    first = torch.load(root / "models" / "model.pt", weights_only=True)
    key = next(k for k in first if k.startswith("decoder") and k.endswith("weight") and first[k].ndim > 1)
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], first[key])


def test_metadata_fits_the_network_and_the_export(trained):
    bundle, root, _ = trained
    meta = str(ROOT / "bundles" / bundle / "configs" / "metadata.json")
    inference = configs(bundle, "inference")[0]
    arguments = {"meta_file": meta, "config_file": inference, "bundle_root": str(root)}
    verify_net_in_out("network_def", **arguments, n=2, p=3)
    exported = str(root / "model.ts")
    ckpt_export("network_def", filepath=exported, ckpt_file=str(root / "models" / "model.pt"), **arguments)
    image = torch.rand(1, 1, 64, 64)
    workflow = ConfigWorkflow(workflow_type="infer", config_file=inference, bundle_root=str(root), logging_file=False)
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    network.network.precision = "fp32"
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(exported)(image), network.eval()(image), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_folder_has_what_the_model_zoo_asks_for(bundle):
    folder = ROOT / "bundles" / bundle
    for name in ("LICENSE", "docs/README.md", "configs/logging.conf", "configs/inference.yaml", "configs/paper.yaml"):
        assert (folder / name).is_file(), name
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert set(metadata["network_data_format"]["inputs"]) == {"image"}
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "anomaly"}


@pytest.mark.parametrize("name", ["multi_gpu_train", "calibrate"])
def test_configs_that_do_not_depend_on_the_method_are_one_text(name):
    bundles = set(BUNDLES) - (FEW_SHOT if name == "calibrate" else set())
    assert len({Path(configs(bundle, name)[0]).read_text() for bundle in bundles}) == 1


@pytest.mark.parametrize("bundle", BUNDLES)
def test_paper_settings_instantiate(bundle, tiny_set, tmp_path):
    workflow = ConfigWorkflow(
        workflow_type="train",
        config_file=configs(bundle, "train", "paper"),
        logging_file=False,
        dataset_dir=str(tiny_set),
        bundle_root=str(tmp_path),
        weights="none",
        tracking_uri="none",
    )
    workflow.initialize()
    trainer = workflow.trainer
    assert trainer.state.max_epochs >= 50
    shapes = {tuple(p.shape) for p in trainer.network.teacher.parameters()}
    # the widest 3x3 convolution of a WideResNet-50-2, or the blocks of a ViT-S
    assert (512, 512, 3, 3) in shapes or (1536, 384) in shapes
    workflow.finalize()


def _command(*arguments: str, cwd: Path, expect: int = 0) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=400
    )
    assert (done.returncode == 0) == (expect == 0), done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the bundles' configs, so that the commands' outputs do not land in the repository."""
    for name in BUNDLES:
        target = tmp_path / "bundles" / name / "configs"
        target.mkdir(parents=True)
        for file in (ROOT / "bundles" / name / "configs").iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_commands_from_the_root_and_from_inside(checkout, tiny_set):
    options = [f"--{k}={v}" for k, v in TINY.items()] + [f"--dataset_dir={tiny_set}", "--tracking_uri=none"]
    root = "bundles/scrd/configs"
    _command("monai.bundle", "run", "training", "--config_file", f"{root}/train.yaml", *options, cwd=checkout)
    assert (checkout / "bundles/scrd/models/model.pt").is_file()
    both = "['configs/train.yaml','configs/evaluate.yaml']"
    inside = checkout / "bundles/scrd"
    _command("monai.bundle", "run", "evaluating", "--config_file", both, *options, cwd=inside)
    assert (inside / "eval/metrics.json").is_file()
    assert not (checkout / "eval").exists() and not (checkout / "models").exists()


def test_two_processes_train_together(checkout, tiny_set):
    pytest.importorskip("torch.distributed.run")
    options = [f"--{k}={v}" for k, v in TINY.items()] + [f"--dataset_dir={tiny_set}", "--tracking_uri=none"]
    files = "['bundles/scrd/configs/train.yaml','bundles/scrd/configs/multi_gpu_train.yaml']"
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle")
    _command(*launcher, "run", "training", "--config_file", files, *options, cwd=checkout)
    state = torch.load(checkout / "bundles/scrd/models/model.pt", weights_only=True)
    assert not [k for k in state if k.startswith("module.")]


def test_an_error_ends_with_the_line_that_says_it(checkout, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"training": [{"image": "gone.png", "label": 0}]}))
    out = _command(
        "monai.bundle", "run", "training", "--config_file", "bundles/rd4ad/configs/train.yaml",
        f"--dataset_dir={tmp_path}", cwd=checkout, expect=1,
    )  # fmt: skip
    last = out.strip().split("\nError: ")[-1]
    assert "gone.png" in last and "Traceback" not in last
    assert not (checkout / "bundles/rd4ad/models").exists() and not (checkout / "bundles/rd4ad/eval").exists()


def test_no_model_yet_says_so(checkout, tiny_set):
    out = _command(
        "monai.bundle", "run", "inference", "--config_file", "bundles/scrd/configs/inference.yaml",
        f"--input={tiny_set}/testing", cwd=checkout, expect=1,
    )  # fmt: skip
    assert "Train first" in out.strip().split("\nError: ")[-1]
