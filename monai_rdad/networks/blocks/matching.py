# SPDX-License-Identifier: Apache-2.0
"""Supports looked up position by position, as few-shot methods do it."""

# No postponed annotations: the functions of this file are compiled by TorchScript.
from typing import List, Tuple  # noqa: UP035

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["align", "nearest", "search", "unit"]


def unit(x: Tensor, dims: List[int]) -> Tensor:  # noqa: UP006
    """The vectors along ``dims`` at unit length, in float32; a zero vector stays zero."""
    x = x.float()
    return x * torch.rsqrt((x * x).sum(dims, keepdim=True).clamp_min(1e-12))


def search(query: Tensor, support: Tensor, window: int) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """The most similar (cosine) vector of each support for each position of a query.

    Everywhere, a support is one matrix product. Within a window, a row of the query is compared with whole rows of the
    supports, one product for each of the 2 ``window`` + 1 rows around it, so memory does not grow with the window.

    Args:
        query: (B, C, H, W).
        support: (B, K, C, H, W), or (1, K, C, H, W) for supports that all queries share.
        window: reach in positions; 0 for the same position, negative for everywhere.

    Returns:
        Similarity and position (row times W plus column) of the best match, each (B, K, H * W).
    """
    b, c, h, w = query.shape
    k = support.shape[1]
    shared = support.shape[0]
    queries, supports = unit(query.detach(), [1]), unit(support.detach(), [2])
    if window == 0:
        return (queries[:, None] * supports).sum(2).flatten(2), torch.arange(h * w, device=query.device).expand(
            b, k, -1
        )
    queries = queries.view(shared, b // shared, c, h, w)
    if window < 0 or window >= max(h, w) - 1:
        columns = queries.permute(0, 1, 3, 4, 2).reshape(shared, b // shared * h * w, c)
        nearest = [(columns @ supports[:, i].flatten(2)).view(b, h * w, h * w).max(2) for i in range(k)]
        return torch.stack([f[0] for f in nearest], 1), torch.stack([f[1] for f in nearest], 1)
    # rows of all supports side by side: a query's row times a slice of them is one product without copies
    rows = F.pad(supports, [0, 0, window, window]).permute(0, 3, 2, 1, 4).flatten(3)
    rows = rows.contiguous()  # (B or 1, H + 2 window, C, K * W)
    queries = queries.permute(0, 3, 1, 4, 2).flatten(2, 3)
    x = torch.arange(w, device=query.device)
    y = torch.arange(h, device=query.device)
    far = ((x[:, None] - x[None]).abs() > window)[:, None]  # (W, 1, W)
    best = torch.full((shared, h, b // shared, w, k), -3.0, device=query.device)
    position = torch.zeros(best.shape, dtype=torch.long, device=query.device)
    for dy in range(-window, window + 1):
        product = queries @ rows[:, dy + window : dy + window + h]
        found, column = product.view(shared, h, b // shared, w, k, w).masked_fill(far, -2.0).max(5)
        row = (y + dy)[:, None, None, None]
        better = (found > best) & (row >= 0) & (row < h)
        best = torch.where(better, found, best)
        position = torch.where(better, row * w + column, position)
    best = best.permute(0, 2, 4, 1, 3).reshape(b, k, h * w)
    return best, position.permute(0, 2, 4, 1, 3).reshape(b, k, h * w)


def align(query: Tensor, support: Tensor, window: int) -> Tensor:
    """Moves to each query position the most similar vector of each support.

    The choice has no gradient, the chosen vectors keep theirs.

    Args:
        query: (B, C, H, W).
        support: (B or 1, K, C, H, W).
        window: as in :func:`search`; 0 returns ``support`` as it is.

    Returns:
        (B or 1, K, C, H, W), the type of ``support``.
    """
    if window == 0:
        return support
    b, c, h, w = query.shape
    k = support.shape[1]
    position = search(query, support, window)[1]
    values = support.flatten(3).expand(b, k, c, h * w)
    return values.gather(3, position[:, :, None].expand(b, k, c, h * w)).view(b, k, c, h, w)


def nearest(query: Tensor, support: Tensor, window: int) -> Tensor:
    """Moves to each query position the most similar vector of all supports.

    The choice has no gradient, the chosen vectors keep theirs.

    Args:
        query: (B, C, H, W).
        support: (B or 1, K, C, H, W).
        window: as in :func:`search`.

    Returns:
        (B, C, H, W), the type of ``support``.
    """
    b, c, h, w = query.shape
    similarity, position = search(query, support, window)
    which = similarity.argmax(1, keepdim=True)
    index = which * (h * w) + position.gather(1, which)  # (B, 1, H * W) into K * H * W
    values = support.transpose(1, 2).flatten(2).expand(b, c, -1)
    return values.gather(2, index.expand(b, c, h * w)).view(b, c, h, w)
