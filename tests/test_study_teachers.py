# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "study_teachers.py"


def benchmark(folder, shift, seeds=(0, 1), data=("a", "b"), groups=2, **identity):
    """Runs of one teacher: normal images around 0, abnormal ones around ``shift``."""
    means = []
    for name in data:
        for seed in seeds:
            rng = np.random.default_rng([seed, ord(name)])
            labels = [0] * 40 + [1] * 40
            scores = rng.normal(np.array(labels) * shift)
            run = folder / "runs" / "rd4ad" / name / f"seed{seed}"
            (run / "eval").mkdir(parents=True)
            with (run / "eval" / "scores.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["name", "group", "label", "score"])
                numbered = enumerate(zip(labels, scores, strict=True))
                rows.writerows((f"{i}.png", f"g{i // groups}", y, s) for i, (y, s) in numbered)
            means.append(roc_auc_score(labels, scores))
            about = {"bundle": "rd4ad", "settings": {"weights": folder.name, "image_size": 64} | identity, "seed": seed}
            record = {"method": "rd4ad", "data": name, "seed": seed, "identity": about}
            (run / "run.json").write_text(json.dumps(record | {"metrics": {"image_auroc": means[-1]}}))
    return float(np.mean(means))


def study(monkeypatch, *folders):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *folders])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_share_of_the_gain(tmp_path, monkeypatch, capsys):
    mean = {name: benchmark(tmp_path / name, shift) for name, shift in (("none", 0.1), ("imagenet", 2), ("mine", 1))}
    benchmark(tmp_path / "same", 2)
    study(monkeypatch, *(f"{name}={tmp_path / name}" for name in ("none", "imagenet", "mine", "same")))
    printed = capsys.readouterr().out
    share = (mean["mine"] - mean["none"]) / (mean["imagenet"] - mean["none"])
    (row,) = [line for line in printed.splitlines() if line.startswith("| all | mine |")]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3] == f"{mean['mine']:.3f}" and cells[5].startswith(f"{share:.2f} [")
    low, high = (float(x) for x in cells[5].split("[")[1].rstrip("]").split(","))
    assert low < share < high < 1
    (same,) = [line for line in printed.splitlines() if line.startswith("| all | same |")]
    assert "| 1.00 [" in same
    assert "same: the share with one data set left out lies between 1.00 and 1.00." in printed


def test_seeds_are_drawn_once_for_all_data_sets(tmp_path, monkeypatch, capsys):
    """One lucky seed of the random teacher on many data sets: its luck must show in the interval."""
    data = tuple("abcdefgh")
    benchmark(tmp_path / "imagenet", 2, (0, 1), data)
    for seed, shift in ((0, 0.0), (1, 1.5)):
        benchmark(tmp_path / "none", shift, (seed,), data)
    study(monkeypatch, f"none={tmp_path / 'none'}", f"imagenet={tmp_path / 'imagenet'}")
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| all | imagenet |")]
    low, high = (float(x) for x in row.split("[")[1].split("]")[0].split(","))
    assert high - low > 0.25  # drawn anew for each of the eight sets: 0.14


def test_what_cannot_be_compared_is_refused(tmp_path, monkeypatch, capsys):
    benchmark(tmp_path / "none", 0)
    none = f"none={tmp_path / 'none'}"
    for arguments in ([none], [none, "imagenet"], [none, none]):
        with pytest.raises(SystemExit):
            study(monkeypatch, *arguments)
        assert "give NAME=FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds no finished run"):
        study(monkeypatch, none, f"imagenet={tmp_path / 'nothing'}")
    benchmark(tmp_path / "seeds", 1, seeds=(2,))
    with pytest.raises(SystemExit, match="no method, data set and seed in common"):
        study(monkeypatch, none, f"imagenet={tmp_path / 'seeds'}")
    benchmark(tmp_path / "larger", 1, image_size=128)
    with pytest.raises(SystemExit, match="imagenet and none differ in their settings: rd4ad on a, seed 0"):
        study(monkeypatch, none, f"imagenet={tmp_path / 'larger'}")
    benchmark(tmp_path / "images", 1, groups=1)
    with pytest.raises(SystemExit, match="differ in their test images"):
        study(monkeypatch, none, f"imagenet={tmp_path / 'images'}")
