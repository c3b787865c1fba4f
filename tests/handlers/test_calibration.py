# SPDX-License-Identifier: Apache-2.0
"""Calibration on normal images: stored beside the weights, read again, and what an evaluation makes of it."""

from __future__ import annotations

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator

from monai_rdad.handlers import AnomalyMetrics, Calibration, CalibrationWriter, load_calibration
from monai_rdad.handlers.trained import save_trained
from monai_rdad.metrics import AreaRisk, ConformalScores
from monai_rdad.transforms import ScoreReduction


def normals(count=40, per_group=2, strata=("",), seed=0, shape=(16, 16)):
    """Images that are their own maps: noise, brighter in the second stratum."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(count):
        stratum = strata[(i // per_group) % len(strata)]
        image = torch.as_tensor(rng.gamma(2.0, 0.1, size=(1, *shape)), dtype=torch.float32)
        image = image * (1 + strata.index(stratum))
        group = f"{seed}-patient{i // per_group}"
        items.append({"image": image, "label": 0, "name": f"{seed}-{i}.png", "group": group, "stratum": stratum})
    return items


def run(items, *handlers):
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=8),
        network=torch.nn.Identity(),
        val_handlers=list(handlers),
        decollate=False,
    ).run()


@pytest.fixture
def trained(tmp_path):
    save_trained(tmp_path, torch.nn.Linear(2, 1), {})
    return tmp_path


def calibrate(folder, items):
    run(items, CalibrationWriter(folder, ScoreReduction("max")))
    calibration = load_calibration(folder, required=True)
    assert calibration is not None
    return calibration


def test_scores_groups_and_areas_are_those_of_the_images(trained):
    items = normals()
    calibration = calibrate(trained, items)
    assert set(calibration.scores) == set(calibration.areas) == {""} and not calibration.volumes
    expected = ConformalScores([float(i["image"].max()) for i in items], [i["group"] for i in items])
    np.testing.assert_array_equal(calibration.scores[""].scores, expected.scores)
    for alpha in (0.05, 0.1, 0.3):
        assert calibration.threshold(alpha) == expected.threshold(alpha)
    # two images of equal size per group: the mean over groups is that over all pixels
    pixels = torch.stack([i["image"] for i in items]).numpy()
    area = calibration.areas[""]
    for value, fraction in zip(area.values[::10], area.fractions[::10], strict=True):
        assert fraction == pytest.approx((pixels >= value).mean(), abs=1e-6)
    threshold = calibration.area_threshold(0.06)
    realised = (20 * (pixels >= threshold).mean() + 1) / 21
    assert 0.055 < realised <= 0.06


def test_groups_of_different_sizes_count_alike(trained):
    items = normals(9, per_group=9) + normals(1, seed=1)
    for item in items[:9]:
        item["image"] = torch.full((1, 4, 4), 0.5)
    items[9]["image"] = torch.full((1, 4, 4), 0.1)
    area = calibrate(trained, items).areas[""]
    assert area.n_groups == 2
    between = [f for v, f in zip(area.values, area.fractions, strict=True) if 0.12 < v < 0.48]
    assert between == pytest.approx([0.5] * len(between)) and between


def test_strata_have_thresholds_of_their_own(trained):
    calibration = calibrate(trained, normals(160, strata=("a", "b")))
    assert set(calibration.scores) == {"", "a", "b"}
    assert calibration.threshold(0.1, "b") > 1.5 * calibration.threshold(0.1, "a")
    assert calibration.threshold(0.1) == calibration.threshold(0.1, "")
    assert calibration.area_threshold(0.1, "b") > 1.5 * calibration.area_threshold(0.1, "a")
    with pytest.raises(ValueError, match="'c' was not calibrated; known are: a, b"):
        calibration.p_value(1.0, "c")


def test_an_unknown_stratum_does_not_matter_without_strata(trained):
    calibration = calibrate(trained, normals())
    assert calibration.p_value(1.0, "anywhere") == calibration.p_value(1.0)


def test_evaluation_reports_the_realised_rates(trained, tmp_path):
    calibration = calibrate(trained, normals(100))
    test = normals(60, seed=1)
    for item in test[40:]:
        item |= {"label": 1, "image": item["image"].clone()}
        item["mask"] = torch.zeros(1, 16, 16, dtype=torch.uint8)
        item["image"][:, 4:8, 4:8] = 3.0
        item["mask"][:, 4:8, 4:8] = 1
    for item in test[:40]:
        item["mask"] = torch.zeros(1, 16, 16, dtype=torch.uint8)
    metrics = AnomalyMetrics(
        bootstrap=50, output_dir=tmp_path / "out", calibration=calibration, alpha=0.1, area_alpha=0.05
    )
    run(test, metrics)
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    scores = np.array([float(i["image"].max()) for i in test])
    labels = np.array([i["label"] for i in test])
    called = scores > calibration.threshold(0.1)
    assert figures["false_positive_rate_at_0.1"] == pytest.approx(called[labels == 0].mean())
    assert figures["sensitivity_at_0.1"] == 1.0
    low, high = (figures[f"false_positive_rate_at_0.1_ci_{end}"] for end in ("low", "high"))
    assert low <= figures["false_positive_rate_at_0.1"] <= high and high > low
    pixels, masks = (torch.stack([i[k] for i in test]).numpy() for k in ("image", "mask"))
    found = pixels >= calibration.area_threshold(0.05)
    assert figures["normal_area_at_0.05"] == pytest.approx(found[labels == 0].mean())
    dice = 2 * (found & (masks == 1)).sum() / (found.sum() + masks.sum())
    assert figures["dice_at_area_0.05"] == pytest.approx(dice, abs=1e-6)
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    for item, score in zip(test, scores, strict=True):
        assert float(rows[item["name"]]["p_value"]) == pytest.approx(calibration.p_value(score))


def test_slices_say_nothing_about_volumes(trained):
    calibration = calibrate(trained, normals())
    volumes = normals(4, seed=2, shape=(8, 8, 3))
    metrics = AnomalyMetrics(bootstrap=0, calibration=calibration)
    with pytest.warns(UserWarning, match="of images and says nothing about volumes"):
        run([v | {"label": i % 2} for i, v in enumerate(volumes)], metrics)
    assert {row.p_value for row in metrics.scores} == {""}
    assert calibrate(trained, volumes).volumes


def test_abnormal_images_do_not_calibrate(trained):
    items = normals(4)
    items[2]["label"] = 1
    with pytest.raises(ValueError, match=r"'0-2.png' is abnormal"):
        calibrate(trained, items)
    assert not (trained / "calibration.json").exists()


def test_a_calibration_of_other_weights_is_refused(trained):
    calibrate(trained, normals(4))
    content = (trained / "calibration.json").read_bytes()
    save_trained(trained, torch.nn.Linear(3, 1), {})
    assert load_calibration(trained) is None  # a new training removes it
    with pytest.raises(FileNotFoundError, match="Calibrate first"):
        load_calibration(trained, required=True)
    (trained / "calibration.json").write_bytes(content)
    with pytest.raises(ValueError, match="belongs to other weights"):
        load_calibration(trained)
    (trained / "calibration.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a calibration"):
        load_calibration(trained)


def test_a_calibration_of_other_settings_is_refused(trained):
    run(normals(4), CalibrationWriter(trained, ScoreReduction("max"), {"score_mode": "max", "window": [40, 80]}))
    assert load_calibration(trained, {"score_mode": "max", "window": (40, 80)}) is not None
    with pytest.raises(ValueError, match="made with score_mode max, not mean"):
        load_calibration(trained, {"score_mode": "mean", "window": [40, 80]})


def test_a_stratum_may_be_a_number_on_the_command_line(trained):
    calibration = calibrate(trained, normals(80, strata=("0", "1")))
    assert calibration.threshold(0.1, 1) == calibration.threshold(0.1, "1") != calibration.threshold(0.1)
    assert calibration.threshold(0.1, 0) == calibration.threshold(0.1, "0")


def test_images_and_volumes_do_not_mix(trained):
    handler = CalibrationWriter(trained, ScoreReduction("max"))
    run(normals(2), handler)
    state = SimpleNamespace(batch={"name": ["scan"]}, output={"pred": torch.rand(1, 1, 4, 4, 2)})
    with pytest.raises(ValueError, match="'scan': the calibration split mixes"):
        handler._iteration_completed(SimpleNamespace(state=state))


def test_without_masks_there_is_no_dice(trained):
    calibration = calibrate(trained, normals(100))
    test = normals(8, seed=1)
    for i, item in enumerate(test):
        item |= {"label": i % 2, "mask": torch.full((1, 16, 16), 255 * (i % 2), dtype=torch.uint8)}
    metrics = AnomalyMetrics(bootstrap=0, calibration=calibration, area_alpha=0.05)
    run(test, metrics)
    assert not [name for name in metrics._metrics if name.startswith("dice")]
    assert "normal_area_at_0.05" in metrics._metrics


def test_saved_and_loaded_is_the_same(trained):
    made = calibrate(trained, normals(30, per_group=3))
    made.save(trained)
    again = load_calibration(trained)
    assert again is not None and again.areas == made.areas
    for score in np.linspace(0, 2, 30):
        assert again.p_value(score) == made.p_value(score)


def test_few_images_warn(trained, caplog):
    calibrate(trained, normals(8))
    assert "needs at least 19" in caplog.text


def test_decisions_without_a_threshold_find_nothing():
    calibration = Calibration({"": ConformalScores([1.0])}, {"": AreaRisk((0.1,), (0.5,), 1)}, False, "", {})
    assert calibration.threshold(0.05) == calibration.area_threshold(0.05) == math.inf
    assert calibration.area(np.ones((2, 2), np.float32), 0.05) == 0.0
