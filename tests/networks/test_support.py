# SPDX-License-Identifier: Apache-2.0
"""The support file: what it keeps, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from monai_rdad.inferers import AnomalyMap
from monai_rdad.networks.nets import D24FAD
from monai_rdad.networks.support import load_support, save_support, weights_hash

NAMES = {"a.png": "1" * 64, "b.png": "2" * 64, "c.png": "3" * 64}


def build(seed=0, **options):
    torch.manual_seed(seed)
    return D24FAD("resnet18", "none", start="bottleneck", precision="fp32", **options).eval()


@pytest.fixture
def saved(tmp_path):
    network = build()
    network.set_support(torch.rand(3, 1, 64, 96, generator=torch.Generator().manual_seed(0)))
    return network, save_support(tmp_path / "support.safetensors", network, NAMES)


def test_round_trip(saved):
    network, path = saved
    other = build()
    content = load_support(path, other)
    assert content["images"] == NAMES and list(content["images"]) == list(NAMES)
    assert content["shots"] == 3 and content["image_size"] == [64, 96]
    assert content["weights_sha256"] == weights_hash(network)
    image = torch.rand(2, 1, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(AnomalyMap(other)(image), AnomalyMap(network)(image), rtol=0, atol=1e-5)


def test_supports_of_other_weights_are_refused_and_forgotten(saved):
    other = build(seed=1)
    with pytest.raises(ValueError, match="computed with other weights"):
        load_support(saved[1], other)
    with pytest.raises(ValueError, match="no supports"):
        other(torch.rand(1, 1, 64, 96))


def test_supports_given_first_are_compared_with_the_weights_that_follow(saved):
    network, path = saved
    other = build(seed=1, support=path)
    other.load_state_dict(network.state_dict())
    image = torch.rand(1, 1, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(AnomalyMap(other)(image), AnomalyMap(network)(image), rtol=0, atol=1e-5)
    inside = AnomalyMap(build(seed=1, support=path))
    with pytest.raises(ValueError, match="computed with other weights"):
        inside.load_state_dict(build(seed=2).state_dict())


def test_what_does_not_fit_is_named(saved, tmp_path):
    _, path = saved
    with pytest.raises(FileNotFoundError, match="no support file"):
        load_support(tmp_path / "gone.safetensors", build())
    with pytest.raises(ValueError, match="compare 'student', the network has 'teacher'"):
        load_support(path, build(compare="teacher"))
    with pytest.raises(ValueError, match="another setting of 'pooled'"):
        load_support(path, build(pooled=True))
    (tmp_path / "broken.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as a support file"):
        load_support(tmp_path / "broken.safetensors", build())
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="no support file of this package"):
        load_support(tmp_path / "weights.safetensors", build())
    unweighted = build(weighting="nearest")
    unweighted.set_support(torch.rand(2, 1, 64, 64))
    plain = save_support(tmp_path / "plain.safetensors", unweighted, dict(list(NAMES.items())[:2]))
    with pytest.raises(ValueError, match="without learned weights"):
        load_support(plain, build())


def test_saving_needs_supports_and_their_names(saved, tmp_path):
    with pytest.raises(ValueError, match="0 supports"):
        save_support(tmp_path / "x.safetensors", build(), NAMES)
    with pytest.raises(ValueError, match="3 supports, 2 images"):
        save_support(tmp_path / "x.safetensors", saved[0], dict(list(NAMES.items())[:2]))
    assert not (tmp_path / "x.safetensors").exists()


def test_hash_changes_with_any_value(saved):
    network, _ = saved
    before = weights_hash(network)
    with torch.no_grad():
        network.keys[2].bias[0] += 1e-6
    assert weights_hash(network) != before
