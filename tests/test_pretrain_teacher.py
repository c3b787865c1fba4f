# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from monai_rdad.data import load_manifest
from monai_rdad.networks.encoders import FrozenEncoder, load_encoder_weights

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "pretrain_teacher.py"
SMALL = {
    "size": 32,
    "classes": 8,
    "compositions": 8,
    "pool": 16,
    "pictures": 64,
    "batch": 16,
    "repeats": 1,
    "device": "cpu",
}


@pytest.fixture
def pretrain(monkeypatch):
    def run(out, *options, tracking="none"):
        settings = SMALL | {"out": out, "tracking_uri": tracking}
        small = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *small, *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return load_file(out / "teacher.safetensors")

    return run


def test_a_training_that_goes_on_equals_one_that_was_not_stopped(tmp_path, pretrain):
    options = ("--objectives", "dense", "corrupt", "contrast")
    whole = pretrain(tmp_path / "whole", *options, "--epochs", "2")
    begun = pretrain(tmp_path / "parts", *options, "--epochs", "1")
    ended = pretrain(tmp_path / "parts", *options, "--epochs", "2")
    assert not torch.equal(begun["conv1.weight"], whole["conv1.weight"])
    assert all(torch.equal(whole[k], ended[k]) for k in whole)


@pytest.mark.parametrize("objective", ["dense", "corrupt", "classify", "contrast"])
def test_every_objective_is_learned(tmp_path, pretrain, capsys, objective):
    pretrain(tmp_path, "--objectives", objective, "--epochs", "4", "--repeats", "4", "--lr", "0.003")
    losses = [json.loads(line)[objective] for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("encoder", ["resnet18", "resnet18_half"])
def test_the_weights_load_as_a_teacher_and_say_how_they_were_made(tmp_path, pretrain, capsys, encoder):
    weights = pretrain(
        tmp_path, "--encoder", encoder, "--objectives", "classify", "contrast", "--epochs", "1", "--seed", "5"
    )
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["images"] == 64 and {"classify", "contrast"} < set(row)
    teacher = FrozenEncoder(encoder, stages=3)
    load_encoder_weights(teacher, encoder, str(tmp_path / "teacher.safetensors"))
    assert torch.equal(teacher.layer3[1].conv2.weight, weights["layer3.1.conv2.weight"].float())
    assert (tmp_path / "teacher.safetensors").stat().st_size < 6e6
    with safe_open(tmp_path / "teacher.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["settings"])
    assert settings["seed"] == 5 and settings["objectives"] == ["classify", "contrast"]


def test_learns_from_the_training_images_of_a_data_set(tmp_path, pretrain, tiny_set, capsys):
    options = (
        "--objectives",
        "contrast",
        "--manifest",
        str(tiny_set / "manifest.json"),
        "--batch",
        "4",
        "--size",
        "64",
    )
    weights = pretrain(tmp_path / "images", *options, "--epochs", "1")
    images = len(load_manifest(tiny_set / "manifest.json")["training"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == images // 4 * 4
    pictures = pretrain(tmp_path / "pictures", "--objectives", "contrast", "--batch", "4", "--epochs", "1")
    assert not torch.equal(weights["conv1.weight"], pictures["conv1.weight"])


def test_a_training_goes_on_with_the_same_settings_only(tmp_path, pretrain):
    pretrain(tmp_path, "--objectives", "contrast", "--epochs", "1")
    with pytest.raises(SystemExit, match=r"other settings: size 32, now 64, seed 0, now 7\. Use these, or another"):
        pretrain(tmp_path, "--objectives", "contrast", "--epochs", "2", "--size", "64", "--seed", "7")


def test_volumes_are_refused(tmp_path, pretrain):
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((70, 70, 8)), np.eye(4)), tmp_path / "v.nii.gz")
    (tmp_path / "m.json").write_text(json.dumps({"training": [{"image": "v.nii.gz", "label": 0}]}))
    options = ("--objectives", "contrast", "--manifest", str(tmp_path / "m.json"), "--size", "64", "--batch", "1")
    with pytest.raises(ValueError, match=r"v\.nii\.gz is a volume: give its slices"):
        pretrain(tmp_path / "out", *options)


def test_one_run_in_mlflow_whether_stopped_or_not(tmp_path, pretrain, monkeypatch):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path}/mlruns.db"
    for epochs in ("1", "2"):
        pretrain(tmp_path / "out", "--objectives", "dense", "--epochs", epochs, tracking=uri)
    assert "MLFLOW_TRACKING_URI" not in os.environ  # which would send other trainings there
    (run,) = mlflow.MlflowClient(uri).search_runs(["1"])
    assert run.data.params["classes"] == "8" and run.data.metrics["images"] == 128
    assert [m.step for m in mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, "dense")] == [0, 1]


def test_settings_that_do_not_fit_are_refused(tmp_path, pretrain, capsys):
    for options, message in (
        (["--size", "40"], "multiple of 32"),
        (["--repeats", "0"], "at least 1"),
        (["--manifest", "m.json", "--size", "64"], "without labels"),
    ):
        with pytest.raises(SystemExit):
            pretrain(tmp_path, *options)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--batch 128 is more than the 64 pictures"):
        pretrain(tmp_path, "--batch", "128")
