# SPDX-License-Identifier: Apache-2.0
"""The teacher that the package brings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from torch.nn.functional import normalize

from monai_rdad.data.synthetic_textures import Textures, seeded
from monai_rdad.networks.encoders import FrozenEncoder, find_embedded_weights, load_encoder_weights, weights

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def test_loads_without_a_network_and_says_how_it_was_made(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the embedded weights were downloaded")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    path = find_embedded_weights("resnet18")
    assert path.stat().st_size <= 6e6
    encoder = FrozenEncoder("resnet18")
    load_encoder_weights(encoder, "resnet18", "embedded")
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["settings"])
        assert all(torch.equal(v, file.get_tensor(k).to(v.dtype)) for k, v in encoder.state_dict().items())
        shown = int(file.metadata()["images"])
    assert all(v.isfinite().all() for v in encoder.state_dict().values())
    assert settings["seed"] == 0 and settings["objectives"] and settings["data"] is None
    each = settings["pictures"] // settings["batch"] * settings["batch"]
    assert shown == settings["epochs"] * settings["repeats"] * each
    assert "/" not in json.dumps(settings)


def test_another_encoder_or_a_damaged_file_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="No weights are embedded for encoder 'resnet50', only for: resnet18"):
        load_encoder_weights(FrozenEncoder("resnet50", 1), "resnet50", "embedded")
    with pytest.raises(ValueError, match="lacks layer4"):
        load_encoder_weights(FrozenEncoder("resnet18", 4), "resnet18", "embedded")
    monkeypatch.setitem(weights.EMBEDDED, "resnet18", (weights.EMBEDDED["resnet18"][0], "0" * 64))
    with pytest.raises(ValueError, match="damaged"):
        find_embedded_weights("resnet18")


def test_it_is_the_default_of_every_bundle():
    files = sorted(BUNDLES.glob("*/configs/train.yaml"))
    assert len(files) >= 6
    assert {yaml.safe_load(file.read_text())["weights"] for file in files} == {"embedded"}


def test_tells_textures_apart_that_it_never_saw():
    """The class of a second sample by its nearest neighbour, for classes of another seed than the training's."""
    c, textures = torch.arange(64), Textures(64, edge=96, seed=999)
    samples = [(textures.sample(c, seeded(s))[:, None] * 0.15 + 0.5).clamp(0, 1) for s in (0, 1)]

    def accuracy(name: str) -> float:
        torch.manual_seed(0)
        encoder = FrozenEncoder("resnet18")
        load_encoder_weights(encoder, "resnet18", name)
        first, second = (normalize(encoder(x.repeat(1, 3, 1, 1))[2].mean((2, 3)), dim=1) for x in samples)
        return float(((second @ first.T).argmax(1) == c).float().mean())

    assert accuracy("embedded") > accuracy("none") + 0.1
