# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import pickle
import urllib.error
import urllib.request

import pytest
import torch
from safetensors.torch import save_file

from monai_rdad.networks.encoders import FrozenEncoder, ResNetEncoder, load_encoder_weights
from monai_rdad.networks.encoders import weights as module


@pytest.fixture
def state():
    torch.manual_seed(1)
    return {k: v.clone() for k, v in ResNetEncoder("resnet18", stages=4).state_dict().items()}


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("MONAI_RDAD_WEIGHTS", raising=False)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_path_loads_every_built_stage_and_ignores_the_rest(tmp_path, state, suffix):
    path = tmp_path / f"weights{suffix}"
    state = state | {"fc.weight": torch.zeros(3, 3)}
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    encoder = FrozenEncoder("resnet18", stages=3)
    load_encoder_weights(encoder, "resnet18", str(path))
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())


def test_files_without_batch_counters_load(tmp_path, state):
    path = tmp_path / "old.pth"
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    load_encoder_weights(FrozenEncoder("resnet18"), "resnet18", str(path))


def test_missing_tensor_is_an_error(tmp_path, state):
    del state["layer3.1.bn2.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="lacks layer3.1.bn2.weight"):
        load_encoder_weights(FrozenEncoder("resnet18"), "resnet18", str(tmp_path / "w.pth"))


def test_weights_of_another_encoder_are_an_error(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not fit encoder 'resnet50'"):
        load_encoder_weights(FrozenEncoder("resnet50"), "resnet50", str(tmp_path / "w.pth"))


def test_unknown_name_is_an_error():
    with pytest.raises(FileNotFoundError, match="'imagenette' are neither a known name"):
        load_encoder_weights(FrozenEncoder("resnet18"), "resnet18", "imagenette")


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    with open(tmp_path / "w.pth", "wb") as file:
        pickle.dump({"conv1.weight": Evil()}, file)
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        load_encoder_weights(FrozenEncoder("resnet18"), "resnet18", str(tmp_path / "w.pth"))
    assert not (tmp_path / "owned").exists()


def test_a_file_without_tensors_is_an_error(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_encoder_weights(FrozenEncoder("resnet18"), "resnet18", str(tmp_path / "w.pth"))


def test_wrong_hash_in_the_weights_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_RDAD_WEIGHTS", str(tmp_path))
    (tmp_path / "resnet18-f37072fd.pth").write_bytes(b"truncated")
    with pytest.raises(ValueError, match="has SHA-256 .* expected f37072fd.*delete it"):
        load_encoder_weights(FrozenEncoder("resnet18"), "resnet18", "imagenet")


def test_wrong_hash_of_a_path_named_like_torchvisions(tmp_path, state):
    torch.save(state, tmp_path / "mine-00000000.pth")
    with pytest.raises(ValueError, match="expected 00000000"):
        load_encoder_weights(FrozenEncoder("resnet18"), "resnet18", str(tmp_path / "mine-00000000.pth"))


def test_the_weights_folder_is_used_without_a_network(tmp_path, monkeypatch, state):
    monkeypatch.setenv("MONAI_RDAD_WEIGHTS", str(tmp_path))
    torch.save(state, tmp_path / "file.pth")
    digest = hashlib.sha256((tmp_path / "file.pth").read_bytes()).hexdigest()
    monkeypatch.setitem(module.IMAGENET, "resnet18", ("file.pth", digest))
    encoder = FrozenEncoder("resnet18")
    load_encoder_weights(encoder, "resnet18", "imagenet")
    assert torch.equal(encoder.conv1.weight, state["conv1.weight"])


def test_no_network_says_url_hash_and_place_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(RuntimeError, match=r"https://.*resnet18-f37072fd.pth \(SHA-256 f37072fd.*MONAI_RDAD_WEIGHTS"):
        load_encoder_weights(FrozenEncoder("resnet18"), "resnet18", "imagenet")
    assert not [p for p in (tmp_path / "hub").rglob("*") if p.is_file()]
