# SPDX-License-Identifier: Apache-2.0
"""The whole chain of an evaluation, from file to tensor, as the bundles have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import Compose
from PIL import Image

from monai_rdad.transforms import (
    DequantizeIntensityd,
    NormalizeByPresetd,
    QuantizeIntensityd,
    ReadImaged,
    ReadMaskd,
    ResizeInPlaned,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_cached_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    items = []
    for i in range(4):
        Image.fromarray(RNG.integers(0, 256, (20, 30), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        items.append({"image": str(tmp_path / f"{i}.png"), "label": i % 2, "name": f"{i}.png"})
    opened: list[str] = []
    image_open = Image.open

    def counting_open(path: str, **kwargs: Any) -> Image.Image:
        opened.append(str(path))
        return image_open(path, **kwargs)

    monkeypatch.setattr(Image, "open", counting_open)
    steps = [
        ReadImaged("image", channels=channels),
        ReadMaskd("mask"),
        NormalizeByPresetd("image"),
        ResizeInPlaned(["image", "mask"], 64, nearest=[False, True]),
    ]
    direct = [Compose(steps)(item) for item in items]
    opened.clear()
    dataset = CacheDataset(
        items,
        Compose([*steps, QuantizeIntensityd("image"), DequantizeIntensityd("image")]),
        cache_rate=1.0,
        num_workers=1,
        progress=False,
    )
    for cached in dataset._cache:
        assert type(cached["image"]) is torch.Tensor and cached["image"].dtype == torch.uint8
        assert cached["image"].is_contiguous()
    for _ in range(3):
        for item, expected in zip(dataset, direct, strict=True):
            assert type(item["image"]) is torch.Tensor and item["image"].dtype == torch.float32
            assert item["image"].shape == (channels, 64, 64)
            assert float((item["image"] - torch.as_tensor(np.asarray(expected["image"]))).abs().max()) <= 1 / 255
            assert item["mask"].dtype == torch.uint8 and set(np.unique(item["mask"])) == {255 * item["label"]}
    assert sorted(opened) == [item["image"] for item in items]  # once each, in three epochs
