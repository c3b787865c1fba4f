# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from monai_rdad.inferers import SlicewiseInferer
from monai_rdad.transforms.slices import SliceView


class Deviation(torch.nn.Module):
    """Distance of each pixel from its own slice's mean; it counts the slices and the passes."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(image))
        return (image - image.mean((2, 3), keepdim=True)).abs()


def random_volume(*shape: int) -> torch.Tensor:
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))


def test_slice_by_slice() -> None:
    volumes = random_volume(8, 8, 5).repeat(2, 1, 1, 1, 1) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1, 1)
    network = Deviation()
    result = SlicewiseInferer(slice_batch_size=4)(volumes, network)
    assert network.batches == [4, 4, 2]
    for k in range(5):
        torch.testing.assert_close(result[..., k], Deviation()(volumes[..., k]))
    image = volumes[..., 0]
    torch.testing.assert_close(SlicewiseInferer(axes=[0, 1])(image, network), Deviation()(image))


def test_empty_slices_cost_nothing_and_stay_zero() -> None:
    volume = random_volume(8, 8, 6) + 0.1
    volume[..., [0, 5]] = 0.04  # darker than foreground
    volume[..., 1] = 0
    volume[..., 0, 0, 1] = 1  # 1 / 64 is foreground
    network = Deviation()
    result = SlicewiseInferer(min_foreground=1 / 32)(volume, network)
    assert network.batches == [3]
    assert [bool(result[..., k].any()) for k in range(6)] == [False, False, True, True, True, False]
    torch.testing.assert_close(result[..., 3], Deviation()(volume[..., 3]))
    network = Deviation()
    assert not SlicewiseInferer(min_foreground=0.5)(0 * volume, network).any() and network.batches == []


def test_three_axes_are_averaged_and_turn_with_the_volume() -> None:
    volume = random_volume(8, 8, 8)
    inferer = SlicewiseInferer(axes=[2, 1, 0])
    result = inferer(volume, Deviation())
    parts = []
    for axis in (0, 1, 2):
        view = SliceView(2, axis)
        parts.append(view.inverse(SlicewiseInferer()(view(volume), Deviation())))
    torch.testing.assert_close(result, (parts[0] + parts[1] + parts[2]) / 3)
    # the same patient lying otherwise: each axis of the body becomes another one
    for turn in (lambda v: v.permute(0, 1, 4, 2, 3), lambda v: v.flip(2).transpose(3, 4)):
        torch.testing.assert_close(inferer(turn(volume), Deviation()), turn(result))
    assert not torch.allclose(result, SlicewiseInferer()(volume, Deviation()))


def test_slices_along_other_axes_pass_at_the_network_size() -> None:
    shapes = []

    def network(image: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(image.shape))
        return image

    smooth = torch.linspace(0, 1, 5).expand(1, 1, 16, 16, 5)
    result = SlicewiseInferer(slice_batch_size=100, axes=[2, 0])(smooth, network)
    assert shapes == [(5, 1, 16, 16), (16, 1, 16, 16)]
    assert result.shape == smooth.shape
    torch.testing.assert_close(result, smooth, rtol=0, atol=0.03)  # up to the resampling there and back


@pytest.mark.parametrize("axis", [0, 2])
def test_smoothing_across_the_slices(axis: int) -> None:
    volume = random_volume(12, 12, 12) + 0.1
    plain = SlicewiseInferer(axes=[axis])(volume, Deviation())
    result = SlicewiseInferer(axes=[axis], through_plane_sigma=1.5)(volume, Deviation())
    expected = gaussian_filter1d(plain.numpy(), 1.5, axis=-1)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_smoothing_leaves_empty_slices_out() -> None:
    volume = torch.rand(1, 1, 8, 8, 9).add(0.1)
    volume[..., 4] = 0

    def network(image: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(image)

    result = SlicewiseInferer(min_foreground=0.1, through_plane_sigma=2)(volume, network)
    assert not result[..., 4].any()
    kept = [k for k in range(9) if k != 4]
    torch.testing.assert_close(result[..., kept], torch.ones(1, 1, 8, 8, 8))
    one = SlicewiseInferer(through_plane_sigma=2)(volume[..., :1], network)
    torch.testing.assert_close(one, torch.ones(1, 1, 8, 8, 1))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="through_plane_sigma is -1"):
        SlicewiseInferer(through_plane_sigma=-1)
    with pytest.raises(ValueError, match="axes is"):
        SlicewiseInferer(axes=[1, 1])
