# SPDX-License-Identifier: Apache-2.0
"""Whitening by the differences of matched features."""

from __future__ import annotations

import torch

from monai_rdad.networks.blocks.whitening import Whitening


def maps(rows):
    """Rows (n, C) as maps (n, C, 1, 1)."""
    return rows[:, :, None, None]


def draw(n, generator):
    """Pairs of unit vectors that differ much along the second axis and little along the others."""
    base = torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1)
    noise = torch.randn(n, 6, generator=generator) * torch.tensor([0.01, 0.5, 0.01, 0.01, 0.01, 0.01])
    return base, torch.nn.functional.normalize(base + noise, dim=1)


def test_moment_is_that_of_all_differences_of_unit_vectors():
    a, b = draw(50, torch.Generator().manual_seed(0))
    whiten = Whitening(6)
    for part in (slice(0, 7), slice(7, 30), slice(30, 50)):
        whiten.update(maps(3 * a[part]), maps(0.5 * b[part]))  # lengths do not matter
    torch.testing.assert_close(whiten.moment, (a - b).T @ (a - b) / 50)


def test_output_divides_by_the_regularised_moment():
    a, b = draw(200, torch.Generator().manual_seed(1))
    whiten = Whitening(6, shrinkage=0.2)
    whiten.update(maps(a), maps(b))
    whiten.eval()
    moment = (a - b).T @ (a - b) / 200
    metric = torch.linalg.inv(moment + (0.2 * moment.diagonal().mean() + 1e-6) * torch.eye(6))
    x, y = (whiten(maps(v))[:, :, 0, 0] for v in (a, b))
    torch.testing.assert_close(x @ y.T, a @ metric @ b.T, rtol=1e-3, atol=1e-3)


def test_what_differs_among_normals_counts_less():
    generator = torch.Generator().manual_seed(2)
    a, b = draw(500, generator)
    whiten = Whitening(6)
    whiten.update(maps(a), maps(b))
    whiten.eval()
    start = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    along = start + torch.tensor([[0.0, 0.4, 0.0, 0.0, 0.0, 0.0]])
    across = start + torch.tensor([[0.4, 0.0, 0.0, 0.0, 0.0, 0.0]])

    def cosine(u, v):
        return float(torch.cosine_similarity(whiten(maps(u)).flatten(), whiten(maps(v)).flatten(), dim=0))

    assert cosine(start, along) > 0.98 and cosine(start, across) < 0.94  # both 0.93 before


def test_matrix_is_made_anew_when_a_state_is_loaded():
    a, b = draw(100, torch.Generator().manual_seed(3))
    whiten = Whitening(6)
    whiten.update(maps(a), maps(b))
    whiten.eval()
    other = Whitening(6).eval()
    other.load_state_dict(whiten.state_dict())
    torch.testing.assert_close(other(maps(a)), whiten(maps(a)))
