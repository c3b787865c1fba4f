# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch import nn

from monai_rdad.features import FeaturePairs
from monai_rdad.handlers import PrototypeUsage
from monai_rdad.visualize import PrototypeReport, assignment_overlay, prototype_sheet
from monai_rdad.visualize.prototypes import prototype_colors


def test_each_cell_has_the_colour_of_its_prototype():
    nearest = np.array([[0, 1], [2, 0]])
    result = assignment_overlay(np.zeros((40, 60), np.uint8), nearest, 3, alpha=1.0)
    assert result.shape == (40, 60, 3) and result.dtype == np.uint8
    colors = np.rint(prototype_colors(3) * 255).astype(np.uint8)
    for (row, column), index in np.ndenumerate(nearest):
        cell = result[row * 20 : row * 20 + 20, column * 30 : column * 30 + 30]
        assert (cell == colors[index]).all()
    assert len({tuple(c) for c in prototype_colors(20)}) == 20


def test_the_image_shows_through():
    rng = np.random.default_rng(0)
    image = rng.random((16, 16))
    result = assignment_overlay(image, np.zeros((4, 4), int), 2).astype(float)
    assert np.corrcoef(result[..., 0].ravel(), image.ravel())[0, 1] > 0.99
    np.testing.assert_array_equal(
        assignment_overlay(image, np.ones((4, 4), int), 2, alpha=0.0)[..., 0], np.rint(image * 255).astype(np.uint8)
    )


def test_a_sheet_needs_images(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        prototype_sheet([], np.array([0.5, 0.5]), tmp_path / "p.png")


class _Network(nn.Module):
    def forward(self, image):
        cells = nn.functional.avg_pool2d(image, 8)
        tokens = torch.stack([cells.flatten(1), 1 - cells.flatten(1)], 2)
        return FeaturePairs([cells], [cells], tokens=tokens, prototypes=torch.eye(2)[None].expand(len(image), -1, -1))


def test_the_report_of_an_evaluation(tmp_path):
    network, logged = _Network(), []

    class Tracker:
        log_artifact = staticmethod(logged.append)

    usage = PrototypeUsage(network)
    report = PrototypeReport(tmp_path, usage, images=2, tracker=Tracker())
    images = torch.rand(6, 1, 32, 32).reshape(3, 2, 1, 32, 32)
    labels = [[0, 0], [0, 1], [1, 0]]
    batches = [
        {"image": i, "label": torch.tensor(k), "name": [f"{n}a.png", f"{n}b.png"]}
        for n, (i, k) in enumerate(zip(images, labels, strict=True))
    ]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=network,
        val_handlers=[usage, report],
        decollate=False,
    )
    evaluator.run()
    normal, abnormal = report._kept
    assert [c.name for c in normal] == ["normal 0a.png", "normal 0b.png"]
    assert [c.name for c in abnormal] == ["abnormal 1b.png", "abnormal 2a.png"]
    expected = (nn.functional.avg_pool2d(images[1][1:], 8)[0, 0] < 0.5).long().numpy()
    np.testing.assert_array_equal(abnormal[0].nearest, expected)
    assert Image.open(tmp_path / "prototypes.png").size[0] > 500 and logged == [tmp_path / "prototypes.png"]


def test_volumes_leave_no_picture(tmp_path):
    usage = PrototypeUsage(_Network())
    report = PrototypeReport(tmp_path, usage)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.rand(1, 1, 32, 32, 3), "label": torch.tensor([0]), "name": ["v"]}],
        network=lambda image: usage.network(image[..., 0]),
        val_handlers=[usage, report],
        decollate=False,
    )
    evaluator.run()
    assert not list(tmp_path.iterdir())
