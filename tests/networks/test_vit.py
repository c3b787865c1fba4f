# SPDX-License-Identifier: Apache-2.0
"""The transformer encoder against the one of the transformers library, and its weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_rdad.inferers import AnomalyMap
from monai_rdad.losses import PrototypeLoss
from monai_rdad.networks.encoders import ViTEncoder, load_encoder_weights
from monai_rdad.networks.encoders import weights as weights_module
from monai_rdad.networks.nets import DNP

NAME = "vit_small_dinov2_reg4"


@pytest.fixture(scope="module")
def encoder() -> ViTEncoder:
    """Random weights, larger than a fresh network's, so that every part of it counts."""
    torch.manual_seed(0)
    module = ViTEncoder(NAME)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return module.eval()


# ours, as in the official weights, to that of the transformers library
RENAMED = (
    ("pos_embed", "embeddings.position_embeddings"),
    ("cls_token", "embeddings.cls_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("blocks.", "encoder.layer."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
    ("attn.proj", "attention.o_proj"),
)


def library_state(encoder: ViTEncoder) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in encoder.state_dict().items():
        name = key
        for ours, theirs in RENAMED:
            name = name.replace(ours, theirs)
        if "attn.qkv" in name:
            for part, tensor in zip("qkv", value.chunk(3), strict=True):
                state[name.replace("attn.qkv", f"attention.{part}_proj")] = tensor
        else:
            state[name] = value
    return state


@pytest.mark.parametrize("size", [(252, 252), (56, 84), (518, 518)])
def test_equals_the_transformers_library(encoder, size):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=10,
        image_size=518,
        patch_size=14,
        num_register_tokens=4,
    )
    library = transformers.Dinov2WithRegistersModel(config).eval()
    keys = library.load_state_dict(library_state(encoder), strict=False)
    assert not keys.unexpected_keys
    assert set(keys.missing_keys) == {"embeddings.mask_token", "layernorm.weight", "layernorm.bias"}
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = library((image - encoder.mean) / encoder.std, output_hidden_states=True).hidden_states
        levels = encoder(image)
    assert len(levels) == 8
    for block, level in zip(range(2, 10), levels, strict=True):
        reference = expected[block + 1][:, 5:]
        scale = reference.abs().max()
        torch.testing.assert_close(level.flatten(2).transpose(1, 2) / scale, reference / scale, rtol=0, atol=1e-5)


def test_positions_of_the_trained_grid_are_the_stored_ones(encoder):
    torch.testing.assert_close(encoder.positions(37, 37), encoder.pos_embed, rtol=0, atol=1e-6)
    small = encoder.positions(4, 6)
    assert small.shape == (1, 25, 384) and torch.equal(small[:, 0], encoder.pos_embed[:, 0])


def test_official_weights_load_and_what_is_not_built_is_ignored(encoder, tmp_path):
    """The names and shapes are those of dinov2_vits14_reg4_pretrain.pth."""
    state = dict(encoder.state_dict())
    for block in (10, 11):
        state |= {k.replace("blocks.9.", f"blocks.{block}."): v for k, v in state.items() if k.startswith("blocks.9.")}
    state |= {"norm.weight": torch.ones(384), "norm.bias": torch.zeros(384), "mask_token": torch.zeros(1, 384)}
    torch.save(state, tmp_path / "weights.pth")
    fresh = ViTEncoder(NAME)
    load_encoder_weights(fresh, NAME, str(tmp_path / "weights.pth"))
    assert all(torch.equal(v, state[k]) for k, v in fresh.state_dict().items())
    assert {"cls_token", "register_tokens", "patch_embed.proj.weight", "blocks.9.attn.qkv.bias"} <= set(state)
    assert state["pos_embed"].shape == (1, 1370, 384) and state["blocks.0.ls1.gamma"].shape == (384,)


def test_dinov2_weights_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_RDAD_WEIGHTS", str(tmp_path))
    (tmp_path / weights_module.DINOV2[NAME][0]).write_bytes(b"something else")
    with pytest.raises(ValueError, match="has SHA-256 .* expected f4331770"):
        load_encoder_weights(ViTEncoder(NAME), NAME, "dinov2")
    with pytest.raises(ValueError, match="No DINOv2 weights are known for encoder 'resnet18'"):
        load_encoder_weights(nn.Linear(1, 1), "resnet18", "dinov2")


def test_unknown_name():
    with pytest.raises(ValueError, match="Unknown encoder 'vit'"):
        ViTEncoder("vit")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_method_runs_on_the_transformer():
    torch.manual_seed(0)
    network = DNP(NAME, "none", blocks=2, precision="fp32")
    pairs = network.train()(torch.rand(2, 1, 28, 42))
    assert [t.shape for t in pairs.targets] == [p.shape for p in pairs.predictions] == [(2, 384, 2, 3)] * 2
    PrototypeLoss()(pairs).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.requires_grad)
    anomaly_map = AnomalyMap(network).eval()
    image = torch.rand(1, 3, 56, 28)
    with torch.no_grad():
        expected = anomaly_map(image)
        assert expected.shape == (1, 1, 56, 28)
        torch.testing.assert_close(torch.jit.script(anomaly_map)(image), expected, rtol=0, atol=1e-5)
