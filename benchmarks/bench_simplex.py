# SPDX-License-Identifier: Apache-2.0
"""How fast is the simplex-noise corruption?

(a) The noise of one patch: all points at once, against the same sum as a walk in pure Python over the pixels, octaves
    and lattice points. Both must give the same values.
(b) The whole transform on a 256 px image, against one float32 forward pass of a teacher over that image.

CPU time of this process, one thread; per repeat the two sides run one after the other:

    OMP_NUM_THREADS=1 python benchmarks/bench_simplex.py --patch 20 --repeats 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from math import copysign

import numpy as np
import torch

from monai_rdad.networks.encoders import FrozenEncoder
from monai_rdad.transforms.synthesis import RandSimplexNoise
from monai_rdad.transforms.synthesis.simplex import PERIOD, fractal_noise

TEACHERS = ("wide_resnet50_2", "resnet18")
GRADIENTS = [
    tuple(sign * (11 if axis == long else 4) for axis, sign in enumerate((sx, sy, sz)))
    for sz in (1, -1)
    for sy in (1, -1)
    for sx in (-1, 1)
    for long in range(3)
]


def noise_by_walk(x: float, y: float, z: float, perm: list[int]) -> float:
    """OpenSimplex noise at one point; lattice points out of reach cost a comparison and no more."""
    mean = (x + y + z) * 2 / 3
    q = (mean - x, mean - y, mean - z)
    total = 0.0
    for shift in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)):
        v = [2 * round((a - s) / 2) + s for a, s in zip(q, shift, strict=True)]
        d = [a - b for a, b in zip(q, v, strict=True)]
        sizes = [abs(a) for a in d]
        for neighbour in (False, True):
            if neighbour:
                axis = sizes.index(max(sizes))
                step = int(copysign(2, d[axis]))
                v[axis] += step
                d[axis] -= step
            reach = 2 - d[0] * d[0] - d[1] * d[1] - d[2] * d[2]
            if reach <= 0:
                continue
            half = sum(v) // 2
            index = perm[(perm[half - v[0] & 255] + half - v[1]) & 255]
            gx, gy, gz = GRADIENTS[perm[index + half - v[2] & 255] % 24]
            turned = (d[0] + d[1] + d[2]) * 2 / 3
            total += reach**4 * (gx * (turned - d[0]) + gy * (turned - d[1]) + gz * (turned - d[2])) / 103
    return total


def patch_by_walk(shape: tuple[int, int, int], permutation: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Six octaves with persistence 0.6 from 32 px, pixel by pixel."""
    perm = [int(value) for value in permutation]
    oz, oy, ox = (float(value) for value in origin)
    noise = np.zeros(shape)
    for octave in range(6):
        scale, amplitude = 2**octave / 32, 0.6**octave
        for c in range(shape[0]):
            for row in range(shape[1]):
                for column in range(shape[2]):
                    value = noise_by_walk((ox + column) * scale, (oy + row) * scale, (oz + c) * scale, perm)
                    noise[c, row, column] += amplitude * value
    return noise


def cpu_seconds(function: Callable[[], object], calls: int) -> float:
    """Mean CPU time of a call."""
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


def main() -> None:
    """Print times and ratios; fail if one of them breaks the promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=20, help="side of the patch in (a), pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--at_least", type=float, default=20.0, help="smallest ratio in (a) that counts as success")
    args = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.RandomState(0)
    shape = (3, args.patch, args.patch)
    permutation, origin = random.permutation(256), random.uniform(0, PERIOD * 32, 3)
    difference = np.abs(patch_by_walk(shape, permutation, origin) - fractal_noise(shape, permutation, origin)).max()

    ratios = []
    for repeat in range(args.repeats):
        fast = cpu_seconds(lambda: fractal_noise(shape, permutation, origin), calls=100)
        slow = cpu_seconds(lambda: patch_by_walk(shape, permutation, origin), calls=1)
        ratios.append(slow / fast)
        print(
            f"patch, repeat {repeat}: walk {1e3 * slow:.0f} ms, vectorised {1e3 * fast:.2f} ms, ratio {ratios[-1]:.0f}"
        )
    print(f"patch ratio min/median/max: {min(ratios):.0f} / {np.median(ratios):.0f} / {max(ratios):.0f}", end="")
    print(f", largest difference {difference:.1e}")

    image = torch.rand((3, 256, 256), generator=torch.Generator().manual_seed(0))
    transform = RandSimplexNoise()
    transform.set_random_state(0)
    shares = []
    for name in TEACHERS:
        teacher = FrozenEncoder(name)
        teacher(image[None])  # the first call prepares oneDNN's kernels
        for repeat in range(args.repeats):
            corruption = cpu_seconds(lambda: transform(image), calls=50)
            forward = cpu_seconds(lambda: teacher(image[None]), calls=2)  # noqa: B023
            shares.append(corruption / forward)
            print(
                f"{name}, repeat {repeat}: forward {1e3 * forward:.1f} ms, corruption {1e3 * corruption:.2f} ms, "
                f"corruption / forward {shares[-1]:.4f}"
            )
    if min(ratios) < args.at_least or max(shares) >= 1 or difference > 2e-6:
        raise SystemExit(
            f"Promised: {args.at_least:g} times faster than the walk, faster than one teacher forward, same values"
        )


if __name__ == "__main__":
    main()
