# SPDX-License-Identifier: Apache-2.0
"""What is particular to the bundle esc_drkd: its corruption inside the preprocessing, and two learning rates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CONFIGS = Path(__file__).resolve().parents[2] / "bundles" / "esc_drkd" / "configs"


@pytest.fixture(scope="module")
def noise_set(tmp_path_factory) -> Path:
    """A data set of coloured noise: no pixel is the same after it was pasted over."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    items = []
    for i in range(8):
        Image.fromarray(rng.integers(1, 255, (70, 80, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        items.append({"image": f"{i}.png", "label": 0, "group": str(i)})
    (folder / "manifest.json").write_text(json.dumps({"training": items}))
    return folder


def parse(folder: Path, *names: str, **overrides) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("train", *names)])
    settings = {"dataset_dir": str(folder), "image_size": 64, "weights": "none", "tracking_uri": "none"}
    parser.update(settings | {"bundle_root": str(folder)} | overrides)
    return parser


@pytest.mark.parametrize("names", [(), ("paper",)])
@pytest.mark.parametrize("channels", [1, 3])
def test_clean_and_corrupted_image_are_equal_outside_the_patch(noise_set, names, channels):
    transform = parse(noise_set, *names, channels=channels).get_parsed_content("train#preprocessing")
    transform.transforms[-1].mask_keys = ("region",)
    transform.set_random_state(0)
    for item in json.loads((noise_set / "manifest.json").read_text())["training"]:
        [sample] = transform({"image": str(noise_set / item["image"])})
        changed = (sample["image"] != sample["corrupted"]).any(0)
        inside = sample["region"][0].bool()
        assert sample["image"].shape == sample["corrupted"].shape == (channels, 64, 64)
        assert sample["image"].min() >= 0 and sample["image"].max() <= 1
        assert not changed[~inside].any()
        assert changed[inside].float().mean() > 0.9


def test_patch_sizes_and_clipping_are_settings(noise_set):
    for sizes, largest in (("small", 8), ("mixed", 50)):
        parser = parse(noise_set, patch_sizes=sizes, patch_blend=1.0, patch_clip=False)
        transform = parser.get_parsed_content("train#preprocessing")
        transform.transforms[-1].mask_keys = ("region",)
        transform.set_random_state(0)
        samples = [transform({"image": str(noise_set / f"{i % 8}.png")})[0] for i in range(40)]
        sides = [sample["region"].sum().item() ** 0.5 for sample in samples]
        assert largest - 12 < max(sides) <= largest and min(sides) <= 8
        assert max(sample["corrupted"].max() for sample in samples) > 1


@pytest.mark.parametrize("skips", [0, 2, 3])
def test_two_learning_rates_cover_every_trainable_parameter_once(noise_set, skips):
    parser = parse(noise_set, skips=skips)
    optimizer, network = parser.get_parsed_content("optimizer"), parser.get_parsed_content("network")
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(rates)
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert rates == {id(p): 0.001 if "projections" in name else 0.005 for name, p in trainable.items()}
    assert [group["betas"] for group in optimizer.param_groups] == [(0.5, 0.999)] * 2

    batch = {key: torch.rand(2, 1, 64, 64) for key in ("image", "corrupted")}
    before = [p.detach().clone() for p in trainable.values()]
    parser.get_parsed_content("loss")(network.train()(*batch.values())).backward()
    optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(trainable.values(), before, strict=True))
