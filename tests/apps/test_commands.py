# SPDX-License-Identifier: Apache-2.0
"""The commands over the bundles, from training to prediction in one folder."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monai_rdad.apps.cli import main
from monai_rdad.apps.completion import completion_script
from monai_rdad.apps.options import settings_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--epochs", "2", "--image-size", "64", "--batch-size", "4", "--set", "val_interval=1", "--tracking", "none"]
HEAVY = {"torch", "monai", "numpy", "scipy", "matplotlib", "sklearn", "PIL", "ignite", "mlflow", "yaml", "shtab"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tiny_set, tmp_path_factory) -> Path:
    """Folder of a run after its training, which was stopped and resumed, and calibration."""
    out = tmp_path_factory.mktemp("commands") / "run"
    train = ["train", "rd4ad", "--data", str(tiny_set), "--out", str(out), *TINY]
    assert main([*train, "--epochs", "1"]) == 0
    assert main([*train, "--resume"]) == 0
    assert main(["calibrate", "rd4ad", "--data", str(tiny_set), "--out", str(out)]) == 0
    return out


def test_one_folder_from_training_to_prediction(run, tiny_set, tmp_path, capsys):
    assert files(run) == {f"models/{n}" for n in ("model.pt", "model_final.pt", "model.json", "checkpoint.pt")} | {
        "models/calibration.json"
    }
    settings = json.loads((run / "models/model.json").read_text())
    assert (settings["image_size"], settings["max_epochs"]) == (64, 2)
    assert torch.load(run / "models/checkpoint.pt", weights_only=True)["iteration"] == 4  # 2 per epoch
    common = ["rd4ad", "--data", str(tiny_set), "--out", str(run), "--tracking", "none"]
    assert main(["evaluate", *common, "--bootstrap", "50", "--alpha", "0.5"]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((run / "eval" / "metrics.json").read_text())
    low, high = metrics["image_auroc_ci_low"], metrics["image_auroc_ci_high"]
    assert f"{metrics['image_auroc']:.3f}  [{low:.3f}, {high:.3f}]" in out
    assert "5 images, 3 abnormal, 5 groups" in out and "calibrated for a false-positive rate of 0.5" in out
    assert f"in {run / 'eval'}" in out and len(out.splitlines()) < 20
    images = tmp_path / "new"
    images.mkdir()
    for i in range(2):
        (images / f"{i}.png").symlink_to(tiny_set / "testing" / f"{i}.png")
    assert main(["predict", "rd4ad", str(images), "--out", str(run), "--alpha", "0.6"]) == 0
    out = capsys.readouterr().out
    with (run / "eval" / "predictions" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (run / "eval" / "scores.csv").open() as file:
        expected = {Path(row["name"]).name: float(row["score"]) for row in csv.DictReader(file)}
    for row in rows:
        assert float(row["score"]) == pytest.approx(expected[row["name"]], rel=5e-3)
        assert f"{row['name']}  score {float(row['score']):.4f}  p {float(row['p_value']):.3f}" in out
    assert f"at a false-positive rate of 0.6: {sum(row['abnormal'] == '1' for row in rows)} of 2" in out


def test_the_page_names_the_command_that_was_given(run, tiny_set, tmp_path, monkeypatch):
    arguments = ["evaluate", "rd4ad", "--data", str(tiny_set), "--out", str(run), "--results", str(tmp_path)]
    arguments += ["--tracking", "none", "--bootstrap", "0"]
    monkeypatch.setattr("sys.argv", ["/bin/monai-rdad", *arguments])
    monkeypatch.setattr("__main__.__spec__", None)
    assert main(arguments) == 0
    assert f"<pre>monai-rdad {shlex.join(arguments)}</pre>" in (tmp_path / "report.html").read_text("utf-8")


def test_a_few_shot_method(tmp_path, tiny_set, capsys):
    for name in ("a", "b", "c"):
        (tmp_path / name).symlink_to(tiny_set)
    tasks = [str(tmp_path / name / "manifest.json") for name in ("a", "b")]
    common = [
        "d24fad",
        "--manifests",
        *tasks,
        f"third={tmp_path / 'c' / 'manifest.json'}",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["train", *common, "--holdout", "third", *TINY, "--set", "episodes=8"]) == 0
    assert main(["check", *common, "--holdout", "third", *TINY]) == 0
    out = capsys.readouterr().out
    assert (
        "12 images of 6 groups, tasks a, b" in out and "evaluation one batch: ok" in out and "testing/0.png: ok" in out
    )
    assert main(["evaluate", *common, "--tracking", "none", "--bootstrap", "0", "--shots", "2"]) == 0
    assert "5 images" in capsys.readouterr().out
    supports = tmp_path / "supports"
    supports.mkdir()
    for i in range(2):
        (supports / f"{i}.png").symlink_to(tiny_set / "training" / f"{i}.png")
    image = str(tiny_set / "testing" / "0.png")
    where = ["--out", str(tmp_path / "run"), "--results", str(tmp_path / "maps")]
    assert main(["predict", "d24fad", image, "--support", str(supports), *where]) == 0
    assert {"0_map.png", "0_overlay.png", "scores.csv", "support.safetensors"} == files(tmp_path / "maps")


def test_check_tries_everything_and_leaves_nothing(run, tiny_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")} | {
        path: path.stat().st_mtime_ns for path in tiny_set.rglob("*")
    }
    fresh = tmp_path / "fresh" / "run"
    assert main(["check", "rd4ad", "--data", str(tiny_set), "--out", str(fresh), *TINY]) == 0
    out = capsys.readouterr().out
    assert "testing: 5 images of 5 groups, 3 abnormal, 3 with a mask" in out and "training: (4, 1, 64, 64)" in out
    assert f"no network in {fresh / 'models'} yet" in out and out.endswith("OK\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"dataset_dir: {tiny_set}\nbundle_root: {run}\n")
    assert main(["check", "rd4ad", "--config", str(mine), *TINY]) == 0
    out = capsys.readouterr().out
    assert "evaluation one batch: ok" in out and "prediction testing/0.png: ok" in out and "replaces it" in out
    assert main(["check", "scrd", "--data", str(tiny_set), "--out", str(run), *TINY]) == 0
    captured = capsys.readouterr()
    assert "holds a trained rd4ad, which a training of scrd replaces" in captured.out and not captured.err
    assert {path: path.stat().st_mtime_ns for path in before} == before and not fresh.parent.exists()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set", "max_epoch=3"], "Did you mean 'max_epochs'"),
        (["--lr", "1e30"], "The loss is"),
        (["--weights", "gone.pth"], "gone.pth"),
        (["--out", "{file}/run"], "is a file"),
        (["--image-size", "50"], "50"),
        (["--set", "train#trainer#amb=true"], "amb"),
    ],
)
def test_check_finds(tiny_set, tmp_path, capsys, change, message):
    file = tmp_path / "file"
    file.touch()
    change = [word.format(file=file) for word in change]
    out = [] if "--out" in change else ["--out", str(tmp_path / "run")]
    assert main(["check", "rd4ad", "--data", str(tiny_set), *TINY, *out, *change]) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("monai-rdad: ")]
    assert message in line and "OK" not in captured.out
    assert files(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "srcd"], "There is no bundle 'srcd'. Did you mean 'scrd'? Methods: d24fad, dnp"),
        (["train", "scrd", "--set", "lr:1"], "write KEY=VALUE"),
        (["train", "scrd", "--set", "lr=[1"], "is not YAML"),
        (["train", "scrd", "--set", "train#dataloadr#x=1"], "Did you mean 'train#dataloader#x'"),
        (["train", "scrd", "--config", "gone.yaml"], "no configuration file gone.yaml"),
        (["train", "scrd", "--data", "gone"], "--data gone: there is no such folder"),
        (["train", "scrd", "--manifest", "gone.json"], "There is no manifest gone.json"),
        (["train", "scrd", "--manifests", "a"], "There is no setting 'manifests'"),
        (["train", "scrd", "--device", "cuda:99"], "CUDA devices here"),
        (["train", "scrd", "--device", "x'"], "cpu, cuda or cuda:N"),
        (["evaluate", "scrd", "--data", "{data}"], "There is no trained network in scrd/models"),
        (["predict", "scrd", "{data}/testing"], "Train first"),
        (["predict", "rd4ad", "gone", "--out", "{run}"], "gone"),
        (["predict", "scrd", "{data}/testing", "--out", "{run}"], "holds a trained rd4ad, not scrd"),
        (["train", "scrd", "--resume", "--data", "{data}", "--set", "image_size=64"], "no checkpoint to resume from"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path, tiny_set, run, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    words = [word.format(data=tiny_set, run=run) for word in arguments]
    assert main([*words, *(["--tracking", "none"] if words[0] in ("train", "evaluate") else [])]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("monai-rdad: ")]
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--epochs", "0"], ["--channels", "2"], ["--on-error", "x"], ["--nonsense"]])
def test_wrong_arguments_exit_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "scrd", *words])
    assert caught.value.code == 2


def test_dry_run_gives_the_command_of_monai(tiny_set, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "scrd", "--data", str(tiny_set), "--config", "paper.yaml", "--set", "lr=1e-3", "--dry-run"]
    assert main([*arguments, "--device", "cpu", "--out", "a b"]) == 0
    out = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert "  a b/models\n  a b/eval\n" in out
    words = shlex.split(out.splitlines()[-1])
    given = dict(zip(words[5::2], words[6::2], strict=True))
    configs = ROOT / "bundles" / "scrd" / "configs"
    assert words[:5] == ["python", "-m", "monai.bundle", "run", "training"]
    assert given == {
        "--config_file": f"['{configs / 'train.yaml'}','{configs / 'paper.yaml'}']",
        "--bundle_root": "a b",
        "--dataset_dir": str(tiny_set),
        "--manifest": str(tiny_set / "manifest.json"),
        "--device": "$torch.device('cpu')",
        "--lr": "0.001",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("-2E5", -2e5), ("3", 3), ("true", True), ("null", None), ("none", "none"), ("[1, 2]", [1, 2]),
        ("@lr", "@lr"), ("$@lr * 2", "$@lr * 2"), ("%other.yaml", "%other.yaml"), ("a=b", "a=b"), ("", None),
    ],
)  # fmt: skip
def test_values_of_settings(text, value):
    from argparse import Namespace

    assert settings_of(Namespace(set=[f"key={text}"])) == {"key": value}


def test_the_manifest_says_where_the_data_are(tiny_set, tmp_path):
    from argparse import Namespace

    manifest = tiny_set / "manifest.json"
    both = {"dataset_dir": str(tiny_set), "manifest": str(manifest)}
    assert settings_of(Namespace(data=tiny_set)) == both == settings_of(Namespace(manifest=manifest))
    assert settings_of(Namespace(data=tmp_path, manifest=manifest)) == both | {"dataset_dir": str(tmp_path)}


def test_help_is_light_and_lists_every_command_on_a_line():
    code = "from monai_rdad.apps.cli import main\ntry:\n main(['--help'])\nfinally:\n import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    *shown, modules = done.stdout.splitlines()
    assert not {name.partition(".")[0] for name in modules.split()} & HEAVY
    for name in ("train", "calibrate", "evaluate", "predict", "check", "manifest", "completion"):
        assert any(line.split()[:1] == [name] and len(line.split()) > 3 for line in shown), name
    assert max(map(len, shown)) <= 80


def test_bash_completes_commands_methods_options_and_paths(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "image.png").touch()
    cases = {
        "ev": ["evaluate"],
        "train ''": ["d24fad", "dnp", "esc_drkd", "rd4ad", "recontrast", "scrd"],
        "train ./im": ["./images"],
        "train scrd --im": ["--image-size"],
        "train scrd --on-error ''": ["raise", "skip"],
        "train scrd --weights em": ["embedded"],
        "train scrd --weights im": ["image.png", "imagenet", "images"],
        "train scrd --data im": ["images"],
        "predict scrd im": ["image.png", "images"],
        "manifest ver": ["verify"],
    }
    script = completion_script("bash")
    for words in cases:
        script += f"""
COMP_WORDS=(monai-rdad {words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p monai-rdad | sed -E 's/.*-F ([^ ]+) .*/\\1/')
printf '%s ' "${{COMPREPLY[@]}}"; echo
"""
    done = subprocess.run(["bash"], input=script, cwd=tmp_path, capture_output=True, text=True)
    assert not done.stderr
    found = [sorted(line.split()) for line in done.stdout.splitlines()]
    assert dict(zip(cases, found, strict=True)) == cases


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_commands_and_methods(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "recontrast" in script and "image-size" in script
