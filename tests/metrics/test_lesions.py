# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_rdad.metrics import find_lesions

AFFINE = np.array([[0.1, 2, 0, 3], [0.2, 0, -1.0, 4], [-3.0, 0.1, 0.1, 5], [0, 0, 0, 1]])


def flood(found: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Connected parts, 26 neighbours, one voxel after the other."""
    todo = {tuple(map(int, v)) for v in np.argwhere(found)}
    parts = []
    while todo:
        part = [todo.pop()]
        for voxel in part:
            for step in itertools.product((-1, 0, 1), repeat=3):
                near = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if near in todo:
                    todo.remove(near)
                    part.append(near)
        parts.append(part)
    return parts


@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.97, 2.0]))
@settings(max_examples=40, deadline=None)
def test_against_flood_filling(seed: int, threshold: float) -> None:
    values = np.random.default_rng(seed).permutation(5 * 6 * 7).reshape(5, 6, 7).astype(np.float32) / 210
    lesions = find_lesions(values, AFFINE, threshold)
    expected = []
    for part in flood(values >= threshold):
        centre = np.mean([AFFINE @ [*voxel, 1] for voxel in part], axis=0)[:3]
        peak = max(part, key=lambda voxel: values[voxel])
        # volume of a voxel by the triple product of its edges
        volume = abs(np.dot(AFFINE[:3, 0], np.cross(AFFINE[:3, 1], AFFINE[:3, 2]))) * len(part) / 1000
        expected.append((float(values[peak]), len(part), peak, volume, centre))
    expected.sort(key=lambda row: -row[0])
    assert [(f.peak, f.voxels, f.peak_voxel) for f in lesions] == [row[:3] for row in expected]
    np.testing.assert_allclose([f.volume_ml for f in lesions], [row[3] for row in expected])
    centres = np.array([(f.x, f.y, f.z) for f in lesions])
    np.testing.assert_allclose(centres, np.array([row[4] for row in expected]), atol=1e-9)


def test_no_threshold_no_lesion() -> None:
    assert find_lesions(np.ones((2, 2, 2)), np.eye(4), float("inf")) == []
