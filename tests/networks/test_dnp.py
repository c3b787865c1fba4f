# SPDX-License-Identifier: Apache-2.0
"""What is particular to DNP: prototypes that everything passes through, and a teacher that follows."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_rdad.losses import PrototypeLoss
from monai_rdad.networks.blocks import PrototypeAttention, PrototypeDecoder, PrototypeExtractor
from monai_rdad.networks.nets import DNP, image_divisor


def build(**options) -> DNP:
    torch.manual_seed(0)
    return DNP(**{"encoder": "resnet18", "weights": "none", "blocks": 2, "precision": "fp32"} | options)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_attention_weights_are_non_negative_and_without_a_forced_sum(seed):
    torch.manual_seed(seed)
    attention = PrototypeAttention(24, 3)
    tokens, prototypes = torch.randn(2, 7, 24), torch.randn(2, 4, 24)
    weights = attention.weights(tokens, prototypes)
    assert weights.shape == (2, 3, 7, 4) and (weights >= 0).all()
    # cosines: the length of a token plays no part
    attention.q.bias.data.zero_()
    torch.testing.assert_close(attention.weights(5 * tokens, prototypes), attention.weights(tokens, prototypes))


def test_a_token_unlike_every_prototype_gets_nothing():
    attention = PrototypeAttention(8, 1)
    for layer in (attention.q, attention.k):
        layer.weight.data.copy_(torch.eye(8))
        layer.bias.data.zero_()
    prototypes = torch.rand(1, 3, 8)
    assert not attention.weights(-prototypes, prototypes).diagonal(dim1=2, dim2=3).any()
    torch.testing.assert_close(
        attention.weights(prototypes, prototypes)[0, 0].diagonal(), torch.ones(3), rtol=0, atol=1e-5
    )


def test_the_decoder_has_no_way_around_the_prototypes():
    """With prototypes whose values are nought, all tokens come out alike: no residual carries them past."""
    torch.manual_seed(0)
    decoder = PrototypeDecoder(24, 3, 2)
    for block in decoder.blocks:
        block.attention.v.weight.data.zero_()
        block.attention.v.bias.data.zero_()
    outputs = decoder(torch.randn(1, 9, 24), torch.randn(1, 4, 24))
    for output in outputs:
        torch.testing.assert_close(output, output[:, :1].expand_as(output))


def test_prototypes_do_not_depend_on_the_order_of_tokens_but_on_the_tokens():
    torch.manual_seed(0)
    extractor = PrototypeExtractor(24, 4, 3)
    tokens = torch.randn(2, 9, 24)
    prototypes = extractor(tokens)
    torch.testing.assert_close(extractor(tokens[:, torch.randperm(9)]), prototypes, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(prototypes[0], prototypes[1], atol=1e-3)


def test_groups_pair_the_last_half_of_the_decoder_with_the_shallow_stages():
    network = build().eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        before = network(image)
        for block in network.decoder.blocks[1:]:
            for parameter in block.parameters():
                parameter.mul_(1.5).add_(0.1)
        after = network(image)
    assert torch.equal(before.predictions[1], after.predictions[1])
    assert not torch.allclose(before.predictions[0], after.predictions[0])


def test_levels_have_unit_size_and_weigh_alike():
    network = build()
    with torch.no_grad():
        levels = network.teacher(torch.rand(2, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [(2, 64, 4, 6), (2, 128, 4, 6), (2, 256, 4, 6)]
    for level in levels:
        torch.testing.assert_close(level.square().mean(1), torch.ones(2, 4, 6), rtol=1e-3, atol=1e-3)


def _train(network: DNP, steps: int, lr: float = 1e-2) -> None:
    optimizer = torch.optim.SGD(network.parameter_groups(lr, lr))
    for i in range(steps):
        optimizer.zero_grad()
        image = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(i))
        PrototypeLoss()(network.train()(image)).backward()
        optimizer.step()
        network.update_teacher()


def test_the_teacher_is_the_moving_average_of_the_encoder():
    network = build(momentum=0.9)
    expected = {n: p.clone() for n, p in network.teacher.named_parameters()}
    for _ in range(3):
        with torch.no_grad():
            for p in network.encoder.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        network.update_teacher()
        for n, p in network.encoder.named_parameters():
            expected[n] = 0.9 * expected[n] + 0.1 * p.detach()
    for n, p in network.teacher.named_parameters():
        torch.testing.assert_close(p.detach(), expected[n], rtol=1e-5, atol=1e-6)


def test_trainable_mode_compares_with_the_encoder_itself_and_frozen_mode_has_one():
    trainable = build(encoder_mode="trainable")
    start = copy.deepcopy(trainable.teacher)
    _train(trainable, 2)
    for a, b, c in zip(trainable.teacher.parameters(), trainable.encoder.parameters(), start.parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    frozen = build(encoder_mode="frozen")
    assert frozen.encoder is None and frozen.parameter_groups(1e-3, 1e-5)[1]["params"] == []
    start = copy.deepcopy(frozen.teacher.state_dict())
    _train(frozen, 2)
    assert all(torch.equal(v, start[k]) for k, v in frozen.teacher.state_dict().items())


def test_batch_norms_keep_their_statistics_in_every_mode():
    for mode in DNP.MODES:
        network = build(encoder_mode=mode)
        before = [b.clone() for m in (network.encoder, network.teacher) if m is not None for b in m.buffers()]
        _train(network, 1)
        after = [b for m in (network.encoder, network.teacher) if m is not None for b in m.buffers()]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_groups_of_parameters_are_all_and_each_once():
    network = build()
    new, encoder = network.parameter_groups(1e-3, 1e-5)
    ids = [id(p) for group in (new, encoder) for p in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in network.parameters() if p.requires_grad}
    assert {id(p) for p in encoder["params"]} == {id(p) for p in network.encoder.parameters()}
    assert (new["lr"], encoder["lr"]) == (1e-3, 1e-5)


def test_every_prototype_gets_a_gradient():
    network = build()
    PrototypeLoss()(network.train()(torch.rand(2, 1, 64, 64))).backward()
    assert (network.extractor.queries.grad.abs().sum(2) > 0).all()


def test_bad_settings_are_named():
    for options, message in (
        ({"encoder": "vit_huge"}, "Unknown encoder 'vit_huge'"),
        ({"encoder_mode": "ema"}, "Unknown encoder_mode 'ema'"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"blocks": 3}, "3 blocks"),
        ({"prototypes": 1}, "prototypes is 1"),
        ({"precision": "fp8"}, "Unknown precision"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)
    assert image_divisor("resnet18") == 32 and image_divisor("vit_small_dinov2_reg4") == 14
