# SPDX-License-Identifier: Apache-2.0
"""Folders of an evaluation and of a benchmark, without a network."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from torch import nn

from monai_rdad.handlers import AnomalyMetrics, Calibration
from monai_rdad.metrics import AreaRisk, ConformalScores
from monai_rdad.visualize import EvaluationReport

HOSTILE = "</script><script>alert(1)</script> \"q\" 'a' & <img src=x onerror=alert(2)>.png"


def _calibration(scores: Sequence[float]) -> Calibration:
    """Of normal images with these scores; their maps lie above 0.35 on a thousandth of the area."""
    conformal = ConformalScores(scores)
    area = AreaRisk((0.1, 0.35, 0.5), (0.9, 0.001, 0.0), conformal.n_groups)
    return Calibration({"": conformal}, {"": area}, False, "0" * 64, {})


def _items(scores: dict[str, float], shape: Sequence[int], masks: bool, seed: int) -> list[dict[str, Any]]:
    """Images that are their own maps, with a block as high as the score; "bad" in a name makes it abnormal."""
    made = []
    rng = np.random.default_rng(seed)
    for i, (name, score) in enumerate(scores.items()):
        image = torch.from_numpy(rng.random((1, *shape), dtype=np.float32)) * 0.5 * score
        image[0, 6:12, 8:15] = score
        label = int("bad" in name)
        item: dict[str, Any] = {"image": image, "label": label, "name": name, "group": f"patient {i // 2}"}
        if masks:
            item["mask"] = (image == score).to(torch.uint8) * label
        made.append(item)
    return made


@pytest.fixture(scope="session")
def evaluate() -> Callable[..., Path]:
    """Evaluates images with given scores and leaves the report and its files in a folder."""

    def run(
        folder: Path,
        scores: dict[str, float],
        calibration: Sequence[float] | None = None,
        shape: Sequence[int] = (24, 24),
        masks: bool = True,
        seed: int = 0,
        alpha: float = 0.05,
        **kwargs: Any,
    ) -> Path:
        calibrated = None if calibration is None else _calibration(calibration)
        metrics = AnomalyMetrics(bootstrap=20, output_dir=folder, calibration=calibrated, alpha=alpha, area_alpha=0.05)
        SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(Dataset(_items(scores, shape, masks, seed)), batch_size=3),
            network=nn.Identity(),
            val_handlers=[metrics, EvaluationReport(metrics, **kwargs)],
            decollate=False,
        ).run()
        return folder / "report.html"

    return run


@pytest.fixture(scope="session")
def hostile() -> str:
    """A name that would run a script if it were not escaped."""
    return HOSTILE


@pytest.fixture(scope="session")
def scores() -> dict[str, float]:
    """Ten normal and ten abnormal images; two of the first and three of the second lie on the wrong side of 0.5."""
    normal = [0.05, 0.11, 0.15, 0.21, 0.25, 0.31, 0.35, 0.41, 0.66, 0.77]
    abnormal = [0.08, 0.18, 0.28, 0.55, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95]
    good = {f"good/{i:02d}.png": score for i, score in enumerate(normal)}
    return good | {f"bad/{i:02d}.png": score for i, score in enumerate(abnormal)}


@pytest.fixture(scope="session")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory, evaluate: Callable[..., Path], scores: dict[str, float]
) -> Path:
    """Folder of a calibrated evaluation with masks and one hostile name."""
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(
        folder,
        scores | {f"bad {HOSTILE}": 0.88},
        np.linspace(0.01, 0.5, 50).tolist(),
        title="SCRD <b>on</b> phantoms",
        settings={"seed": 7, "encoder": "resnet18"},
        commands=["python -m monai.bundle run evaluating --x '<y>'"],
    )
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Callable[..., Path]:
    """Maker of a benchmark's folder: two methods, two data sets and some seeds."""

    def make(seeds: int = 2, data: Sequence[str] = ("busi", "lgg")) -> Path:
        folder = tmp_path / "benchmark"
        folder.mkdir()
        results, comparisons, ranks = [], [], []
        for m, method in enumerate(("rd4ad", "scrd")):
            for d, name in enumerate(data):
                for seed in range(seeds):
                    value = 0.6 + 0.1 * m + 0.05 * d + 0.01 * seed
                    results.append(
                        {"method": method, "data": name, "seed": seed, "metric": "image_auroc", "value": value}
                        | {"ci_low": value - 0.05, "ci_high": value + 0.05, "n_images": 80, "n_abnormal": 30}
                        | {"n_groups": 40, "seconds": 61.4}
                    )
            ranks.append({"metric": "image_auroc", "method": method, "mean_rank": 2 - m})
        for name in data:
            comparisons.append(
                {"data": name, "metric": "image_auroc", "method_a": "rd4ad", "method_b": "scrd", "difference": -0.1}
                | {"ci_low": -0.16, "ci_high": -0.04, "p_value": 0.002, "p_holm": 0.004, "test": "DeLong"}
                | {"n": 80, "seeds": seeds, "seeds_agree": 1.0 if name == "busi" else 0.75}
            )
        _write(folder / "results.csv", results)
        _write(folder / "comparisons.csv", comparisons)
        _write(folder / "ranks.csv", ranks)
        content = {
            "name": "Two <methods>",
            "yaml": "seeds: [0, 1]",
            "versions": {"torch": "2.13.0"},
            "commands": ["monai-rdad benchmark plan.yaml"],
            "seeds": list(range(seeds)),
            "hashes": {"manifest": "f" * 64},
        }
        (folder / "benchmark.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return make
