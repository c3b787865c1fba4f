# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from monai_rdad.optimizers import CosineDecay, StableAdamW


def _steps(make, gradients, start):
    parameters = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = make(parameters)
    for gradient in gradients:
        for p, g in zip(parameters, gradient, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return [p.detach() for p in parameters]


def _case(steps=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    start = [torch.randn(3, 4, generator=g), torch.randn(5, generator=g)]
    return [[torch.randn(p.shape, generator=g) for p in start] for _ in range(steps)], start


@pytest.mark.parametrize("amsgrad", [False, True])
def test_without_clipping_it_is_adamw(amsgrad):
    gradients, start = _case()
    options = {"lr": 0.01, "weight_decay": 0.1, "amsgrad": amsgrad}
    expected = _steps(lambda p: torch.optim.AdamW(p, **options), gradients, start)
    actual = _steps(lambda p: StableAdamW(p, clip=1e9, **options), gradients, start)
    # weight decay before or after the step: equal up to lr ** 2
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-4)
    options["weight_decay"] = 0.0
    expected = _steps(lambda p: torch.optim.AdamW(p, **options), gradients, start)
    actual = _steps(lambda p: StableAdamW(p, clip=1e9, **options), gradients, start)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_equals_a_computation_by_hand(amsgrad):
    gradients, start = _case()
    gradients[4] = [50 * gradients[4][0], gradients[4][1]]  # one tensor's gradient jumps, the other's does not
    gradients[5] = [0.01 * gradients[5][0], gradients[5][1]]
    lr, wd, b1, b2, eps = 0.01, 0.1, 0.9, 0.999, 1e-8
    expected = []
    shortened = []
    for k, p in enumerate(start):
        p, m, v, largest = p.double(), 0.0, 0.0, torch.zeros_like(p).double()
        for t, gradient in enumerate(gradients, 1):
            g = gradient[k].double()
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            largest = torch.maximum(largest, v)
            root = ((largest if amsgrad else v) / (1 - b2**t)).sqrt() + eps
            rms = (g / root).square().mean().sqrt().item()
            rate = lr / max(1.0, rms)
            shortened.append(rms > 1.5)
            p = p - rate * (m / (1 - b1**t) / root + wd * p)
        expected.append(p.float())
    assert any(shortened)
    actual = _steps(lambda p: StableAdamW(p, lr=lr, weight_decay=wd, amsgrad=amsgrad), gradients, start)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_jump_in_one_tensor_leaves_the_others_alone():
    gradients, start = _case()
    plain = _steps(lambda p: StableAdamW(p, lr=0.01), gradients, start)
    gradients[5] = [1000 * gradients[5][0], gradients[5][1]]
    jumped = _steps(lambda p: StableAdamW(p, lr=0.01), gradients, start)
    assert torch.equal(plain[1], jumped[1]) and not torch.equal(plain[0], jumped[0])


def test_state_survives_a_file(tmp_path):
    gradients, start = _case()
    straight = _steps(lambda p: StableAdamW(p, amsgrad=True), gradients, start)
    parameters = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = StableAdamW([{"params": parameters, "lr": 1e-3}, {"params": [], "lr": 1.0}], amsgrad=True)
    for i, gradient in enumerate(gradients):
        if i == 3:
            torch.save(optimizer.state_dict(), tmp_path / "state.pt")
            optimizer = StableAdamW([{"params": parameters}, {"params": []}], amsgrad=True)
            optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for p, g in zip(parameters, gradient, strict=True):
            p.grad = g.clone()
        optimizer.step()
    assert all(torch.equal(a, b.detach()) for a, b in zip(straight, parameters, strict=True))


def test_bad_values_are_named():
    p = [torch.nn.Parameter(torch.zeros(1))]
    for options, message in (({"lr": -1}, "lr"), ({"betas": (0.9, 1.0)}, "betas"), ({"clip": 0}, "clip")):
        with pytest.raises(ValueError, match=message):
            StableAdamW(p, **options)


def test_cosine_decay_ends_and_stays():
    p, q = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [p], "lr": 1e-3}, {"params": [q], "lr": 1e-5}])
    schedule = CosineDecay(optimizer, steps=10, end_lr=1e-5)
    rates = []
    for _ in range(15):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates[0] == [1e-3, 1e-5] and rates[5][0] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[3][0] == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(0.3 * math.pi)))
    assert [r[0] for r in rates[10:]] == [1e-5] * 5 and {r[1] for r in rates} == {1e-5}
    with pytest.raises(ValueError, match="steps is 0"):
        CosineDecay(optimizer, steps=0)
