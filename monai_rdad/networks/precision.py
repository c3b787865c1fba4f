# SPDX-License-Identifier: Apache-2.0
"""bfloat16 where the hardware multiplies it faster than float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch

__all__ = ["PRECISIONS", "full_precision", "mixed_precision", "supports_bfloat16"]

PRECISIONS = ("auto", "bf16", "fp32")


@lru_cache
def supports_bfloat16(device_type: str) -> bool:
    """Whether matrix products in bfloat16 run in hardware on this kind of device ("cpu" or "cuda")."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def mixed_precision(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context in which a network computes its features.

    MONAI's ``amp`` option autocasts on CUDA only, so the networks do it themselves. bfloat16 keeps the range of
    float32 and needs no loss scaling; parameters, gradients and optimizer states stay float32.

    Args:
        device: of the input.
        precision: "bf16", "fp32", or "auto": bf16 where the hardware has it.
    """
    if _is_exporting():
        return nullcontext()
    enabled = precision == "bf16" or (precision == "auto" and supports_bfloat16(device.type))
    # no cache: a network uses each weight once per forward, and copies kept until its end would only take memory
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Context in which float32 stays float32, also inside :func:`mixed_precision`."""
    # the meta device knows no autocast
    if device.type == "meta" or _is_exporting():
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _is_exporting() -> bool:
    """Whether a graph is being recorded, which shall not depend on the machine that exports it: float32 throughout."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()
