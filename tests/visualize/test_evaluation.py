# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from torch import nn

from monai_rdad.data import manifest_hash
from monai_rdad.handlers import AnomalyMetrics
from monai_rdad.utils import command_line, file_sha256
from monai_rdad.visualize import EvaluationReport, evaluation
from monai_rdad.visualize.sheet import Case


class Tracker:
    def __init__(self) -> None:
        self.files: list[str] = []

    def log_artifact(self, path: Path) -> None:
        assert path.is_file()
        self.files.append(path.name)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The cases on the sheet; the sheet itself is drawn as well."""
    cases: list[Case] = []
    draw = evaluation.contact_sheet

    def spy(given: list[Case], *args: Any, **kwargs: Any) -> None:
        cases.extend(given)
        draw(given, *args, **kwargs)

    monkeypatch.setattr(evaluation, "contact_sheet", spy)
    return cases


def samples(levels: dict[str, float], masks: bool = True, shape: tuple[int, ...] = (8, 8)) -> list[dict[str, Any]]:
    """Images whose brightest pixel, and so whose score, is known; names with "bad" are abnormal."""
    items = []
    for name, level in levels.items():
        label = int("bad" in name)
        image = torch.zeros(1, *shape)
        image[0, 2, 3] = level
        item: dict[str, Any] = {"image": image, "label": label, "name": name, "group": name}
        if masks:
            item["mask"] = (image > 0).to(torch.uint8) * label
        items.append(item)
    return items


def evaluate(folder: Path, items: list[dict[str, Any]], **kwargs: Any) -> EvaluationReport:
    metrics = AnomalyMetrics(bootstrap=20, output_dir=folder)
    report = EvaluationReport(metrics, "SCRD on phantoms", **kwargs)
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items), batch_size=3),
        network=nn.Identity(),
        val_handlers=[metrics, report],
        decollate=False,
    ).run()
    return report


def test_sheet_page_and_tracker(tmp_path: Path, shown: list[Case]) -> None:
    rng = np.random.default_rng(0)
    levels = {f"good{i}": v for i, v in enumerate(rng.permutation(12) / 20)}
    levels |= {f"bad{i}": v for i, v in enumerate(rng.permutation(12) / 20 + 0.25)}
    tracker = Tracker()
    report = evaluate(tmp_path, samples(levels), cases=6, commands=["python -m x"], notes=["Seed 0."], tracker=tracker)
    good = sorted((v, k) for k, v in levels.items() if "good" in k)
    bad = sorted((v, k) for k, v in levels.items() if "bad" in k)
    assert [c.name for c in shown] == [k for _, k in [*good[::-1][:4], *bad[:4], *bad[::-1][:4]]]
    assert [c.score for c in shown[:4]] == pytest.approx([v for v, _ in good[::-1][:4]])
    assert len({c.group for c in shown}) == 3
    assert all(c.mask is not None and c.mask.sum() == c.label for c in shown)
    names = {"cases", "evaluation.json", "metrics.json", "report.html", "scores.csv", "sheet.png"}
    names |= {"pixel_resamples.npz"}
    assert {p.name for p in tmp_path.iterdir()} == names
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(s in text for s in ("SCRD on phantoms", "Image AUROC", "python -m x", "Seed 0.", "24 images"))
    assert tracker.files == ["sheet.png", "report.html"]
    held = {case.name for lowest in (*report._worst, *report._sample) for case in lowest.cases}
    assert len(held) <= 24 and sum(len(lowest.cases) for lowest in report._worst) == 12


def test_gallery_takes_the_worst_and_a_sample_that_does_not_depend_on_the_order(tmp_path: Path) -> None:
    levels = {f"good{i}": i / 100 for i in range(40)} | {f"bad{i}": 0.2 + i / 100 for i in range(40)}
    evaluate(tmp_path / "a", samples(levels), cases=12)
    evaluate(tmp_path / "b", samples(dict(reversed(levels.items()))), cases=12)
    first, second = (json.loads((tmp_path / k / "evaluation.json").read_text()) for k in "ab")
    names = {entry["name"] for entry in first["cases"]}
    assert names == {entry["name"] for entry in second["cases"]} and len(names) == 12
    assert names >= {*(f"good{i}" for i in range(36, 40)), *(f"bad{i}" for i in range(4))}


def test_provenance(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    (tmp_path / "manifest.json").write_text('{"training": []}')
    kwargs = {"weights": tmp_path / "model.pt", "manifest": tmp_path / "manifest.json", "settings": {"seed": 3}}
    evaluate(tmp_path / "eval", samples({"good": 0.1, "bad": 0.5}), split="validation", **kwargs)
    content = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert content["settings"] == {"seed": "3"} and content["split"] == "validation"
    assert set(content["hashes"].values()) == {
        file_sha256(tmp_path / "model.pt"),
        manifest_hash(tmp_path / "manifest.json"),
    }
    assert content["software"]["torch"] == torch.__version__.split("+")[0] or content["software"]["torch"]
    assert content["commands"] == [command_line()]


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give that handler an output_dir"):
        EvaluationReport(AnomalyMetrics())
    with pytest.raises(ValueError, match="show at least 1"):
        EvaluationReport(AnomalyMetrics(output_dir=tmp_path), cases=0)


def test_few_cases_come_once_and_images_become_small(tmp_path: Path, shown: list[Case]) -> None:
    evaluate(tmp_path, samples({"good": 0.1, "bad1": 0.5, "bad2": 0.9}, masks=False, shape=(600, 300)))
    assert [c.name for c in shown] == ["good", "bad1", "bad2"]
    assert {c.image.shape for c in shown} == {(1, 256, 128)}
    assert {c.anomaly_map.dtype for c in shown} == {np.dtype(np.float16)}
    assert all(c.mask is None for c in shown)


def test_volumes_show_their_highest_slice(tmp_path: Path, shown: list[Case]) -> None:
    items = samples({"good": 0.1, "bad": 0.9}, shape=(8, 8, 5))
    items[1]["image"][0, 4, 4, 3] = 0.95
    evaluate(tmp_path, items)
    bad = shown[-1]
    assert bad.image.shape == (1, 8, 8) and bad.anomaly_map[4, 4] == pytest.approx(0.95, abs=1e-3)


def test_normal_images_only(tmp_path: Path, shown: list[Case]) -> None:
    with pytest.warns(UserWarning, match="both classes"):
        evaluate(tmp_path, samples({"good1": 0.1, "good2": 0.2}))
    assert [c.name for c in shown] == ["good2", "good1"]
    assert "not defined" in (tmp_path / "report.html").read_text(encoding="utf-8")
