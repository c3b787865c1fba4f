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

    A row of the query is compared with the 2 ``window`` + 1 rows around it as one matrix product; memory grows with the
    window's edge, not with its area. The choice has no gradient, the chosen vectors keep theirs.

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
    edge = 2 * reach + 1
    rows = F.pad(unit(support.detach(), 2), [0, 0, reach, reach]).unfold(3, edge, 1)  # (B, K, C, H, W, edge)
    rows = rows.permute(0, 1, 3, 2, 5, 4).reshape(support.shape[0], k, h, c, edge * w)
    similarity = unit(query.detach(), 1).permute(0, 2, 3, 1)[:, None] @ rows  # (B, K, H, W, edge * W)
    x = torch.arange(w, device=query.device)
    y = torch.arange(h, device=query.device)
    row = y[:, None] + torch.arange(-reach, reach + 1, device=query.device)[None]  # (H, edge)
    inside = ((row >= 0) & (row < h))[:, None, :, None] & ((x[:, None] - x[None]).abs() <= reach)[None, :, None]
    best = similarity.masked_fill(~inside.reshape(h, w, edge * w), -2.0).argmax(4)
    position = (y[:, None] + torch.div(best, w, rounding_mode="floor") - reach) * w + best % w
    values = support.flatten(3).expand(b, k, c, h * w)
    return values.gather(3, position.flatten(2)[:, :, None].expand(b, k, c, h * w)).view(b, k, c, h, w)


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
