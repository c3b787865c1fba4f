# SPDX-License-Identifier: Apache-2.0
"""Procedural textures: classes that are points in the parameters of a few generators.

In the spirit of formula-driven supervision (Kataoka et al., ACCV 2020). All is computed in batches by torch, on any
device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

__all__ = ["KINDS", "Textures", "log_uniform", "pixel_grid", "seeded", "smooth_field", "standardise", "uniform"]

KINDS = ("spectral", "layered", "cells", "waves", "fractal")
FRACTAL_POINTS = 2048


def seeded(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose state is a function of integers; different tuples give unrelated streams."""
    state = 0
    for number in numbers:
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
        state ^= state >> 29
    return torch.Generator(device).manual_seed(state)


def uniform(g: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers on the generator's device."""
    return torch.rand(*shape, generator=g, device=g.device) * (high - low) + low


def log_uniform(g: torch.Generator, *shape: int, low: float, high: float) -> Tensor:
    """Numbers whose logarithm is uniform."""
    return uniform(g, *shape, low=math.log(low), high=math.log(high)).exp()


def smooth_field(g: torch.Generator, batch: int, channels: int, cells: int, size: int) -> Tensor:
    """Smooth random fields (batch, channels, size, size), about unit variance, ``cells`` features across."""
    coarse = torch.randn(batch, channels, cells + 2, cells + 2, generator=g, device=g.device)
    return interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)


def pixel_grid(edge: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of a square's pixel centres, the square being -1 to 1, each (edge, edge)."""
    axis = (torch.arange(edge, device=device) + 0.5) / edge * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return y, x


def standardise(x: Tensor) -> Tensor:
    """Zero mean and unit variance per picture (B, H, W)."""
    x = x - x.mean((1, 2), keepdim=True)
    return x / (x.square().mean((1, 2), keepdim=True).sqrt() + 1e-6)


class Textures:
    """Classes of texture, each a point in the parameters of one of five generators, and samples of them.

    Args:
        classes: number of classes.
        edge: of a sample in pixels; a class has the same number of periods in it whatever the edge.
        seed: of the classes.
        device: where all is computed.
    """

    def __init__(self, classes: int, edge: int = 96, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.classes, self.edge, self.seed, self.device = classes, edge, seed, torch.device(device)
        g = seeded(seed, 0, device=self.device)
        self.kind = torch.randint(len(KINDS), (classes,), generator=g, device=self.device)
        # three spectral fields per class: two textures and a mask that joins them
        self.slope = uniform(g, classes, 3, low=0.3, high=2.2)
        self.band = log_uniform(g, classes, 3, low=2.0, high=28.0)
        self.band_width = uniform(g, classes, 3, low=0.12, high=1.2)
        self.angle = uniform(g, classes, 3, high=math.pi)
        self.directed = torch.relu(torch.randn(classes, 3, generator=g, device=self.device)) * 2.5
        # of the curve that grey values go through: weights of its five parts, and their parameters
        self.curve = torch.randn(classes, 2, 5, generator=g, device=self.device) ** 3
        self.curve_k = uniform(g, classes, 2, low=1.0, high=5.0)
        self.curve_t = uniform(g, classes, 2, low=-1.2, high=1.2)
        self.joint = torch.stack([log_uniform(g, classes, low=1.0, high=12.0), uniform(g, classes, low=-1, high=1)], 1)
        self.cells = torch.randint(2, 15, (classes,), generator=g, device=self.device)
        self.jitter = uniform(g, classes, low=0.1, high=1.0)
        self.power = uniform(g, classes, 3, low=-1.0, high=1.0)
        self.wave = torch.stack(
            [
                log_uniform(g, classes, low=1.5, high=24.0),
                torch.randint(0, 9, (classes,), generator=g, device=self.device),
            ],
            1,
        )
        self.wave2 = log_uniform(g, classes, low=1.5, high=24.0)
        self.warp = uniform(g, classes, low=-0.05, high=0.12).clamp(min=0)
        self.warp_cells = torch.randint(2, 9, (classes,), generator=g, device=self.device)
        self.level = uniform(g, classes, low=0.05, high=0.9)
        self.contrast = log_uniform(g, classes, low=0.03, high=0.35)
        self.colour = uniform(g, classes, 2, 3, low=-0.25, high=0.25)
        # iterated function systems of four contractions: singular values are at most 0.85
        maps = uniform(g, classes, 4, 6, low=-1.0, high=1.0)
        norm = torch.linalg.matrix_norm(maps[..., :4].view(classes, 4, 2, 2), 2)[..., None]
        self.maps = torch.cat(
            [maps[..., :4] / norm * uniform(g, classes, 4, 1, low=0.35, high=0.85), maps[..., 4:]], -1
        )
        self.y, self.x = pixel_grid(self.edge, self.device)

    def _spectral(self, c: Tensor, field: int, g: torch.Generator) -> Tensor:
        """Random phase under the class's spectral envelope, with a little jitter of angle and scale (B, E, E)."""
        n, b = self.edge, len(c)
        fy = torch.fft.fftfreq(n, 1 / n, device=self.device)[:, None]
        fx = torch.fft.rfftfreq(n, 1 / n, device=self.device)[None]
        r = torch.sqrt(fy**2 + fx**2).clamp(min=1.0)
        logr, twice = r.log(), 2 * torch.atan2(fy, fx)
        band, width, slope, directed, angle = (
            t[c, field].view(b, 1, 1) for t in (self.band, self.band_width, self.slope, self.directed, self.angle)
        )
        scale = (torch.randn(b, 1, 1, generator=g, device=self.device) * 0.08).exp()
        turn = torch.randn(b, 1, 1, generator=g, device=self.device) * 0.15
        level = torch.exp(-((logr - (band * scale).log()) ** 2) / (2 * width**2))
        level = (level + 0.03) * torch.exp(-slope * logr * 0.7)
        level = level * torch.exp(directed * (torch.cos(twice - 2 * (angle + turn)) - 1))
        phase = torch.randn(b, n, n // 2 + 1, 2, generator=g, device=self.device)
        spectrum = torch.view_as_complex(phase) * level
        spectrum[:, 0, 0] = 0
        return standardise(torch.fft.irfft2(spectrum, s=(n, n)))

    def _curved(self, c: Tensor, which: int, f: Tensor) -> Tensor:
        """Grey values through the class's curve: a mixture of line, ridges, bands, step and spots."""
        w = self.curve[c, which]
        w = (w / w.abs().sum(1, keepdim=True)).view(len(c), 5, 1, 1)
        k, t = self.curve_k[c, which].view(-1, 1, 1), self.curve_t[c, which].view(-1, 1, 1)
        parts = (f, (f - t).abs(), torch.sin(k * f), torch.tanh(2 * k * (f - t)), torch.exp((f - 1.5).clamp(max=2)))
        return standardise(sum(w[:, i] * p for i, p in enumerate(parts)))  # type: ignore[arg-type]

    def _layered(self, c: Tensor, g: torch.Generator) -> Tensor:
        first = self._curved(c, 0, self._spectral(c, 0, g))
        second = self._curved(c, 1, self._spectral(c, 1, g)) + self.power[c, 0].view(-1, 1, 1)
        sharp, at = self.joint[c].view(-1, 2, 1, 1).unbind(1)
        mask = torch.sigmoid(sharp * (self._spectral(c, 2, g) - at))
        return first + (second - first) * mask

    def _cellular(self, c: Tensor, g: torch.Generator) -> Tensor:
        """Distances to the nearest and second nearest point of a jittered lattice (Worley, SIGGRAPH 1996)."""
        b, n = len(c), self.edge
        cells = self.cells[c].view(b, 1, 1)
        most = int(self.cells.max()) + 2
        offset = uniform(g, b, most * most, 2, low=-0.5, high=0.5) * self.jitter[c].view(b, 1, 1) + 0.5
        tone = torch.randn(b, most * most, generator=g, device=self.device)
        stretch = 1 + 0.6 * self.power[c, 1].view(b, 1, 1)
        px = (self.x * 0.5 + 0.5) * cells
        py = (self.y * 0.5 + 0.5) * cells / stretch
        ix, iy = px.floor(), py.floor()
        near = torch.full((b, n, n), 9.0, device=self.device)
        second, grey = near.clone(), torch.zeros_like(near)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                # lattice points wrap around, which a clamp would smear
                at = ((iy + dy) % most * most + (ix + dx) % most).long().flatten(1)
                o = offset.gather(1, at[..., None].expand(-1, -1, 2)).view(b, n, n, 2)
                d = torch.hypot(ix + dx + o[..., 0] - px, iy + dy + o[..., 1] - py)
                closer = d < near
                second = torch.where(closer, near, torch.minimum(second, d))
                grey = torch.where(closer, tone.gather(1, at).view(b, n, n), grey)
                near = torch.minimum(near, d)
        w = self.curve[c, 0].view(b, 5, 1, 1)
        w = w / w.abs().sum(1, keepdim=True)
        rim = torch.exp(-(((second - near) * 6) ** 2))
        sharp = torch.tanh(8 * (0.35 - near))
        return standardise(
            w[:, 0] * near * 3 + w[:, 1] * grey + w[:, 2] * rim * 3 + w[:, 3] * sharp + w[:, 4] * grey * near
        )

    def _waves(self, c: Tensor, g: torch.Generator) -> Tensor:
        """Gratings, rings, rosettes and their products."""
        b = len(c)
        centre = uniform(g, b, 2, 1, 1, low=-0.7, high=0.7)
        turn = self.angle[c].view(b, 3, 1, 1) + torch.randn(b, 1, 1, 1, generator=g, device=self.device) * 0.15
        x, y = self.x - centre[:, 0], self.y - centre[:, 1]
        u = x * turn[:, 0].cos() + y * turn[:, 0].sin()
        v = x * turn[:, 1].cos() + y * turn[:, 1].sin()
        r, theta = torch.hypot(x, y), torch.atan2(y, x)
        phase = uniform(g, b, 2, 1, 1, high=2 * math.pi)
        f1 = self.wave[c, 0].view(b, 1, 1) * math.pi / 2
        f2 = self.wave2[c].view(b, 1, 1) * math.pi / 2
        radial = self.power[c, 0].view(b, 1, 1) > 0
        first = torch.where(radial, f1 * r + self.wave[c, 1].view(b, 1, 1) * theta, f1 * u)
        a, o = torch.sin(first + phase[:, 0]), torch.sin(f2 * v + phase[:, 1])
        mix = self.power[c, 1:].view(b, 2, 1, 1)
        return self._curved(c, 0, standardise(a + mix[:, 0] * o + 2 * mix[:, 1] * a * o))

    def _fractal(self, c: Tensor, g: torch.Generator) -> Tensor:
        """Attractors of iterated function systems by the chaos game, many short orbits at once."""
        b, n = len(c), self.edge
        p = torch.zeros(b, FRACTAL_POINTS, 2, device=self.device)
        maps = self.maps[c] * (1 + 0.05 * torch.randn(b, 4, 6, generator=g, device=self.device))
        grids = torch.zeros(b, n * n, device=self.device)
        rows = torch.arange(b, device=self.device)[:, None]
        for step in range(14):
            choice = torch.randint(4, (b, FRACTAL_POINTS), generator=g, device=self.device)
            m = maps[rows, choice]
            p = torch.stack(
                [
                    m[..., 0] * p[..., 0] + m[..., 1] * p[..., 1] + m[..., 4],
                    m[..., 2] * p[..., 0] + m[..., 3] * p[..., 1] + m[..., 5],
                ],
                -1,
            )
            if step == 5:
                low, high = p.amin(1, keepdim=True), p.amax(1, keepdim=True)
                zoom = uniform(g, b, 1, 1, low=0.9, high=1.6)
            if step >= 6:
                q = ((p - low) / (high - low + 1e-3) - 0.5) * zoom * n + n / 2
                inside = ((q >= 0) & (q < n)).all(-1)
                at = q.long().clamp(0, n - 1)
                grids.scatter_add_(1, at[..., 1] * n + at[..., 0], inside.float())
        density = torch.log1p(grids.view(b, n, n))
        soft = avg_pool2d(density[:, None], 3, 1, 1)[:, 0]
        return standardise(torch.where(self.power[c, 0].view(b, 1, 1) > 0, density * 0.5 + soft, soft))

    def sample(self, c: Tensor, g: torch.Generator) -> Tensor:
        """One sample of each given class (B,), zero mean and unit variance (B, edge, edge)."""
        makers = (
            lambda c, g: self._curved(c, 0, self._spectral(c, 0, g)),
            self._layered,
            self._cellular,
            self._waves,
            self._fractal,
        )
        out = torch.empty(len(c), self.edge, self.edge, device=self.device)
        for kind, make in enumerate(makers):
            at = (self.kind[c] == kind).nonzero()[:, 0]
            for part in at.split(128) if len(at) else ():  # an empty tensor has one part, which FFTs refuse
                out[part] = make(c[part], g)
        b = len(c)
        warp = torch.stack([smooth_field(g, b, 2, cells, self.edge) for cells in (2, 5)])
        pick = (self.warp_cells[c] > 4).long()
        shift = warp[pick, torch.arange(b, device=self.device)] * self.warp[c].view(b, 1, 1, 1) * 0.5
        grid = torch.stack([self.x, self.y], -1) + shift.permute(0, 2, 3, 1)
        out = grid_sample(out[:, None], grid, padding_mode="reflection", align_corners=False)[:, 0]
        return standardise(out).clamp(-3.5, 3.5)
