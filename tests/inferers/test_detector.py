# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from monai_rdad.inferers import Detector
from monai_rdad.inferers.detector import resize
from monai_rdad.transforms import QuantizeIntensity, ResizeInPlane, ScoreReduction


class Blue(torch.nn.Module):
    """In place of a network: the last channel."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, -1:]


@settings(max_examples=40, deadline=None)
# from 2 on: where a width of 1 stays 1, the operator (torch 2.13) repeats the first row instead of interpolating
@given(source=st.tuples(*[st.integers(2, 300)] * 2), target=st.tuples(*[st.integers(2, 200)] * 2))
def test_resize_is_the_operator(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = torch.rand(2, 1, *source, generator=torch.Generator().manual_seed(0))
    expected = interpolate(image.double(), size=target, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resize(image, *target).double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mode", ScoreReduction.MODES)
@pytest.mark.parametrize("size", [(256, 192), (128, 128), (333, 500), (64, 64), (40, 100)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bytes_scores_and_size_are_those_of_the_transforms(mode: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size)).astype(np.uint8)
    image = torch.from_numpy(pixels.astype(np.float32) / np.float32(255))
    detector = Detector(Blue(), 64, mode, 0.03)
    expected = QuantizeIntensity()(ResizeInPlane(64)(image))[2:].float() / 255
    for module in (detector, torch.jit.script(detector)):
        full, score, small = module(torch.stack([image, image.flip(0)]))
        assert torch.equal(small[0], expected)  # not one byte differs, although halves are frequent at these sizes
        torch.testing.assert_close(score, ScoreReduction(mode, 0.03)(small), rtol=0, atol=0)
        assert full.shape == (2, 1, *size) and full.dtype == torch.float32
        back = interpolate(small, size=size, mode="bilinear", antialias=True)
        torch.testing.assert_close(full, back, rtol=0, atol=1e-5)


def test_wrong_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="Unknown score reduction 'median'"):
        Detector(Blue(), 64, "median")
