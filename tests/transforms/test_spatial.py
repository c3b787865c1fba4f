# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_rdad.transforms import ResizeInPlane, ResizeInPlaned


def test_shrinking_is_pillows_bilinear():
    rng = np.random.default_rng(0)
    pixels = rng.random((150, 200)).astype(np.float32)
    expected = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))
    actual = ResizeInPlane(64)(torch.from_numpy(pixels)[None])
    np.testing.assert_allclose(actual[0].numpy(), expected, atol=1e-5)


def test_volume_slices_are_resized_one_by_one():
    volume = torch.rand(1, 40, 50, 5)
    result = ResizeInPlane(64)(volume)
    assert result.shape == (1, 64, 64, 5)
    for k in range(5):
        torch.testing.assert_close(result[..., k], ResizeInPlane(64)(volume[..., k]))


def test_masks_keep_their_values_and_type():
    mask = torch.zeros(1, 100, 100, dtype=torch.uint8)
    mask[:, 30:60, 30:60] = 1
    mask[:, 90:] = 255
    item = ResizeInPlaned(["image", "mask"], 64, nearest=[False, True])(
        {"image": torch.rand(1, 100, 100), "mask": mask}
    )
    assert item["mask"].dtype == torch.uint8 and set(item["mask"].unique().tolist()) == {0, 1, 255}
    assert abs((item["mask"] == 1).float().mean() - 0.09) < 0.01
    assert item["image"].dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 100, 37), (1, 20, 90, 4)])
def test_inverse_gives_the_size_back(shape):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    ramp = torch.linspace(0, 1, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape).contiguous()
    image = MetaTensor(ramp, affine=affine)
    resizer = ResizeInPlane(64)
    back = resizer.inverse(resizer(image))
    assert back.shape == shape and not back.applied_operations
    torch.testing.assert_close(back.affine, affine)
    torch.testing.assert_close(back.as_tensor(), ramp, rtol=0, atol=0.06)


def test_sizes_that_the_networks_cannot_take():
    for size in (100, 0, 16):
        with pytest.raises(ValueError, match="multiple of 32"):
            ResizeInPlane(size)


def test_the_divisor_is_that_of_the_network():
    item = ResizeInPlaned("image", 42, divisor=14)({"image": torch.rand(1, 50, 50)})
    assert item["image"].shape == (1, 42, 42)
    with pytest.raises(ValueError, match="multiple of 14 and at least 28"):
        ResizeInPlane(64, divisor=14)
