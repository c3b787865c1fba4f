# SPDX-License-Identifier: Apache-2.0
"""Analytic heads and lesions, from which :mod:`monai_rdad.data.phantoms` makes pictures.

A subject is a set of analytic structures (scalp, skull, folded cortex, white matter, deep nuclei, ventricles) in head
coordinates, deformed by a smooth random field. Any set of points can be rendered, so that a 2D slice and a 3D volume
are samples of the same kind of head. Lesions are analytic as well, therefore their masks are exact.

Head coordinates: x to the patient's left, y posterior, z superior; one unit is 120 mm, the origin is the middle of the
head. A slice has y along its rows and x along its columns (the radiological view: nose up, the patient's left on the
right-hand side of the picture).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LESION_KINDS", "Array", "Head", "Lesion", "Mask", "Points", "common_shape"]

Array = NDArray[np.float32]
Mask = NDArray[np.uint8]
Points = Sequence[Array]  # x, y, z, of shapes that broadcast to the picture's

LESION_KINDS = ("oedema", "cyst", "haemorrhage", "ring")
LESION_RADIUS = (0.09, 0.155)

# Left half of the brain (x > 0); the right half is its mirror image, and each side gets its own random variation.
_VENTRICLE = np.array(
    [[0.13, -0.30, 0.04], [0.08, -0.16, 0.14], [0.07, 0.02, 0.22], [0.14, 0.20, 0.15], [0.18, 0.38, 0.02]], np.float32
)
_VENTRICLE_RADII = np.array([0.034, 0.050, 0.042, 0.050, 0.022], np.float32)
_SYLVIAN = np.array([[0.60, -0.20, -0.05], [0.45, -0.12, -0.02], [0.37, 0.02, 0.00], [0.38, 0.14, 0.06]], np.float32)
_SYLVIAN_RADII = np.array([0.030, 0.016, 0.010, 0.008], np.float32)
_NUCLEI = (  # centre and half axes of thalamus, putamen, caudate nucleus
    ((0.095, 0.075, 0.02), (0.062, 0.105, 0.075)),
    ((0.235, -0.055, 0.00), (0.045, 0.125, 0.085)),
    ((0.125, -0.215, 0.03), (0.035, 0.070, 0.080)),
)


def _dot(a: Points, b: Points) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def common_shape(points: Points) -> tuple[int, ...]:
    """Shape of the picture that belongs to the points."""
    return np.broadcast_shapes(*(p.shape for p in points))


def _ellipsoid(points: Points, centre: Array, axes: Array) -> Array:
    """Approximate depth below the surface of an ellipsoid, positive inside."""
    scaled = [(p - c) / a for p, c, a in zip(points, centre, axes, strict=True)]
    steep = [s / a for s, a in zip(scaled, axes, strict=True)]
    k0 = np.sqrt(_dot(scaled, scaled))
    depth: Array = k0 * (1 - k0) / np.maximum(np.sqrt(_dot(steep, steep)), 1e-3)
    return depth


def _tube(points: Points, nodes: Array, radii: Array) -> Array:
    """Distance to a chain of capsules with nodes (N, 3) and radii (N,), negative inside."""
    distance = np.full(common_shape(points), np.inf, np.float32)
    for start, end, r0, r1 in zip(nodes[:-1], nodes[1:], radii[:-1], radii[1:], strict=True):
        axis = end - start
        relative = [p - s for p, s in zip(points, start, strict=True)]
        along = np.clip(_dot(relative, axis) / np.dot(axis, axis), 0, 1)
        offset = [r - along * a for r, a in zip(relative, axis, strict=True)]
        np.minimum(distance, np.sqrt(_dot(offset, offset)) - (r0 + along * (r1 - r0)), out=distance)
    return distance


def _inside(depth: Array, width: float) -> Array:
    """Soft membership in [0, 1] of what has a positive depth; ``width`` is the breadth of the edge."""
    return np.clip(depth * np.float32(1 / width) + np.float32(0.5), 0, 1)


def _jitter(rng: np.random.Generator, value: Any, relative: float) -> Array:
    base = np.asarray(value, np.float32)
    return np.asarray(base * rng.uniform(1 - relative, 1 + relative, base.shape), np.float32)


def _uniform(rng: np.random.Generator, low: float, high: float) -> np.float32:
    return np.float32(rng.uniform(low, high))


@dataclass(frozen=True)
class _Waves:
    """Smooth random field of unit variance: a sum of plane waves of random direction, wavelength and phase."""

    vectors: Array
    phases: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, shortest: float, longest: float) -> _Waves:
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        vectors = direction * 2 * np.pi / rng.uniform(shortest, longest, (count, 1))
        return cls(vectors.astype(np.float32), rng.uniform(0, 2 * np.pi, count).astype(np.float32))

    def __call__(self, points: Points) -> Array:
        total = np.zeros(common_shape(points), np.float32)
        for vector, phase in zip(self.vectors, self.phases, strict=True):
            total += np.cos(_dot(points, vector) + phase)
        return total * np.float32(np.sqrt(2 / len(self.phases)))

    @property
    def slope(self) -> np.float32:
        """Root mean square of the field's derivative along one direction."""
        return np.float32(np.sqrt(np.mean(self.vectors**2)))


class Head:
    """One subject: anatomy, tissue contrast and scanner settings, all drawn from ``rng``."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.axes = _jitter(rng, (0.66, 0.81, 0.90), 0.06)
        self.scalp, self.skull = _jitter(rng, 0.050, 0.15), _jitter(rng, 0.055, 0.12)
        self.gap, self.sulcus = _jitter(rng, 0.014, 0.25), _jitter(rng, 0.008, 0.25)
        self.cortex = _jitter(rng, 0.032, 0.1)
        self.angles = rng.normal(0, (0.02, 0.015, 0.08))  # about x, y, z; radians
        self.shift = rng.normal(0, (0.035, 0.025, 0.0)).astype(np.float32)
        self.zoom = _uniform(rng, 0.93, 1.06)
        self.warp = [_Waves.draw(rng, 8, 1.0, 2.4) for _ in range(3)]
        self.warp_size = _uniform(rng, 0.012, 0.022)
        self.folds = _Waves.draw(rng, 40, 0.19, 0.24)
        self.fold_depth = _jitter(rng, 0.19, 0.15)
        self.midline = _Waves.draw(rng, 6, 0.3, 0.9)
        self.callosum = _jitter(rng, (0.30, 0.36, 0.20), 0.08)
        swell = rng.uniform(0.85, 1.25)
        self.ventricles, self.sylvian, self.nuclei = [], [], []
        for side in np.array([[1, 1, 1], [-1, 1, 1]], np.float32):
            nodes = (_VENTRICLE + rng.normal(0, 0.007, _VENTRICLE.shape)) * (0.85 + 0.15 * swell, 1, 1) * side
            self.ventricles.append((nodes.astype(np.float32), _jitter(rng, _VENTRICLE_RADII * swell, 0.15)))
            self.sylvian.append((_SYLVIAN + rng.normal(0, 0.012, _SYLVIAN.shape)).astype(np.float32) * side)
            for centre, axes in _NUCLEI:
                moved = (np.array(centre) + rng.normal(0, 0.008, 3)) * side
                self.nuclei.append((moved.astype(np.float32), _jitter(rng, axes, 0.12)))
        self.white = _uniform(rng, 0.35, 0.39)
        self.grey = self.white * _uniform(rng, 0.74, 0.80)
        self.nucleus = self.grey + (self.white - self.grey) * _uniform(rng, 0.4, 0.65)
        self.fluid, self.bone = _uniform(rng, 0.06, 0.11), _uniform(rng, 0.05, 0.10)
        self.fat, self.marrow = _uniform(rng, 0.84, 0.97), _uniform(rng, 0.20, 0.35)
        self.texture = _Waves.draw(rng, 16, 0.10, 0.35)
        self.bias, self.bias_size = _Waves.draw(rng, 5, 1.6, 4.0), _uniform(rng, 0.02, 0.05)
        self.gamma = _uniform(rng, 0.93, 1.07)
        self.blur = rng.uniform(0.003, 0.006)  # standard deviation in head units
        self.noise = _uniform(rng, 0.012, 0.025)

    def place(self, points: Points) -> Points:
        """Scanner coordinates -> this subject's head coordinates: pose, then smooth deformation."""
        (sx, sy, sz), (cx, cy, cz) = np.sin(self.angles), np.cos(self.angles)
        turn = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]) @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        turn = (turn @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) / self.zoom).astype(np.float32)
        moved = [p - s for p, s in zip(points, self.shift, strict=True)]
        posed = [_dot(row, moved) for row in turn]
        return [p + self.warp_size * waves(posed) for p, waves in zip(posed, self.warp, strict=True)]

    def depth(self, points: Points) -> Array:
        """Distance below the brain's convex surface, positive inside."""
        return _ellipsoid(points, np.zeros(3, np.float32), self.axes) - (self.scalp + self.skull + self.gap)

    def to_ventricle(self, points: Points) -> Array:
        """Distance to the lateral ventricles, negative inside."""
        return np.minimum(*(_tube(points, *ventricle) for ventricle in self.ventricles))

    def pial(self, points: Points, depth: Array) -> Array:
        """Distance into the brain tissue from the nearest fluid outside: surface, sulci or fissures."""
        # Sulci are the zeros of a random field that is stretched along the radius, so that they run inwards.
        scaled = [p / a for p, a in zip(points, self.axes, strict=True)]
        radius = np.maximum(np.sqrt(_dot(scaled, scaled)), 0.3)
        stretch = np.asarray((0.5 + 0.5 * radius) / radius, np.float32)
        wall = np.abs(self.folds([p * stretch for p in points])) / self.folds.slope - self.sulcus
        pial = np.minimum(depth, wall + 1.2 * np.maximum(depth - self.fold_depth, 0))
        fissure = np.abs(points[0] + 0.006 * self.midline([np.zeros_like(points[0]), *points[1:]])) - 0.010
        bridge = _ellipsoid(points, np.array([0, 0, 0.02], np.float32), self.callosum)  # it crosses the fissure
        pial = np.minimum(pial, np.maximum(fissure, bridge))
        return np.minimum.reduce([pial, *(_tube(points, nodes, _SYLVIAN_RADII) for nodes in self.sylvian)])

    def render(self, points: Points, edge: float) -> tuple[Array, Array]:
        """Noise-free intensities in [0, 1], and the depth in the brain; ``edge`` is the breadth of borders."""
        depth = self.depth(points)
        pial = self.pial(points, depth)
        bone = depth + self.gap + self.skull
        image = self.fat * _inside(bone + self.scalp, edge)
        layers: list[tuple[Any, Array, float]] = [
            (self.bone, bone, edge),
            (self.marrow, 0.2 * self.skull - np.abs(bone - 0.5 * self.skull), edge),
            (self.fluid, depth + self.gap, edge),
            (self.grey, pial, edge),
            (self.white * (1 + 0.012 * self.texture(points)), pial - self.cortex, edge),
            *((self.nucleus, _ellipsoid(points, centre, axes), 2 * edge) for centre, axes in self.nuclei),
            (self.fluid, -self.to_ventricle(points), edge),
        ]
        for value, inner, width in layers:
            image += (value - image) * _inside(inner, width)
        return image, depth


class Lesion:
    """One focal lesion around a random place of the brain among ``points``; all drawn from ``rng``."""

    def __init__(self, rng: np.random.Generator, head: Head, points: Points) -> None:
        self.kind = LESION_KINDS[rng.integers(len(LESION_KINDS))]
        self.radius = float(np.exp(rng.uniform(*np.log(LESION_RADIUS))))
        self.axes = (self.radius * np.exp(rng.normal(0, 0.12, 3))).astype(np.float32)
        # Away from the skull and, less strictly, from the ventricles. The best place left where none has enough room.
        room = np.minimum(head.depth(points) - 0.03, 0.6 * (head.to_ventricle(points) + 0.04)).ravel()
        place = rng.choice(np.flatnonzero(room >= min(0.6 * self.radius, room.max())))
        self.centre = np.array([p.ravel()[place] for p in points], np.float32)
        self.outline = _Waves.draw(rng, 24, 0.9 * self.radius, 2.5 * self.radius)
        self.roughness = 0.08 if self.kind == "cyst" else 0.16
        self.grain = _Waves.draw(rng, 30, 0.08, 0.2)
        self.strength = _uniform(rng, 0.75, 1.0)
        self.push = _uniform(rng, 0.2, 0.35) if self.kind == "ring" else _uniform(rng, 0.0, 0.2)

    def displace(self, points: Points) -> Points:
        """Mass effect: the tissue around the lesion is pushed outwards."""
        relative = [p - c for p, c in zip(points, self.centre, strict=True)]
        pull = 1 - self.push * np.exp(_dot(relative, relative) / (-2 * (1.4 * self.radius) ** 2))
        return [c + r * pull for c, r in zip(self.centre, relative, strict=True)]

    def paint(self, image: Array, points: Points, depth: Array, head: Head, edge: float) -> tuple[Array, Mask]:
        """The picture with the lesion, and the mask of what can be seen of it."""
        scaled = [(p - c) / a for p, c, a in zip(points, self.centre, self.axes, strict=True)]
        inner = self.radius * (1 - np.sqrt(_dot(scaled, scaled)) + self.roughness * self.outline(points))
        outer = inner + 0.2 * self.radius  # reach of the halo
        grain = self.grain(points)
        white = head.white
        bright = white + self.strength * (np.float32(0.98) - white)
        dark = white - self.strength * (white - np.float32(0.04))
        seen = inner if self.kind == "haemorrhage" else outer
        coats: list[tuple[Any, Array, float]]  # value, depth in what it covers, breadth of the edge
        if self.kind == "oedema":
            core = (0.8 * bright + 0.2 * white) * (1 + 0.03 * grain)
            coats = [(0.4 * bright + 0.6 * white, outer, 0.05), (core, inner - 0.015, 0.03)]
        elif self.kind == "cyst":
            coats = [(0.7 * bright + 0.3 * white, outer, 0.05), (dark * (1 + 0.05 * grain), inner - 0.02, 0.02)]
        elif self.kind == "haemorrhage":
            blood = 0.5 * (bright + dark) + 0.5 * (bright - dark) * np.tanh(1.5 * grain + 0.5)
            coats = [(blood, inner, 0.02)]
        else:
            rim = max(0.4 * self.radius, 0.05)
            coats = [(0.6 * white + 0.4 * dark, outer, 0.06), (bright, inner, 1.5 * edge)]
            coats.append((dark * (1 + 0.05 * grain), inner - rim, 0.02))
        for value, cover, width in coats:
            image = image + (value - image) * (_inside(cover, width) * _inside(depth - 0.01, 2 * edge))
        return image, ((seen > 0) & (depth > 0.01)).astype(np.uint8)
