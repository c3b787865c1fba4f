# SPDX-License-Identifier: Apache-2.0
"""The command line, from a download to figures and pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_rdad.apps.cli import main
from monai_rdad.data import ManifestError, manifest_hash
from monai_rdad.data.sets import set_names

HEAVY = {"torch", "monai", "numpy", "scipy", "matplotlib", "sklearn", "PIL", "ignite", "mlflow"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Br35H in small; tumours are brighter, which is a leak."""
    folder = tmp_path_factory.mktemp("br35h")
    for i in range(60):
        kind, name = ("no", f"no{i * 40}") if i < 40 else ("yes", f"y{i}")
        noise = gaussian_filter(np.random.default_rng(i).normal(size=(64, 72)), 4)
        pixels = np.clip(90 + 30 * noise / noise.std() + 40 * (i >= 40), 0, 255).astype(np.uint8)
        (folder / kind).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def built(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "br35h"
    assert main(["manifest", "build", "br35h", "--raw", str(raw), "--out", str(out)]) == 0
    return out


def test_build_shows_leaks(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {"manifest.json", "description.json", "description.png"}
    found = json.loads((built / "description.json").read_text())
    assert found["trivial_scores"]["mean"]["auroc"] == 1 and found["trivial_scores"]["mean"]["level"] == "leak"
    assert found["trivial_scores"]["rows"]["level"] == "none"
    assert found["splits"]["training"] == found["splits"]["training"] | {"images": 25, "abnormal": 0, "groups": 25}
    assert found["splits"]["testing"] == found["splits"]["testing"] | {"images": 35, "abnormal": 20, "sizes": 1}
    assert found["splits"]["testing"]["commonest_size"] == [64, 72, 35]
    assert found["manifest_sha256"] == manifest_hash(built / "manifest.json")
    assert found["title"] == "Br35H: Brain Tumor Detection 2020"
    assert any("mean intensity tells normal from abnormal" in text for text in found["warnings"])
    page = np.asarray(Image.open(built / "description.png"))
    assert page.shape[1] > 1000 and page.std() > 20


def test_verify_and_describe(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", "verify", str(built / "manifest.json")]) == 0
    shown = capsys.readouterr().out
    assert "training: 25 images, 0 abnormal" in shown and manifest_hash(built / "manifest.json") in shown
    arguments = ["manifest", "describe", str(built / "manifest.json"), "--out", str(tmp_path), "--resamples", "50"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "AUROC 1.00 [1.00, 1.00] (!!)" in shown and str(tmp_path / "description.png") in shown
    assert (tmp_path / "description.json").is_file()


def test_broken_image_is_named(built: Path, raw: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    content = json.loads((built / "manifest.json").read_text())
    content["testing"][0]["image"] = "lost.png"
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert main(["manifest", "verify", str(tmp_path / "manifest.json"), "--dataset-dir", str(built)]) == 1
    shown = capsys.readouterr().err
    assert "lost.png" in shown and shown.count("\n") == 1
    with pytest.raises(ManifestError):
        main(["manifest", "verify", str(tmp_path / "manifest.json"), "--dataset-dir", str(built), "--debug"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "bussi", "--raw", "."], "'bussi' is no known data set. Known: aptos2019"),
        (["build", "busi", "--raw", "nowhere"], "no such folder. Give the folder that the download"),
        (
            ["build", "aptos2019", "--raw", ".", "--set", "edge=3"],
            "no such option. It has, with their defaults: crop=True",
        ),
        (["build", "aptos2019", "--raw", ".", "--set", "crop=maybe"], "must be true or false"),
        (["build", "aptos2019", "--raw", ".", "--set", "size=big"], "must be a whole number"),
        (["list", "bussi"], "There is no description"),
        (["describe", "nowhere.json"], "cannot be read"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", *arguments]) == 1
    shown = capsys.readouterr().err
    assert message in shown and shown.startswith("monai-rdad: ") and shown.count("\n") == 1


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["manifest"], ["manifest", "build", "busi"], ["manifest", "biuld"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_unexpected_error_names_its_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("what")

    monkeypatch.setattr("monai_rdad.data.sets.set_names", fail)
    assert main(["manifest", "list"]) == 1
    assert capsys.readouterr().err == "monai-rdad: KeyError: 'what' (--debug shows where)\n"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == set_names()
    assert main(["manifest", "list", "brats2021"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["sequence"] == "flair"


def test_nothing_heavy_before_a_command_runs() -> None:
    code = (
        "import sys; from monai_rdad.apps.cli import main\n"
        "try: main(['manifest', 'build', '--help'])\n"
        "except SystemExit: print('modules', *{n.partition('.')[0] for n in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--raw" in done.stdout
    assert not HEAVY.intersection(done.stdout.rpartition("modules")[2].split())
