# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from monai.data import MetaTensor
from monai.transforms.traits import RandomizableTrait

from monai_rdad.transforms import (
    DequantizeIntensity,
    DequantizeIntensityd,
    NormalizeByPreset,
    NormalizeByPresetd,
    QuantizeIntensity,
    QuantizeIntensityd,
)

RNG = np.random.default_rng(0)


def test_auto_divides_bytes_by_255() -> None:
    image = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)
    for preset in ("auto", "8bit"):
        result = NormalizeByPreset(preset)(image)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, torch.tensor([[[0, 0.2, 1]]]))
    torch.testing.assert_close(NormalizeByPreset("8bit")(image.float()), result)
    # The same values as floats are no bytes.
    assert float(NormalizeByPreset("auto")(torch.arange(0, 100.0)[None])[0, 50]) == pytest.approx(0.5, abs=0.02)


def test_percentiles_of_the_foreground() -> None:
    """The amount of empty background does not change the tissue's values."""
    tissue = RNG.normal(1000, 100, (1, 40, 40)).astype(np.float32)
    low, high = np.percentile(tissue, (0.5, 99.5))
    alone = NormalizeByPreset("percentile")(np.concatenate([tissue, np.zeros((1, 1, 40), np.float32)], axis=1))
    np.testing.assert_allclose(alone[:, :40], np.clip((tissue - low) / (high - low), 0, 1), atol=1e-6)
    framed = NormalizeByPreset("auto")(np.pad(tissue, ((0, 0), (60, 60), (60, 60))))
    np.testing.assert_allclose(framed[:, 60:100, 60:100], alone[:, :40], atol=1e-6)
    assert float(framed[0, 0, 0]) == 0


def test_colours_share_one_range() -> None:
    image = np.stack([RNG.uniform(0, 100, (20, 20)), RNG.uniform(0, 1000, (20, 20))]).astype(np.float32)
    red, green = NormalizeByPreset("percentile")(image)
    assert float(red.max()) < 0.15 < 0.9 < float(green.max())


@given(arrays.arrays(np.float32, (1, 6, 5), elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)))
def test_range_and_order(image: np.ndarray) -> None:
    for preset in ("percentile", "ct"):
        result = np.asarray(NormalizeByPreset(preset)(image))
        assert result.dtype == np.float32 and np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
        order = np.argsort(image, axis=None, kind="stable")
        assert (np.diff(result.ravel()[order]) >= 0).all()


def test_two_valued_and_constant_images() -> None:
    two = np.array([[[0, 0, 7]]], np.float32)
    np.testing.assert_array_equal(NormalizeByPreset("percentile")(two), [[[0, 0, 1]]])
    np.testing.assert_array_equal(NormalizeByPreset("percentile")(two * 0 + 3), [[[0, 0, 0]]])


def test_ct_window() -> None:
    hounsfield = torch.tensor([[[-1000.0, 0, 40, 80, 3000]]])
    expected = torch.tensor([[[0, 0, 0.5, 1, 1]]])
    torch.testing.assert_close(NormalizeByPreset("ct", (40, 80))(hounsfield), expected)
    torch.testing.assert_close(NormalizeByPreset("ct", [-600, 1500])(hounsfield)[0, 0, 1], torch.tensor(0.9))


def test_meta_data_stay() -> None:
    image = MetaTensor(torch.rand(1, 4, 4), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    image.meta["filename_or_obj"] = "x.nii"
    result = NormalizeByPresetd("image", "percentile")({"image": image})["image"]
    assert isinstance(result, MetaTensor) and result.meta["filename_or_obj"] == "x.nii"
    assert torch.equal(result.affine, image.affine)
    with pytest.raises(ValueError, match=r"x\.nii: the preset '8bit' needs values in 0\.\.255.*Use 'auto'"):
        NormalizeByPreset("8bit")(image * 1000)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="Unknown intensity preset 'mr'.*auto, 8bit, percentile, ct"):
        NormalizeByPreset("mr")
    for window in ((40, 0), (40,), (40, float("nan"))):
        with pytest.raises(ValueError, match="positive width"):
            NormalizeByPreset("ct", window)


@given(arrays.arrays(np.float32, (1, 4, 5), elements=st.floats(-0.5, 1.5, width=32, allow_subnormal=False)))
def test_quantize_and_back(image: np.ndarray) -> None:
    quantized = QuantizeIntensity()(MetaTensor(torch.from_numpy(image).permute(0, 2, 1)))
    assert type(quantized) is torch.Tensor and quantized.dtype == torch.uint8 and quantized.is_contiguous()
    back = DequantizeIntensity()(quantized)
    assert back.dtype == torch.float32
    assert float((back - torch.from_numpy(image).permute(0, 2, 1).clamp(0, 1)).abs().max()) <= 1 / 510 + 1e-6


def test_bytes_survive_unchanged() -> None:
    every = torch.arange(256, dtype=torch.uint8)[None]
    kept = every.clone()
    item = {"image": every}
    floats = DequantizeIntensityd("image")(item)
    assert torch.equal(QuantizeIntensityd("image")(floats)["image"], kept)
    assert torch.equal(item["image"], kept)  # the cached bytes are not written to


def test_only_dequantize_ends_the_cache() -> None:
    assert isinstance(DequantizeIntensityd("image"), RandomizableTrait)
    for step in (QuantizeIntensityd("image"), NormalizeByPresetd("image")):
        assert not isinstance(step, RandomizableTrait)


def test_halves_go_up_whatever_the_last_bit() -> None:
    halves = (torch.arange(255) + 0.5) / 255
    step = torch.finfo(torch.float32).eps
    for values in (halves, halves * (1 - 2 * step), halves * (1 + 2 * step)):
        assert torch.equal(QuantizeIntensity()(values), torch.arange(1, 256, dtype=torch.uint8))
    assert torch.equal(QuantizeIntensity()(halves - 0.01 / 255), torch.arange(255, dtype=torch.uint8))
