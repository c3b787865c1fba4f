# SPDX-License-Identifier: Apache-2.0
"""OpenSimplex noise and its fractal sum, against a scalar reference, published values and their statistics."""

from __future__ import annotations

from itertools import product
from math import floor, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_rdad.transforms.synthesis.simplex import PERIOD, fractal_noise, opensimplex3

# As listed by OpenSimplex.
GRADIENTS = """
    -11  4  4   -4  11  4   -4  4  11     11  4  4   4  11  4   4  4  11
    -11 -4  4   -4 -11  4   -4 -4  11     11 -4  4   4 -11  4   4 -4  11
    -11  4 -4   -4  11 -4   -4  4 -11     11  4 -4   4  11 -4   4  4 -11
    -11 -4 -4   -4 -11 -4   -4 -4 -11     11 -4 -4   4 -11 -4   4 -4 -11
"""
GRADIENT_ROWS = np.array(GRADIENTS.split(), dtype=int).reshape(24, 3).tolist()

# Computed with the PyPI package opensimplex 0.4.5.1, permutation np.random.RandomState(0).permutation(256).
PUBLISHED = [
    ((-8.3, 22.03, -49.99), 0.41479698),
    ((-19.77, -35.32, -40.77), -0.26503704),
    ((-31.37, -15.44, -10.32), 0.62433073),
    ((3.88, -8.08, 18.52), 0.30113386),
    ((-29.55, 37.81, -47.26), 0.1885073),
    ((17.05, -8.27, 5.87), 0.23981082),
    ((-35.96, -30.19, 30.07), -0.13131039),
    ((46.83, -18.66, 19.23), -0.09003073),
]

seeds = st.integers(0, 2**32 - 1)


def reference_noise(point: list[float], perm: list[int]) -> float:
    """OpenSimplex by trying every lattice point in the neighbourhood, in the lattice's own skewed coordinates."""
    stretch = -sum(point) / 6
    base = [floor(a + stretch) for a in point]
    total = 0.0
    for steps in product(range(-1, 3), repeat=3):
        lattice = [b + s for b, s in zip(base, steps, strict=True)]
        squish = sum(lattice) / 3
        d = [a - (v + squish) for a, v in zip(point, lattice, strict=True)]
        reach = 2 - sum(a * a for a in d)
        if reach > 0:
            index = perm[(perm[(perm[lattice[0] % 256] + lattice[1]) % 256] + lattice[2]) % 256]
            total += reach**4 * sum(g * a for g, a in zip(GRADIENT_ROWS[index % 24], d, strict=True))
    return total / 103


def sample_noise(seed: int, count: int, tables: int = 10) -> np.ndarray:
    """Noise at random points, of several random fields."""
    rng = np.random.RandomState(seed)
    return np.concatenate(
        [opensimplex3(*rng.uniform(0, PERIOD, (3, count)), rng.permutation(256)) for _ in range(tables)]
    )


class TestNoise:
    @settings(max_examples=15, deadline=None)
    @given(seed=seeds, extent=st.sampled_from([2.0, 100.0, 1e5]))
    def test_equals_the_scalar_reference(self, seed: int, extent: float) -> None:
        rng = np.random.RandomState(seed)
        points, perm = rng.uniform(-extent, extent, (3, 40)), rng.permutation(256)
        expected = [reference_noise(point, perm.tolist()) for point in points.T.tolist()]
        np.testing.assert_allclose(opensimplex3(*points, perm), expected, atol=1e-6)

    def test_at_the_lattice_itself(self) -> None:
        # Ties of every kind: lattice points, midpoints, zero displacements.
        points = np.array(list(product(np.arange(-2, 2.01, 0.5), repeat=3)))
        perm = np.random.RandomState(5).permutation(256)
        expected = [reference_noise(point, perm.tolist()) for point in points.tolist()]
        np.testing.assert_allclose(opensimplex3(*points.T, perm), expected, atol=1e-6)

    def test_equals_published_values(self) -> None:
        points, expected = zip(*PUBLISHED, strict=True)
        noise = opensimplex3(*np.array(points).T, np.random.RandomState(0).permutation(256))
        np.testing.assert_allclose(noise, expected, atol=1e-6)

    def test_period_and_seed(self) -> None:
        rng = np.random.RandomState(1)
        (x, y, z), perm = rng.uniform(0, PERIOD, (3, 1000)), rng.permutation(256)
        noise = opensimplex3(x, y, z, perm)
        for shifted in ((x + PERIOD, y, z), (x, y + PERIOD, z), (x, y, z - PERIOD)):
            np.testing.assert_allclose(opensimplex3(*shifted, perm), noise, atol=1e-6)
        assert abs(np.corrcoef(opensimplex3(x, y, z, rng.permutation(256)), noise)[0, 1]) < 0.15
        assert abs(np.corrcoef(opensimplex3(x + PERIOD / 2, y, z, perm), noise)[0, 1]) < 0.15

    def test_mean_deviation_range(self) -> None:
        noise = sample_noise(seed=2, count=20000)
        assert abs(noise.mean()) < 0.005
        assert noise.std() == pytest.approx(0.313, abs=0.005)
        assert 0.8 < np.abs(noise).max() < 1.0
        assert noise.dtype == np.float32

    def test_isotropic(self) -> None:
        rng = np.random.RandomState(3)
        directions = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 0), (1, 1, 1), (1, -2, 1)]
        correlations = []
        for direction in directions:
            step = 0.5 * np.array(direction)[:, None] / sqrt(sum(d * d for d in direction))
            pairs = []
            for _ in range(5):
                points, perm = rng.uniform(0, PERIOD, (3, 20000)), rng.permutation(256)
                pairs.append((opensimplex3(*points, perm), opensimplex3(*(points + step), perm)))
            first, second = np.concatenate(pairs, axis=1)
            correlations.append(np.corrcoef(first, second)[0, 1])
        assert max(correlations) - min(correlations) < 0.03
        assert np.mean(correlations) == pytest.approx(0.51, abs=0.02)

    @pytest.mark.parametrize("direction", [(1.0, 0.0, 0.0), (0.6, 0.64, 0.48), (-1 / 3, 2 / 3, 2 / 3)])
    def test_continuous(self, direction: tuple[float, float, float]) -> None:
        # A lattice point forgotten on one side of a cell's face would show as a jump.
        rng = np.random.RandomState(4)
        line = np.array(direction)[:, None] * np.arange(0, 60, 1e-3) + rng.uniform(0, 100, (3, 1))
        noise = opensimplex3(*line, rng.permutation(256)).astype(np.float64)
        assert np.abs(np.diff(noise)).max() < 2.5e-3
        assert np.abs(np.diff(noise[::20], 2)).max() < 10 * 0.02**2


class TestFractal:
    @settings(max_examples=10, deadline=None)
    @given(
        seed=seeds,
        shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
        octaves=st.integers(1, 6),
        persistence=st.sampled_from([0.3, 0.6, 1.0]),
        wavelength=st.sampled_from([7.0, 32.0]),
    )
    def test_equals_the_scalar_reference(
        self, seed: int, shape: tuple[int, int, int], octaves: int, persistence: float, wavelength: float
    ) -> None:
        rng = np.random.RandomState(seed)
        perm, origin = rng.permutation(256), rng.uniform(0, 1000, 3)
        expected = np.zeros(shape)
        for c, row, column in np.ndindex(*shape):
            for octave in range(octaves):
                pixels = (origin[2] + column, origin[1] + row, origin[0] + c)
                point = [float(p) / (wavelength / 2**octave) for p in pixels]
                expected[c, row, column] += persistence**octave * reference_noise(point, perm.tolist())
        noise = fractal_noise(shape, perm, origin, octaves, persistence, wavelength)
        np.testing.assert_allclose(noise, expected, atol=1e-6)

    def test_each_octave_has_half_the_wavelength_and_its_amplitude(self) -> None:
        rng = np.random.RandomState(0)
        perm, origin, shape = rng.permutation(256), rng.uniform(0, 1000, 3), (3, 64, 64)
        for octave in range(1, 6):
            added = fractal_noise(shape, perm, origin, octave + 1) - fractal_noise(shape, perm, origin, octave)
            alone = fractal_noise(shape, perm, origin, octaves=1, wavelength=32 / 2**octave)
            np.testing.assert_allclose(added, 0.6**octave * alone, atol=2e-6)

    def test_large_blocks_are_seamless(self) -> None:
        # Evaluated in several pieces, yet the same field as each piece alone.
        perm = np.random.RandomState(1).permutation(256)
        whole = fractal_noise((3, 90, 70), perm, (1.0, 2.0, 3.0))
        part = fractal_noise((3, 10, 20), perm, (1.0, 2.0 + 75, 3.0 + 45))
        np.testing.assert_allclose(part, whole[:, 75:85, 45:65], atol=1e-6)

    def test_deviation_and_range(self) -> None:
        rng = np.random.RandomState(2)
        fields = [fractal_noise((3, 20, 20), rng.permutation(256), rng.uniform(0, 1e4, 3)) for _ in range(600)]
        noise = np.stack(fields)
        expected = 0.313 * sqrt(sum(0.36**octave for octave in range(6)))
        assert noise.std() == pytest.approx(expected, abs=0.02)
        assert abs(noise.mean()) < 0.03
        assert 1.0 < np.abs(noise).max() < 2.0
        # Neighbouring slices: alike, not equal.
        assert 0.5 < np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1] < 0.98

    def test_band_limits(self) -> None:
        rng = np.random.RandomState(3)
        window = np.hanning(128)[:, None] * np.hanning(128)
        frequency = 16 * np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))  # in waves of 16 px

        def power(octaves: int) -> np.ndarray:
            total = np.zeros((128, 128))
            for _ in range(8):
                perm, origin = rng.permutation(256), rng.uniform(0, 1e4, 3)
                field = fractal_noise((1, 128, 128), perm, origin, octaves, wavelength=16)
                total += np.abs(np.fft.fft2(window * field[0])) ** 2
            return total / total.sum()

        one, four = power(1), power(4)
        # One octave ends at its base frequency ...
        assert one[frequency > 0.5].sum() > 0.3
        assert one[frequency > 1.0].sum() < 0.02
        assert one[frequency > 1.5].sum() < 1e-3
        # ... and each further one adds power an octave above, the less the higher.
        bands = [four[(frequency > 2.0**k) & (frequency <= 2.0 ** (k + 1))].sum() for k in range(-1, 3)]
        assert bands[0] > bands[1] > bands[2] > bands[3] > 0.001
