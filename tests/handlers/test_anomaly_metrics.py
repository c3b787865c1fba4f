# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
from monai.data import DataLoader, DistributedSampler
from monai.engines import SupervisedEvaluator

from monai_rdad.handlers.anomaly_metrics import AnomalyMetrics
from monai_rdad.metrics import IMAGE_METRICS, PIXEL_METRICS, image_metrics


def items(count=11, masks=True):
    """Images that are their own anomaly maps; odd ones abnormal, number 3 with an unknown mask; two per group."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
        mask[:, 3:7, 3:9] = i % 2
        image = torch.rand(1, 16, 16, generator=generator) + 0.3 * mask
        item = {"image": image, "label": i % 2, "name": f"scan/{i:02d}.png", "group": f"patient{i // 2}"}
        made.append(item | ({"mask": torch.full_like(mask, 255) if i == 3 else mask} if masks else {}))
    return made


def evaluate(handler, data, batch_size=4, sampler=None, **kwargs):
    loader = DataLoader(data, batch_size=batch_size, sampler=sampler, num_workers=0)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=torch.nn.Identity(),
        **({"decollate": False, "val_handlers": [handler]} | kwargs),
    )
    evaluator.run()
    return evaluator.state.metrics


def test_metrics_names_counts_and_files(tmp_path):
    handler = AnomalyMetrics(bootstrap=100, output_dir=tmp_path / "new" / "folder")
    data = items()
    metrics = evaluate(handler, data)
    names = [*IMAGE_METRICS, *PIXEL_METRICS]
    counts = {"n_images": 11, "n_abnormal": 5, "n_groups": 6, "n_pixel_images": 10, "n_regions": 4}
    assert set(metrics) == {*names, *counts} | {f"{n}_ci_{side}" for n in names for side in ("low", "high")}
    assert {k: metrics[k] for k in counts} == counts
    assert all(type(v) is float for v in metrics.values())
    scores = [float(item["image"].max()) for item in data]
    expected = image_metrics(scores, [item["label"] for item in data])
    assert {k: metrics[k] for k in IMAGE_METRICS} == pytest.approx(expected)
    assert json.loads((tmp_path / "new" / "folder" / "metrics.json").read_text()) == metrics
    with open(tmp_path / "new" / "folder" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [item["name"] for item in data]
    expected_row = {"name": "scan/02.png", "group": "patient1", "label": "0", "score": repr(scores[2])}
    assert rows[2] == expected_row | {"p_value": "", "area": ""}
    with np.load(tmp_path / "new" / "folder" / "pixel_resamples.npz") as drawn:
        assert set(drawn) == set(PIXEL_METRICS)
        interval = tuple(np.percentile(drawn["aupro_0.3"], (2.5, 97.5)))
    assert (metrics["aupro_0.3_ci_low"], metrics["aupro_0.3_ci_high"]) == interval
    left = sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())
    assert left == ["metrics.json", "pixel_resamples.npz", "scores.csv"]


def test_order_and_batches_change_nothing():
    first = evaluate(AnomalyMetrics(bootstrap=50), items(), batch_size=4)
    assert evaluate(AnomalyMetrics(bootstrap=50), items()[::-1], batch_size=3) == pytest.approx(first, abs=1e-12)
    assert evaluate(AnomalyMetrics(bootstrap=50, seed=1), items()) != first


def test_second_run_of_an_evaluator_starts_afresh():
    handler = AnomalyMetrics(bootstrap=0)
    first = dict(evaluate(handler, items()))
    assert evaluate(handler, items(7))["n_images"] == 7
    assert evaluate(handler, items()) == first


def test_works_as_the_key_metric():
    handler = AnomalyMetrics(bootstrap=0)
    metrics = evaluate(handler, items(), key_val_metric={"image_auroc": handler}, val_handlers=None)
    assert metrics["image_auroc"] == evaluate(AnomalyMetrics(bootstrap=0), items())["image_auroc"]


def test_reduction_is_used():
    metrics = evaluate(AnomalyMetrics(lambda maps: maps.mean((1, 2, 3)), bootstrap=0), items())
    expected = image_metrics([float(item["image"].mean()) for item in items()], [i % 2 for i in range(11)])
    assert metrics["image_auroc"] == pytest.approx(expected["image_auroc"])
    with pytest.raises(ValueError, match="1 scores of 4 maps"):
        evaluate(AnomalyMetrics(torch.mean), items())


def test_without_masks_groups_or_names():
    data = [{"image": item["image"], "label": item["label"]} for item in items()]
    handler = AnomalyMetrics(bootstrap=20)
    metrics = evaluate(handler, data)
    assert metrics["n_groups"] == metrics["n_images"] == 11
    assert not any("pixel" in name or "aupro" in name for name in metrics)
    assert len({row.name for row in handler.scores}) == 11
    assert not any("pixel" in name for name in evaluate(AnomalyMetrics(bootstrap=0, pixel=False), items()))


def test_normal_images_only(tmp_path):
    handler = AnomalyMetrics(bootstrap=20, output_dir=tmp_path)
    with pytest.warns(UserWarning, match="0 abnormal of 6 images"):
        metrics = evaluate(handler, items()[::2])
    assert np.isnan([metrics["image_auroc"], metrics["image_auroc_ci_low"]]).all()
    assert json.loads((tmp_path / "metrics.json").read_text())["image_auroc"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.full((1, 16, 16), torch.nan)}, "score of 'scan/05.png' is nan"),
        ({"label": 2}, "label of 'scan/05.png' is 2"),
        ({"name": "scan/04.png"}, "'scan/04.png' came twice"),
    ],
)
def test_broken_items_are_named(change, message):
    data = items()
    data[5] |= change
    with pytest.raises(ValueError, match=message):
        evaluate(AnomalyMetrics(), data)


def test_decollated_batches_are_refused():
    with pytest.raises(ValueError, match="decollate=False"):
        evaluate(AnomalyMetrics(), items(), decollate=True)


def rank_of_two(rank, folder):
    """What each of the two processes of the test below runs."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    data = items()
    padded = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=True, even_divisible=True)
    assert padded.total_size == 12, "one image has to come twice"
    metrics = evaluate(AnomalyMetrics(bootstrap=50, output_dir=f"{folder}/{rank}"), data, sampler=padded)
    with open(f"{folder}/metrics{rank}.json", "w") as file:
        json.dump(metrics, file)
    with pytest.raises(ValueError, match="evaluated on 2 ranks.*DistributedSampler"):
        evaluate(AnomalyMetrics(bootstrap=0), data)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, to be spared a minute of imports")
def test_two_processes_count_every_image_once(tmp_path):
    alone = evaluate(AnomalyMetrics(bootstrap=50), items())
    torch.multiprocessing.start_processes(rank_of_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        assert json.loads((tmp_path / f"metrics{rank}.json").read_text()) == pytest.approx(alone, abs=1e-9)
    assert (tmp_path / "0" / "scores.csv").exists() and not (tmp_path / "1").exists()


def test_slices_of_volumes(tmp_path):
    """Slices are labelled by the mask; empty normal ones are not counted, empty abnormal ones are missed."""
    generator = torch.Generator().manual_seed(2)
    data, expected = [], []
    for i in range(4):
        volume, mask = torch.rand(1, 8, 8, 5, generator=generator), torch.zeros(1, 8, 8, 5, dtype=torch.uint8)
        volume[..., [0, 4]] = 0  # left out
        if i % 2:
            mask[:, 2:4, 2:4, 3:] = 1
        name = f"v{i}.nii.gz"
        data.append({"image": volume, "mask": mask, "label": i % 2, "name": name, "group": f"p{i}"})
        for k in range(5):
            label = int(i % 2 and k >= 3)
            if k in (1, 2, 3) or label:
                expected.append([name, f"p{i}", k, label, float(volume[..., k].max())])
    data.append(data[1] | {"mask": torch.full_like(data[1]["mask"], 255), "name": "unknown.nii.gz", "group": "q"})
    metrics = evaluate(AnomalyMetrics(bootstrap=50, output_dir=tmp_path), data, batch_size=1)
    with open(tmp_path / "slices.csv", newline="") as file:
        rows = [
            [r["name"], r["group"], int(r["slice"]), int(r["label"]), float(r["score"])] for r in csv.DictReader(file)
        ]
    assert rows == expected
    figures = image_metrics([row[4] for row in rows], [row[3] for row in rows])
    assert metrics["slice_auroc"] == figures["image_auroc"] and metrics["slice_ap"] == figures["image_ap"]
    assert (metrics["n_slices"], metrics["n_abnormal_slices"]) == (len(rows), 4)
    assert metrics["slice_auroc_ci_low"] <= metrics["slice_auroc"] <= metrics["slice_auroc_ci_high"]
