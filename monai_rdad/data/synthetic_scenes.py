# SPDX-License-Identifier: Apache-2.0
"""Procedural pictures with labels, on which a teacher is trained without any data.

A picture is a stack of leaves (dead leaves model: Ruderman, Vision Research 1997; Baradad et al., NeurIPS 2021) on a
background, each with a texture of its own class, or a composition that is a class itself. Then come the effects of an
acquisition. All is a function of integers (seed, epoch, step).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, one_hot, pad

from monai_rdad.data.synthetic_textures import Textures, log_uniform, pixel_grid, seeded, smooth_field, uniform

__all__ = ["IGNORED", "Scenes", "TextureScenes", "acquire", "corrupt"]

IGNORED = -100  # label of positions that more than one texture shares, the default of torch's cross-entropy


class Scenes(NamedTuple):
    """A batch of pictures.

    Args:
        image: in [0, 1], (B, 3, H, W).
        regions: one-hot, which leaf is on top (B, L, H, W).
        classes: texture class of each leaf (B, L).
        composition: class of the whole picture (B,), IGNORED where it has none.
    """

    image: Tensor
    regions: Tensor
    classes: Tensor
    composition: Tensor

    def labels(self, stride: int, purity: float = 0.6) -> Tensor:
        """Texture class per cell of ``stride`` pixels (B, H / stride, W / stride), IGNORED where none fills most."""
        share, top = avg_pool2d(self.regions, stride).max(1)
        label = self.classes.gather(1, top.flatten(1)).view_as(top)
        return torch.where(share >= purity, label, IGNORED)


class TextureScenes:
    """Generator of :class:`Scenes`.

    Args:
        classes: number of texture classes.
        size: edge of a picture in pixels.
        seed: of everything.
        pool: textures that are rendered per epoch; the pictures of an epoch show random sections of them.
        layers: leaves per picture, the background included.
        compositions: number of classes of whole pictures, see :meth:`composed`; 0 for none.
        device: where all is computed.

    Raises:
        ValueError: compositions that the pool has not all textures for.
    """

    def __init__(
        self,
        classes: int,
        size: int = 64,
        seed: int = 0,
        pool: int = 2048,
        layers: int = 5,
        compositions: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if compositions and pool < classes:
            raise ValueError(
                f"A pool of {pool} textures lacks some of the {classes} classes that compositions show: make it larger."
            )
        self.classes, self.size, self.seed, self.pool, self.layers = classes, size, seed, pool, layers
        self.compositions, self.device = compositions, torch.device(device)
        self.textures = Textures(classes, size * 3 // 2, seed, device)
        self._epoch = -1
        self._rendered = self._classes = torch.empty(0)
        self.y, self.x = pixel_grid(size, self.device)
        # of the compositions: two textures, and number, shape, edge and colour of the leaves
        g, n = seeded(seed, 7, device=self.device), compositions
        skins = torch.randint(classes, (n,), generator=g, device=self.device)
        self.skins = torch.stack([torch.arange(n, device=self.device) % classes, skins], 1)
        self.leaves = torch.randint(1, 6, (n,), generator=g, device=self.device)
        self.leaf_size = log_uniform(g, n, low=0.12, high=0.6)
        self.aspect = log_uniform(g, n, low=0.3, high=1.0)
        self.contour = torch.randn(n, 5, 2, generator=g, device=self.device)
        self.contour *= torch.relu(torch.randn(n, 1, 1, generator=g, device=self.device)) * 0.3
        self.contour /= torch.arange(2, 7, device=self.device).view(1, 5, 1) ** 0.5
        self.turn, self.turns_freely = uniform(g, n, high=2 * math.pi), uniform(g, n) > 0.6
        self.rim = torch.relu(uniform(g, n, low=-1.0, high=0.4)) * torch.where(uniform(g, n) < 0.5, -1.0, 1.0)
        self.soft = log_uniform(g, n, low=1.0, high=6.0)
        self.is_strip = uniform(g, n) > 0.75
        self.opacity = torch.where(uniform(g, n) < 0.25, 0.6, 1.0)
        self.coloured = (uniform(g, n) < 0.35).float()

    def start_epoch(self, epoch: int) -> None:
        """Renders the textures that this epoch's pictures show."""
        if epoch != self._epoch:
            g = seeded(self.seed, 1, epoch, device=self.device)
            self._classes = torch.randperm(max(self.pool, self.classes), generator=g, device=self.device)
            self._classes = self._classes[: self.pool] % self.classes
            self._rendered = torch.cat([self.textures.sample(c, g) for c in self._classes.split(256)])[:, None]
            self._epoch = epoch

    def _skins(self, chosen: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sections of rendered textures, turned, scaled and mirrored a little.

        Args:
            chosen: which of the pool (B, L).
            g: source of what is random.

        Returns:
            The sections, standardised, and the same with the level and contrast of their class, both (B, L, H, W).
        """
        b, count, n = *chosen.shape, self.size
        turn = torch.randn(b * count, generator=g, device=self.device) * 0.15
        scale = n / self.textures.edge * (torch.randn(b * count, generator=g, device=self.device) * 0.12).exp()
        mirror = torch.where(uniform(g, b * count) < 0.5, 1.0, -1.0)
        theta = torch.zeros(b * count, 2, 3, device=self.device)
        theta[:, 0, 0], theta[:, 0, 1] = mirror * scale * turn.cos(), -scale * turn.sin()
        theta[:, 1, 0], theta[:, 1, 1] = mirror * scale * turn.sin(), scale * turn.cos()
        theta[:, :, 2] = uniform(g, b * count, 2, low=-0.3, high=0.3)
        grid = affine_grid(theta, [b * count, 1, n, n], align_corners=False)
        skin = grid_sample(self._rendered[chosen.flatten()], grid, padding_mode="reflection", align_corners=False)
        skin = skin.view(b, count, n, n)
        classes = self._classes[chosen]
        noise = torch.randn(b, count, 2, 1, 1, generator=g, device=self.device)
        level = self.textures.level[classes].view(b, count, 1, 1) + 0.04 * noise[:, :, 0]
        contrast = self.textures.contrast[classes].view(b, count, 1, 1) * (0.15 * noise[:, :, 1]).exp()
        return skin, level + contrast * skin

    def _painted(self, classes: Tensor, skin: Tensor, grey: Tensor, coloured: Tensor) -> Tensor:
        """Grey leaves (B, H, W) of the given classes (B,) in colour (B, 3, H, W), where ``coloured`` (B, 1, 1, 1)."""
        base, slope = self.textures.colour[classes].unflatten(-1, (3, 1, 1)).unbind(1)
        return grey[:, None] + coloured * (base + slope * skin[:, None] * 0.3)

    def scenes(self, step: int, batch: int, epoch: int) -> Scenes:
        """Pictures of random leaves, before the acquisition.

        Args:
            step: number of the batch; the same step gives the same pictures.
            batch: number of pictures.
            epoch: whose textures are shown.
        """
        self.start_epoch(epoch)
        g = seeded(self.seed, 2, step, device=self.device)
        n, b, count = self.size, batch, self.layers
        chosen = torch.randint(self.pool, (b, count), generator=g, device=self.device)
        classes = self._classes[chosen]
        skin, grey = self._skins(chosen, g)
        coloured = (uniform(g, b, 1, 1, 1) < 0.3).float()
        shift = smooth_field(g, b, 2, 4, n) * 0.06
        xs, ys = self.x + shift[:, 0], self.y + shift[:, 1]
        image = self._painted(classes[:, 0], skin[:, 0], grey[:, 0], coloured)
        top = torch.zeros(b, n, n, dtype=torch.long, device=self.device)
        some = 1 + (count - 1) * uniform(g, b, 1, 1)  # number of leaves differs
        for i in range(1, count):
            soft = log_uniform(g, b, 1, 1, low=1.0, high=8.0) / n
            alpha = torch.sigmoid(leaf_outlines(g, b, xs, ys) / soft * 2) * (some > i)
            shown = alpha * torch.where(uniform(g, b, 1, 1) < 0.2, 0.6, 1.0)
            leaf = self._painted(classes[:, i], skin[:, i], grey[:, i], coloured)
            image = image + (leaf - image) * shown[:, None]
            rim = torch.relu(uniform(g, b, 1, 1, low=-1.0, high=0.3))
            rim = rim * torch.where(uniform(g, b, 1, 1) < 0.5, -1.0, 1.0)
            image = image + (4 * alpha * (1 - alpha) * rim)[:, None]
            top = torch.where(alpha > 0.5, i, top)
        regions = one_hot(top, count).permute(0, 3, 1, 2).float()
        return Scenes(image.clamp(0, 1), regions, classes, torch.full((b,), IGNORED, device=self.device))

    def composed(self, step: int, batch: int, epoch: int) -> Scenes:
        """Pictures that show a class of composition: leaves of one shape and texture on another texture.

        Args:
            step: number of the batch; the same step gives the same pictures.
            batch: number of pictures.
            epoch: whose textures are shown.
        """
        self.start_epoch(epoch)
        g, b, n = seeded(self.seed, 8, step, device=self.device), batch, self.size
        k = torch.randint(self.compositions, (b,), generator=g, device=self.device)
        place = torch.empty(self.classes, dtype=torch.long, device=self.device)
        place[self._classes] = torch.arange(self.pool, device=self.device)
        skin, grey = self._skins(place[self.skins[k]], g)
        shift = smooth_field(g, b, 2, 4, n) * 0.04
        xs, ys = self.x + shift[:, 0], self.y + shift[:, 1]
        count = self.leaves[k] + torch.randint(-1, 2, (b,), generator=g, device=self.device)
        field = self._composed_outlines(k, g, xs, ys)
        for i in range(1, 6):
            field = torch.where(
                (i < count).view(b, 1, 1), torch.maximum(field, self._composed_outlines(k, g, xs, ys)), field
            )
        alpha = torch.sigmoid(field * n / self.soft[k].view(b, 1, 1) * 2)[:, None]
        coloured = self.coloured[k].view(b, 1, 1, 1)
        image, leaf = (self._painted(self.skins[k, i], skin[:, i], grey[:, i], coloured) for i in range(2))
        image = image + (leaf - image) * alpha * self.opacity[k].view(b, 1, 1, 1)
        image = image + 4 * alpha * (1 - alpha) * self.rim[k].view(b, 1, 1, 1)
        regions = torch.cat([alpha <= 0.5, alpha > 0.5], 1).float()
        return Scenes(image.clamp(0, 1), regions, self.skins[k], k)

    def _composed_outlines(self, k: Tensor, g: torch.Generator, x: Tensor, y: Tensor) -> Tensor:
        """One leaf of each given composition, as :func:`leaf_outlines`."""
        b = len(k)
        free = 0.15 + 3 * self.turns_freely[k].float()
        turn = (self.turn[k] + torch.randn(b, generator=g, device=self.device) * free).view(b, 1, 1)
        cx, cy = uniform(g, 2, b, 1, 1, low=-0.9, high=0.9).unbind(0)
        size = (self.leaf_size[k] * (torch.randn(b, generator=g, device=self.device) * 0.15).exp()).view(b, 1, 1)
        aspect = self.aspect[k].view(b, 1, 1)
        u = (x - cx) * turn.cos() + (y - cy) * turn.sin()
        v = (y - cy) * turn.cos() - (x - cx) * turn.sin()
        contour = self.contour[k] + 0.03 * torch.randn(b, 5, 2, generator=g, device=self.device)
        blob = fourier_blob(u, v, size, aspect, contour)
        strip = torch.minimum(size * 0.15 - (v + contour[:, 0, :1, None] * 3 * u**2).abs(), 3 * size - u.abs())
        return torch.where(self.is_strip[k].view(b, 1, 1), strip, blob)


def fourier_blob(u: Tensor, v: Tensor, size: Tensor, aspect: Tensor, contour: Tensor) -> Tensor:
    """Signed distance-like function of a blob whose radius is a Fourier series of the angle, positive inside.

    Args:
        u: coordinates along the first axis (B, H, W).
        v: along the second one.
        size: mean radius (B, 1, 1).
        aspect: of the axes (B, 1, 1).
        contour: cosine and sine amplitudes of the second to the sixth harmonic, relative to the radius (B, 5, 2).
    """
    r = torch.hypot(u, v / aspect).clamp(min=1e-4)
    # powers of the unit vector give the harmonics without trigonometry
    re, im = u / r, v / aspect / r
    radius, zr, zi = torch.ones_like(r), re, im
    for k in range(contour.shape[1]):
        zr, zi = zr * re - zi * im, zr * im + zi * re
        radius = radius + contour[:, k, 0, None, None] * zr + contour[:, k, 1, None, None] * zi
    return size * radius - r


def leaf_outlines(g: torch.Generator, b: int, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance-like function of one random leaf per picture, positive inside (b, H, W)."""
    turn, pi = uniform(g, b, 1, 1, high=2 * math.pi), math.pi
    cx, cy = uniform(g, 2, b, 1, 1, low=-1.0, high=1.0).unbind(0)
    size = log_uniform(g, b, 1, 1, low=0.1, high=1.0)
    aspect = log_uniform(g, b, 1, 1, low=0.4, high=1.0)
    u = (x - cx) * turn.cos() + (y - cy) * turn.sin()
    v = (y - cy) * turn.cos() - (x - cx) * turn.sin()
    rough = torch.relu(torch.randn(b, 1, 1, generator=g, device=g.device)) * 0.25
    harmonics = []
    for k in range(2, 7):
        a = torch.randn(b, 1, 1, generator=g, device=g.device) * rough / k**0.5
        p = uniform(g, b, 1, 1, high=2 * pi)
        harmonics.append(torch.cat([a * p.cos(), -a * p.sin()], -1))
    blob = fourier_blob(u, v, size, aspect, torch.cat(harmonics, 1))
    strip = size * 0.12 - (v + 0.5 * (uniform(g, b, 1, 1) - 0.5) * u**2).abs()
    strip = torch.minimum(strip, 3 * size - u.abs())
    half = v
    kind = uniform(g, b, 1, 1)
    return torch.where(kind < 0.65, blob, torch.where(kind < 0.85, strip, half))


def corrupt(image: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the pictures with one part replaced.

    The part shows another picture, the same one moved, smoothed, or brighter or darker.

    Args:
        image: (B, 3, H, W) in [0, 1].
        g: source of what is random.

    Returns:
        The pictures and where they were changed, 0 to 1 (B, 1, H, W).
    """
    b, n = len(image), image.shape[-1]
    y, x = pixel_grid(n, g.device)
    shift = smooth_field(g, b, 2, 4, n) * 0.06
    mask = torch.sigmoid(leaf_outlines(g, b, x + shift[:, 0], y + shift[:, 1]) * n / 3)[:, None]
    mask = mask * (uniform(g, b, 1, 1, 1) < 0.5)
    kind = torch.randint(4, (b, 1, 1, 1), generator=g, device=g.device)
    step = int(torch.randint(n // 8, n // 2, (1,), generator=g, device=g.device))
    smooth = avg_pool2d(pad(image, (2, 2, 2, 2), mode="replicate"), 5, 1)
    gain = log_uniform(g, b, 1, 1, 1, low=0.6, high=1.7) * image + uniform(g, b, 1, 1, 1, low=-0.15, high=0.15)
    other = torch.where(kind == 0, image.roll(1, 0), torch.where(kind == 1, image.roll((step, -step), (2, 3)), gain))
    other = torch.where(kind == 2, smooth, other)
    return (image + (other - image) * mask * uniform(g, b, 1, 1, 1, low=0.4, high=1.0)).clamp(0, 1), mask


def acquire(image: Tensor, g: torch.Generator, strength: float = 1.0) -> Tensor:
    """Effects of an acquisition: bias field, gamma, blur, noise, speckle, gain and offset.

    Args:
        image: (B, 3, H, W) in [0, 1].
        g: source of what is random.
        strength: 0 for none.

    Returns:
        The pictures as they would be recorded, in [0, 1].
    """
    b, n = len(image), image.shape[-1]

    def draw(rate: float) -> Tensor:
        return (uniform(g, b, 1, 1, 1) < rate).float() * strength

    image = image * torch.exp(smooth_field(g, b, 1, 2, n) * 0.15 * draw(0.5))
    image = image.clamp(1e-3, 1) ** torch.exp(torch.randn(b, 1, 1, 1, generator=g, device=g.device) * 0.2 * strength)
    # a blur of weights (w, 1 - 2 w, w) along both axes, once or twice
    w = uniform(g, b, 1, 1, 1, low=0.0, high=0.33) * draw(0.5)
    for _ in range(2):
        p = pad(image, (1, 1, 0, 0), mode="replicate")
        image = w * (p[..., :-2] + p[..., 2:]) + (1 - 2 * w) * image
        p = pad(image, (0, 0, 1, 1), mode="replicate")
        image = w * (p[..., :-2, :] + p[..., 2:, :]) + (1 - 2 * w) * image
    noise = torch.randn(b, 1, n, n, generator=g, device=g.device)
    image = image + noise * log_uniform(g, b, 1, 1, 1, low=0.004, high=0.08) * draw(0.7)
    noise = torch.randn(b, 1, n, n, generator=g, device=g.device)
    image = image * (1 + noise * log_uniform(g, b, 1, 1, 1, low=0.03, high=0.35) * draw(0.3))
    gain = (torch.randn(b, 2, 1, 1, 1, generator=g, device=g.device) * 0.06 * strength).unbind(1)
    return (image * (1 + gain[0]) + gain[1]).clamp(0, 1)
