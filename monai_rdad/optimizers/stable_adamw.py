# SPDX-License-Identifier: Apache-2.0
"""AdamW whose steps are limited per tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["StableAdamW"]


class StableAdamW(Optimizer):
    r"""AdamW with the update clipping of AdaFactor (Wortsman et al., NeurIPS 2023, arXiv 2304.13013, algorithm 2).

    Where a tensor's gradient g suddenly exceeds what its second moment v remembers, plain AdamW takes too large a step.
    Here the learning rate of each tensor, also for its weight decay, is divided by
    :math:`\max(1, RMS / clip)` with :math:`RMS = \sqrt{mean(g^2 / v)}`, all moments corrected for their bias.

    Args:
        params: parameters or groups, all on one device.
        lr: learning rate.
        betas: decay rates of the moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, as in AdamW.
        amsgrad: divide by the largest second moment so far.
        clip: RMS above which a step is shortened.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        clip: float = 1.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} is {value}, it must not be negative.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}, they must lie in [0, 1).")
        if clip <= 0:
            raise ValueError(f"clip is {clip}, it must be above 0.")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"amsgrad": amsgrad, "clip": clip})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the loss if a closure gives one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step(group, params)
        return loss

    def _step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state["step"] = 0
                for name in ("exp_avg", "exp_avg_sq") + ("max_exp_avg_sq",) * group["amsgrad"]:
                    state[name] = torch.zeros_like(p)
            state["step"] += 1
        grads = [p.grad for p in params if p.grad is not None]
        means = [s["exp_avg"] for s in states]
        squares = [s["exp_avg_sq"] for s in states]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        if group["amsgrad"]:
            largest = [s["max_exp_avg_sq"] for s in states]
            torch._foreach_maximum_(largest, squares)
            squares = largest
        # the corrections of bias are one number per tensor: as factors of the small tensors they cost no pass
        unbias1 = [1 - beta1 ** s["step"] for s in states]
        unbias2 = [(1 - beta2 ** s["step"]) ** 0.5 for s in states]
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, [group["eps"] * factor for factor in unbias2])
        norms = torch._foreach_norm(list(torch._foreach_div(grads, list(roots))))
        device = params[0].device
        factors = torch.tensor(unbias2, device=device)
        rms = torch.stack(norms) * factors / torch.tensor([p.numel() ** 0.5 for p in params], device=device)
        rates = group["lr"] / (rms / group["clip"]).clamp_min(1)
        updates = torch._foreach_div(means, roots)
        torch._foreach_mul_(updates, list((rates * factors / torch.tensor(unbias1, device=device)).unbind()))
        if group["weight_decay"]:
            torch._foreach_mul_(params, list((1 - rates * group["weight_decay"]).unbind()))
        torch._foreach_sub_(params, updates)
