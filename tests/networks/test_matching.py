# SPDX-License-Identifier: Apache-2.0
"""Matching of query positions to support positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_rdad.losses import cosine_distance
from monai_rdad.networks.blocks.matching import align, nearest, search, unit


def by_hand(query, support, window):
    """The most similar vector of each support in the window, position by position."""
    b, c, h, w = query.shape
    out = torch.empty(b, support.shape[1], c, h, w)
    for i in range(b):
        for k in range(support.shape[1]):
            for y in range(h):
                for x in range(w):
                    rows = slice(max(0, y - window), y + window + 1)
                    columns = slice(max(0, x - window), x + window + 1)
                    patch = support[i % len(support), k, :, rows, columns].flatten(1)
                    best = torch.nn.functional.cosine_similarity(patch, query[i, :, y, x, None], dim=0).argmax()
                    out[i, k, :, y, x] = patch[:, best]
    return out


@settings(max_examples=15, deadline=None)
@given(
    window=st.integers(1, 6), h=st.integers(1, 5), w=st.integers(1, 5), k=st.integers(1, 3), shared=st.booleans(),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_align_is_the_search_by_hand(window, h, w, k, shared, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 4, h, w, generator=generator)
    support = torch.randn(1 if shared else 2, k, 4, h, w, generator=generator)
    found = align(query, support, window).expand(2, -1, -1, -1, -1)
    torch.testing.assert_close(found, by_hand(query, support, window))


def test_window_zero_is_the_same_pixel():
    support = torch.randn(2, 3, 4, 5, 6)
    assert align(torch.randn(2, 4, 5, 6), support, 0) is support


@pytest.mark.parametrize(("window", "found"), [(1, False), (2, True), (50, True)])
def test_a_window_that_is_large_enough_finds_a_shifted_copy(window, found):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 8, 12, 12, generator=generator)
    support = torch.roll(query, (2, -2), (2, 3))[:, None]
    distance = cosine_distance(align(query, support, window)[:, 0], query, per_position=True)[:, 2:-2, 2:-2]
    assert (distance.max() < 1e-5) == found


def test_gradient_reaches_the_chosen_vectors():
    query = torch.randn(1, 4, 3, 3)
    support = torch.randn(1, 2, 4, 3, 3, requires_grad=True)
    align(query, support, 1).sum().backward()
    # every position chose one vector of each support, so the counts add up
    assert support.grad.sum() == 2 * 4 * 9 and support.grad.min() >= 0


@pytest.mark.parametrize("window", [0, 1, -1])
@pytest.mark.parametrize("shared", [True, False])
def test_nearest_is_the_smallest_distance(window, shared):
    query, support = torch.randn(3, 4, 5, 6), torch.randn(1 if shared else 3, 6, 4, 5, 6)
    aligned = align(query, support, window).expand(3, -1, -1, -1, -1)
    distances = torch.stack([cosine_distance(aligned[:, k], query, per_position=True) for k in range(6)], 1)
    found = nearest(query, support, window)
    torch.testing.assert_close(cosine_distance(found, query, per_position=True), distances.amin(1))


def test_everywhere_is_the_largest_window():
    query, support = torch.randn(2, 4, 5, 7), torch.randn(2, 3, 4, 5, 7)
    torch.testing.assert_close(align(query, support, -1), by_hand(query, support, 7))


def test_search_tells_the_similarity_of_what_it_finds():
    query, support = torch.randn(2, 4, 5, 6), torch.randn(1, 3, 4, 5, 6)
    for window in (0, 2, -1):
        similarity, position = search(query, support, window)
        vectors = support.flatten(3).expand(2, -1, -1, -1).gather(3, position[:, :, None].expand(-1, -1, 4, -1))
        cosine = torch.nn.functional.cosine_similarity(vectors, query.flatten(2)[:, None], dim=2)
        torch.testing.assert_close(similarity, cosine)


def test_unit_keeps_zero_vectors():
    x = torch.stack([torch.zeros(3), torch.tensor([3.0, 0.0, 4.0])])
    torch.testing.assert_close(unit(x, [1]), torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.8]]))
