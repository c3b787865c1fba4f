# SPDX-License-Identifier: Apache-2.0
"""Three-dimensional OpenSimplex noise and its fractal sum, vectorised over points.

The noise is K. Spencer's OpenSimplex (2014, public domain), which AnoDDPM and, after it, SCRD4AD (arXiv 2503.13828)
paste onto images. It is a sum over the points of a face-centred cubic lattice: a lattice point at displacement d adds
``max(0, 2 - |d|^2)^4 * <gradient, d> / 103``, its gradient being one of 24 vectors, picked by hashing the lattice point
with a permutation table.

The usual implementations walk, point by point, through nested cases to find the lattice points in reach. Here there
are no cases: the lattice consists of four cubic lattices of spacing 2 (one with all coordinates even, and its shifts by
(0,1,1), (1,0,1) and (1,1,0)), and of each at most two points lie within sqrt(2) of any given point: the nearest one,
and that one's neighbour along the axis of the largest displacement. So the noise is a sum of 4 x 2 terms, and each of
them is evaluated for all points at once. The nested cases overlook a few lattice points at the rim of their reach;
their result differs from the full sum, taken here, by up to 0.0001, at one point in a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

TABLE_SIZE = 256
"""Number of entries of a permutation table."""

PERIOD = 6 * TABLE_SIZE
"""Steps, in lattice units, after which the noise repeats along x, y and z."""

# Points evaluated at once by fractal_noise: large enough to amortise numpy's calls, small enough for the CPU's cache.
_BLOCK = 8192

# Shift of each cubic lattice along x, y, z.
_SHIFTS = ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0))


def _half_turn(x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Turn by 180 degrees about (1, 1, 1), which maps OpenSimplex's lattice to the integers with an even sum."""
    total = (x + y + z) * (2.0 / 3.0)
    return [total - x, total - y, total - z]


def _turned_gradients() -> NDArray[np.float32]:
    """Gradients in OpenSimplex's order, turned like the lattice, over 103: (24, 4), the last column padding."""
    signs = [(sx, sy, sz) for sz in (1, -1) for sy in (1, -1) for sx in (-1, 1)]
    sizes = [(11, 4, 4), (4, 11, 4), (4, 4, 11)]
    gradients = np.array([np.multiply(sign, size) for sign in signs for size in sizes], dtype=np.float64)
    turned = np.stack(_half_turn(*gradients.T), axis=1) / 103.0
    # Rows of 16 bytes: numpy gathers them several times faster than rows of 12.
    return np.pad(turned, ((0, 0), (0, 1))).astype(np.float32)


_GRADIENTS = _turned_gradients()


def _contribution(
    lattice: Sequence[NDArray[np.uint8]],
    displacement: Sequence[NDArray[np.float32]],
    reach: NDArray[np.float32],
    perm: NDArray[np.uint8],
    gradients: NDArray[np.float32],
) -> NDArray[np.float32]:
    """What one lattice point per place adds; ``reach`` is 2 - |displacement|^2, negative where it is out of reach."""
    i, j, k = lattice
    gradient = gradients.take(perm.take(perm.take(i) + j) + k, axis=0)
    result: NDArray[np.float32] = gradient[..., 0] * displacement[0]
    result += gradient[..., 1] * displacement[1]
    result += gradient[..., 2] * displacement[2]
    weight = np.maximum(reach, 0)
    weight *= weight
    weight *= weight
    result *= weight
    return result


def opensimplex3(x: ArrayLike, y: ArrayLike, z: ArrayLike, permutation: ArrayLike) -> NDArray[np.float32]:
    """Evaluate three-dimensional OpenSimplex noise at many points.

    Args:
        x: first coordinates, in lattice units, float; x, y and z broadcast against each other.
        y: second coordinates.
        z: third coordinates.
        permutation: a permutation of 0..255, shape (256,): the noise's seed.

    Returns:
        float32, of the broadcast shape: noise in [-1, 1] with mean 0 and standard deviation about 0.31, three times
        continuously differentiable, exact to about 3e-7.
    """
    # The hash works modulo 256, which is what uint8 does by itself.
    perm = np.asarray(permutation, dtype=np.uint8)
    gradients = _GRADIENTS[perm % len(_GRADIENTS)]

    # Per axis, for the nearest even and the nearest odd integer: that integer, the displacement from it (in [-1, 1]),
    # the displacement's square and size, and which way the next integer of the same parity lies.
    vertex, offset, square, size, side = [], [], [], [], []
    for q in _half_turn(*(np.asarray(axis, dtype=np.float64) for axis in (x, y, z))):
        halved = np.rint(0.5 * q)
        even = (q - 2.0 * halved).astype(np.float32)
        sign = 1 - 2 * (even < 0).view(np.int8)
        odd = even - sign
        # Only the last nine bits matter below, and numpy is fast with short integers.
        base = 2 * halved.astype(np.int64).astype(np.int16)
        vertex.append((base, base + sign))
        offset.append((even, odd))
        square.append((even * even, odd * odd))
        size.append((np.abs(even), np.abs(odd)))
        side.append((sign.view(np.uint8), (-sign).view(np.uint8)))

    total = np.zeros(vertex[0][0].shape, dtype=np.float32)
    for shift in _SHIFTS:
        vx, vy, vz = (vertex[axis][s] for axis, s in enumerate(shift))
        d = [offset[axis][s] for axis, s in enumerate(shift)]
        mx, my, mz = (size[axis][s] for axis, s in enumerate(shift))
        reach = 2 - (square[0][shift[0]] + square[1][shift[1]] + square[2][shift[2]])
        half = (vx + vy + vz) >> 1
        lattice = [(half - v).astype(np.uint8) for v in (vx, vy, vz)]  # coordinates along the lattice's own axes
        total += _contribution(lattice, d, reach, perm, gradients)

        # The neighbour: two steps along the axis of the largest displacement m, so |d|^2 grows by 4 - 4m.
        along_x = (mx >= my) & (mx >= mz)
        along_z = (mz > my) & ~along_x
        along = (along_x, ~(along_x | along_z), along_z)
        step = [side[axis][s] * along[axis] for axis, s in enumerate(shift)]
        half_change = step[0] + step[1] + step[2]
        for axis in range(3):
            step[axis] += step[axis]
            lattice[axis] += half_change - step[axis]
            d[axis] = d[axis] - step[axis].view(np.int8)
        reach += 4 * (np.maximum(np.maximum(mx, my), mz) - 1)
        total += _contribution(lattice, d, reach, perm, gradients)
    return total


def fractal_noise(
    shape: tuple[int, int, int],
    permutation: ArrayLike,
    origin: ArrayLike,
    octaves: int = 6,
    persistence: float = 0.6,
    wavelength: float = 32.0,
) -> NDArray[np.float32]:
    """Sum octaves of OpenSimplex noise over a block of pixels.

    Octave o has the wavelength ``wavelength / 2**o`` and the amplitude ``persistence**o``. As in AnoDDPM and SCRD4AD
    the sum is not divided by the sum of the amplitudes: with the default values its standard deviation is about 0.40
    and it seldom leaves [-1.2, 1.2] (the bound is 2.4). The channels are neighbouring slices, one pixel apart.

    Args:
        shape: (channels, height, width) of the block.
        permutation: a permutation of 0..255, shape (256,).
        origin: (z, y, x) of the block's first pixel in the endless field, in pixels.
        octaves: number of octaves.
        persistence: ratio of the amplitudes of successive octaves.
        wavelength: wavelength of the first octave in pixels.

    Returns:
        float32 array of the given shape, zero-mean.
    """
    scale = 2.0 ** np.arange(octaves).reshape(-1, 1, 1, 1) / wavelength
    start = np.asarray(origin, dtype=np.float64)
    z = (start[0] + np.arange(shape[0])).reshape(1, -1, 1, 1)
    y = (start[1] + np.arange(shape[1])).reshape(1, 1, -1, 1)
    x = (start[2] + np.arange(shape[2])).reshape(1, 1, 1, -1)
    amplitudes = np.float32(persistence) ** np.arange(octaves, dtype=np.float32)
    noise = np.empty(shape, dtype=np.float32)
    rows = max(1, _BLOCK // (octaves * shape[0] * shape[2]))
    for top in range(0, shape[1], rows):
        block = slice(top, top + rows)
        values = opensimplex3(x * scale, y[:, :, block] * scale, z * scale, permutation)
        noise[:, block] = np.tensordot(amplitudes, values, 1)
    return noise
