# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import configparser
import shutil
from pathlib import Path

import pytest

from monai_rdad.apps import bundle
from monai_rdad.apps.bundle import STAGES, find_bundle, method_names, open_bundle
from monai_rdad.utils import installed_folder, root_cause

ROOT = Path(__file__).resolve().parents[2]
METHODS = sorted(p.name for p in (ROOT / "bundles").iterdir() if (p / "configs/train.yaml").is_file())


def test_a_method_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert method_names() == METHODS
    assert find_bundle("scrd") == ROOT / "bundles" / "scrd"


def test_the_current_folder_comes_first(tmp_path, monkeypatch):
    copy = tmp_path / "bundles" / "scrd"
    shutil.copytree(ROOT / "bundles" / "scrd" / "configs", copy / "configs")
    monkeypatch.chdir(tmp_path)
    assert find_bundle("scrd").resolve() == copy
    assert find_bundle("./bundles/scrd").resolve() == copy
    assert find_bundle(copy) == copy
    monkeypatch.chdir(copy)
    assert find_bundle("scrd").resolve() == copy == find_bundle(".").resolve()
    assert open_bundle("scrd", "train").parser.get("bundle_root") == "."


def test_a_run_does_not_write_into_a_bundle_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_bundle("scrd", "infer").parser.get("bundle_root") == "scrd"
    assert open_bundle("scrd", "infer", {"bundle_root": "x"}).parser.get("bundle_root") == "x"


@pytest.mark.parametrize("name", ["srcd", "bundles", "./scrd", "gone/scrd"])
def test_no_bundle_lists_the_methods(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundles").mkdir()
    with pytest.raises(FileNotFoundError, match=f"no bundle '{name}'.*rd4ad, recontrast, scrd"):
        find_bundle(name)
    if name == "srcd":
        with pytest.raises(FileNotFoundError, match="Did you mean 'scrd'"):
            find_bundle(name)


def test_an_installation_holds_every_bundle(tmp_path, monkeypatch):
    """The files that setup.cfg installs, laid out as pip does it, are bundles."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    for target, pattern in config["options.data_files"].items():
        files = [file for line in pattern.split() for file in ROOT.glob(line)]
        assert files, target
        (tmp_path / target).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, tmp_path / target)
    monkeypatch.setattr("monai_rdad.utils.__file__", str(tmp_path / "lib" / "monai_rdad" / "utils.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert installed_folder("bundles") == tmp_path / "share" / "monai_rdad" / "bundles"
    assert method_names() == METHODS
    for name in METHODS:
        ours, theirs = ROOT / "bundles" / name, find_bundle(name)
        for part in ("configs", "docs"):
            assert {p.name for p in (theirs / part).iterdir()} == {p.name for p in (ours / part).iterdir()}


@pytest.mark.parametrize("method", METHODS)
def test_stages(method):
    for stage, files in STAGES.items():
        if all((ROOT / "bundles" / method / "configs" / f"{file}.yaml").is_file() for file in files):
            assert open_bundle(method, stage).parser.get("run") is not None
        else:
            with pytest.raises(FileNotFoundError, match=f"no stage '{stage}'"):
                open_bundle(method, stage)
    with pytest.raises(ValueError, match="Unknown stage 'training'"):
        open_bundle(method, "training")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("max_epoch", "'max_epoch'. Did you mean 'max_epochs'"),
        ("train#dataloadr#drop_last", "Did you mean 'train#dataloader#drop_last'"),
        ("train::trainr::amp", "Did you mean 'train#trainer#amp'"),
        ("train#handlers#9#interval", "There are in 'train#handlers': 0, 1"),
        ("lr#base", "There are in 'lr': none"),
        ("zzz", "There are: .*batch_size, .*weights"),
    ],
)
def test_mistyped_setting(key, message):
    with pytest.raises(ValueError, match=message):
        open_bundle("scrd", "train", {key: 1})


def test_settings_reach_the_configuration():
    settings = {"lr": "@base", "base": 0.5, "train#dataloader#drop_last": True, "train::handlers::0::interval": 7}
    parser = open_bundle("scrd", "train", settings).parser
    parser.parse()
    assert parser.get_parsed_content("lr") == 0.5
    assert parser.get("train")["dataloader"]["drop_last"] is True
    assert parser.get("train")["handlers"][0]["interval"] == 7


def test_files_of_settings(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("image_size: 96\nmax_epochs: 3\nbase: 2\nlr: $@base / 10\ntrain#dataloader#drop_last: true\n")
    parser = open_bundle("scrd", "train", {"max_epochs": 5}, ["paper.yaml", mine]).parser
    assert (parser.get("encoder"), parser.get("image_size"), parser.get("max_epochs")) == ("wide_resnet50_2", 96, 5)
    parser.parse()
    assert parser.get_parsed_content("lr") == 0.2
    assert parser.get("bundle_root") != "runs"
    mine.write_text(mine.read_text() + "bundle_root: runs\n")
    assert open_bundle("scrd", "train", config_files=[mine]).parser.get("bundle_root") == "runs"
    assert open_bundle("scrd", "train", {"bundle_root": "x"}, [mine]).parser.get("bundle_root") == "x"
    # the stage takes what it knows of a file that serves all stages
    parser = open_bundle("scrd", "infer", config_files=[mine]).parser
    assert parser.get("image_size") == 96 and "max_epochs" not in parser and "train" not in parser
    assert "batch_size" in open_bundle("scrd", "evaluate", config_files=["multi_gpu_train.yaml"]).parser
    mine.write_text("image_sise: 96\n")
    for stage in ("train", "infer"):
        with pytest.raises(ValueError, match=r"mine.yaml: .*'image_sise'. Did you mean 'image_size'"):
            open_bundle("scrd", stage, config_files=[mine])
    mine.write_text("just text\n")
    with pytest.raises(ValueError, match="holds no settings"):
        open_bundle("scrd", "train", config_files=[mine])
    with pytest.raises(FileNotFoundError, match="gone.yaml. The bundle has calibrate.yaml"):
        open_bundle("scrd", "train", config_files=["gone.yaml"])


@pytest.mark.parametrize("method", METHODS)
def test_own_files_of_settings_pass_the_check(method):
    for file in ("paper.yaml", "multi_gpu_train.yaml"):
        open_bundle(method, "train", config_files=[file])


def test_an_error_leaves_the_process_as_it_was(tmp_path):
    import torch

    with pytest.raises(RuntimeError) as caught:
        bundle.run_bundle(
            "rd4ad", "train", {"dataset_dir": str(tmp_path / "gone"), "bundle_root": str(tmp_path / "out")}
        )
    assert "gone" in str(root_cause(caught.value))
    assert not torch.backends.cudnn.deterministic
    assert not (tmp_path / "out").exists()
