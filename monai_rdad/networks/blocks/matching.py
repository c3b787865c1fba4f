# SPDX-License-Identifier: Apache-2.0
"""Supports looked up position by position, as few-shot methods do it."""

# No postponed annotations: the functions of this file are compiled by TorchScript.
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["align", "nearest", "unit"]


def unit(x: Tensor, dim: int) -> Tensor:
    """The vectors along ``dim`` at unit length, in float32; a zero vector stays zero."""
    x = x.float()
    return x * torch.rsqrt((x * x).sum(dim, keepdim=True).clamp_min(1e-12))


def align(query: Tensor, support: Tensor, window: int) -> Tensor:
    """Moves to each query position the most similar (cosine) vector of each support from a window around it.

    A row of the query is compared with whole rows of the supports, one matrix product for each of the
    2 ``window`` + 1 rows around it, so memory does not grow with the window. The choice has no gradient, the chosen
    vectors keep theirs.

    Args:
        query: (B, C, H, W).
        support: (B, K, C, H, W), or (1, K, C, H, W) for supports that all queries share.
        window: reach in positions; 0 compares at the same position and returns ``support`` as it is.

    Returns:
        (B or 1, K, C, H, W), the type of ``support``.
    """
    reach = min(window, max(query.shape[2], query.shape[3]) - 1)
    if reach <= 0:
        return support
    b, c, h, w = query.shape
    k = support.shape[1]
    shared = support.shape[0]
    # rows of all supports side by side: a query's row times a slice of them is one product without copies
    rows = F.pad(unit(support.detach(), 2), [0, 0, reach, reach]).permute(0, 3, 2, 1, 4).flatten(3)
    rows = rows.contiguous()  # (B or 1, H + 2 reach, C, K * W)
    queries = unit(query.detach(), 1).view(shared, b // shared, c, h, w).permute(0, 3, 1, 4, 2).flatten(2, 3)
    x = torch.arange(w, device=query.device)
    y = torch.arange(h, device=query.device)
    far = ((x[:, None] - x[None]).abs() > reach)[:, None]  # (W, 1, W)
    best = torch.full((shared, h, b // shared, w, k), -3.0, device=query.device)
    position = torch.zeros(best.shape, dtype=torch.long, device=query.device)
    for dy in range(-reach, reach + 1):
        product = queries @ rows[:, dy + reach : dy + reach + h]
        found, column = product.view(shared, h, b // shared, w, k, w).masked_fill(far, -2.0).max(5)
        row = (y + dy)[:, None, None, None]
        better = (found > best) & (row >= 0) & (row < h)
        best = torch.where(better, found, best)
        position = torch.where(better, row * w + column, position)
    position = position.permute(0, 2, 4, 1, 3).reshape(b, k, h * w)
    values = support.flatten(3).expand(b, k, c, h * w)
    return values.gather(3, position[:, :, None].expand(b, k, c, h * w)).view(b, k, c, h, w)


def nearest(query: Tensor, support: Tensor) -> Tensor:
    """At each position the vector of that support which is most similar (cosine) to the query's.

    Args:
        query: (B, C, H, W).
        support: (B or 1, K, C, H, W).

    Returns:
        (B, C, H, W).
    """
    best = (unit(query.detach(), 1)[:, None] * unit(support.detach(), 2)).sum(2, keepdim=True).argmax(1, keepdim=True)
    b, c, h, w = query.shape
    return support.expand(b, support.shape[1], c, h, w).gather(1, best.expand(b, 1, c, h, w))[:, 0]
