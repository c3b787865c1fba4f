# SPDX-License-Identifier: Apache-2.0
"""CutPaste as array, dictionary and batch transform, against a reference that goes pixel by pixel.

Covers defects of ESC-DRKD's release: patches drawn from a generator that is never seeded, one patch size for a whole
batch, and values that leave the image's range.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, RandomizableTrait, ToTensord

from monai_rdad.transforms.synthesis import (
    CutPasteParameters,
    RandCutPaste,
    RandCutPasted,
    cut_paste,
    draw_cut_paste,
)
from monai_rdad.transforms.synthesis.cut_paste import PATCH_SIZES


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random pixels, all different but for rounding, so that every one shows where it came from."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(
    image: torch.Tensor, parameters: CutPasteParameters, i: int, blend: float, clip: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image i, its mask, and where rounding decides which pixel is the nearest, one pixel after the other."""
    height, width = image.shape[1:]
    side, source_top, source_left, top, left = (int(value[i]) for value in parameters[:5])
    angle = float(parameters.angle[i])
    origin = np.full((height, width, 2), -1)
    doubtful = np.zeros((height, width), dtype=bool)
    for row in range(height):
        for column in range(width):
            y, x = row + 0.5 - (top + side / 2), column + 0.5 - (left + side / 2)
            along = side / 2 + y * math.cos(angle) - x * math.sin(angle)
            across = side / 2 + y * math.sin(angle) + x * math.cos(angle)
            doubtful[row, column] = any(abs(v - round(v)) < 1e-3 for v in (along, across))
            if 0 <= along < side and 0 <= across < side:
                origin[row, column] = source_top + int(along), source_left + int(across)
    mask = origin[..., 0] >= 0
    before = image.double().numpy()
    after = before.copy()
    for row, column in zip(*mask.nonzero(), strict=True):
        after[:, row, column] = before[:, origin[row, column, 0], origin[row, column, 1]]
    if parameters.colour is not None:
        brightness, contrast, saturation = (float(v) for v in parameters.colour[i])
        patch = brightness * after[:, mask]
        patch = contrast * patch + (1 - contrast) * patch.mean()
        after[:, mask] = saturation * patch + (1 - saturation) * patch.mean(axis=0)
    after[:, mask] += blend * before[:, mask]
    if clip:
        after[:, mask] = after[:, mask].clip(0, 1)
    return after, mask, doubtful


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    blend=st.sampled_from([0.0, 0.2, 1.0]),
    rotation=st.sampled_from([0.0, 45.0, 180.0]),
    jitter=st.sampled_from([0.0, 0.1]),
    clip=st.booleans(),
)
def test_equals_the_reference(
    seed: int, channels: int, height: int, width: int, blend: float, rotation: float, jitter: float, clip: bool
) -> None:
    images = noise(2, channels, height, width, seed=seed)
    before = images.clone()
    drawn = draw_cut_paste(
        2, height, width, rotation=rotation, jitter=jitter, generator=torch.Generator().manual_seed(seed)
    )
    corrupted, masks = cut_paste(images, drawn, blend, clip)
    assert torch.equal(images, before)
    for i in range(2):
        expected, mask, doubtful = reference(images[i], drawn, i, blend, clip)
        sure = ~doubtful
        np.testing.assert_array_equal(masks[i, 0].bool().numpy()[sure], mask[sure])
        # the mean that contrast refers to contains the doubtful pixels
        atol = 1e-6 if jitter == 0 else 1e-6 + 0.2 * doubtful.sum() / mask.sum()
        np.testing.assert_allclose(corrupted[i].numpy()[:, sure], expected[:, sure], rtol=0, atol=atol)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    channels=st.sampled_from([1, 3]),
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    sizes=st.sampled_from(["mixed", "small"]),
    rotation=st.sampled_from([0.0, 30.0]),
    jitter=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_changes_the_patch_and_nothing_else(
    seed: int,
    channels: int,
    height: int,
    width: int,
    sizes: str,
    rotation: float,
    jitter: float,
    dtype: torch.dtype,
) -> None:
    image = noise(channels, height, width, seed=seed, dtype=dtype)
    before = image.clone()
    transform = RandCutPaste(sizes=sizes, rotation=rotation, jitter=jitter, return_mask=True).set_random_state(seed)
    corrupted, mask = transform(image)
    assert torch.equal(image, before)
    assert (corrupted.dtype, corrupted.shape) == (dtype, image.shape)
    assert (mask.dtype, mask.shape) == (torch.uint8, (1, height, width))
    inside = mask.bool().expand_as(image)
    assert inside.any() and torch.equal(corrupted[~inside], image[~inside])
    assert corrupted.min() >= 0 and corrupted.max() <= 1

    drawn = transform._parameters
    side, source_top, source_left, top, left = (int(value) for value in drawn[:5])
    shorter = min(height, width)
    assert any(low * shorter <= side <= high * shorter for _, low, high in PATCH_SIZES[sizes])
    for start, end in ((source_top, height), (top, height), (source_left, width), (left, width)):
        assert 0 <= start <= end - side
    assert (source_top, source_left) != (top, left)
    if rotation == 0:
        assert int(mask.sum()) == side**2 == int(mask[:, top : top + side, left : left + side].sum())

    # the batch version with the same parameters
    again, masks = cut_paste(image[None], drawn)
    assert torch.equal(masks[0], mask)
    tolerance = 0 if jitter == 0 else (1e-2 if dtype == torch.bfloat16 else 1e-6)
    torch.testing.assert_close(again[0], corrupted, rtol=0, atol=tolerance)


class TestBatch:
    def test_sizes_and_places_differ_within_a_batch(self) -> None:
        images = noise(64, 1, 64, 64)
        drawn = draw_cut_paste(64, 64, 64, rotation=20, jitter=0.1, generator=torch.Generator().manual_seed(0))
        for values in drawn:
            assert len(values.unique(dim=0)) > 10
        assert len(cut_paste(images, drawn)[1].sum(dim=(1, 2, 3)).unique()) > 10

    def test_an_image_does_not_see_its_neighbours(self) -> None:
        images = noise(5, 3, 48, 32)
        drawn = draw_cut_paste(5, 48, 32, jitter=0.1, rotation=90, generator=torch.Generator().manual_seed(1))
        together, masks = cut_paste(images, drawn)
        for i in range(5):
            alone, mask = cut_paste(images[i : i + 1], CutPasteParameters(*(value[i : i + 1] for value in drawn)))
            assert torch.equal(masks[i], mask[0])
            torch.testing.assert_close(together[i], alone[0], rtol=0, atol=1e-6)

    def test_reproducible_by_its_generator(self) -> None:
        def draw(seed: int) -> CutPasteParameters:
            return draw_cut_paste(8, 64, 64, generator=torch.Generator().manual_seed(seed))

        assert all(torch.equal(a, b) for a, b in zip(draw(3)[:6], draw(3)[:6], strict=True))
        assert not torch.equal(draw(3).source_top, draw(4).source_top)
        torch.manual_seed(0)
        first = draw_cut_paste(8, 64, 64)
        assert not torch.equal(draw_cut_paste(8, 64, 64).top, first.top)

    def test_the_mixture_has_its_proportions(self) -> None:
        n = 20000
        side = draw_cut_paste(n, 256, 256, generator=torch.Generator().manual_seed(0)).side
        for weight, low, high in ((0.2, 150, 200), (0.3, 64, 100), (0.5, 10, 32)):
            drawn = side[(side >= low) & (side <= high)]
            assert len(drawn) / n == pytest.approx(weight, abs=0.015)
            assert len(drawn.unique()) == high - low + 1
            assert drawn.double().mean() == pytest.approx((low + high) / 2, abs=0.6)
        own = draw_cut_paste(n, 100, 200, sizes=[(3, 0.1, 0.1), (1, 0.5, 0.5)])
        assert set(own.side.tolist()) == {10, 50}
        assert (own.side == 10).double().mean() == pytest.approx(0.75, abs=0.015)

    def test_places_are_uniform(self) -> None:
        # a patch of 3 of 4 pixels has 2 x 2 places, hence 12 pairs of different ones
        n = 12000
        drawn = draw_cut_paste(n, 4, 4, sizes=[(1, 0.75, 0.75)], generator=torch.Generator().manual_seed(0))
        pairs, counts = torch.stack(drawn[1:5], 1).unique(dim=0, return_counts=True)
        assert len(pairs) == 12
        assert (counts.double() / n - 1 / 12).abs().max() < 0.01

    def test_colour_factors(self) -> None:
        images = noise(1, 3, 32, 32) / 2
        drawn = draw_cut_paste(1, 32, 32, jitter=0.1, generator=torch.Generator().manual_seed(0))
        assert drawn.colour.shape == (1, 3) and (drawn.colour - 1).abs().max() <= 0.1

        def patch(*colour: float) -> torch.Tensor:
            corrupted, mask = cut_paste(images, drawn._replace(colour=torch.tensor([colour])), blend=0.0)
            return corrupted[mask.bool().expand_as(corrupted)].view(3, -1)

        plain = patch(1, 1, 1)
        torch.testing.assert_close(patch(1.1, 1, 1), 1.1 * plain)
        contrast = patch(1, 0.5, 1)
        torch.testing.assert_close(contrast.std(), plain.std() / 2)
        torch.testing.assert_close(contrast.mean(), plain.mean())
        grey = patch(1, 1, 0)
        torch.testing.assert_close(grey, plain.mean(0, keepdim=True).expand_as(grey))

    def test_quarter_turn(self) -> None:
        drawn = draw_cut_paste(1, 32, 32, sizes=[(1, 0.25, 0.25)], generator=torch.Generator().manual_seed(0))
        images = noise(1, 1, 32, 32)
        corrupted, _ = cut_paste(images, drawn._replace(angle=torch.tensor([math.pi / 2])), blend=0.0)
        _, y, x, top, left = (int(value) for value in drawn[:5])
        expected = torch.rot90(images[0, 0, y : y + 8, x : x + 8], -1)  # clockwise
        torch.testing.assert_close(corrupted[0, 0, top : top + 8, left : left + 8], expected)

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (torch.zeros((2, 1, 16, 16)), "as many as parameters"),
            (torch.zeros((1, 16, 16)), r"float images \(B, C, H, W\)"),
            (torch.zeros((1, 1, 16, 16), dtype=torch.uint8), "float images"),
        ],
    )
    def test_rejects_images(self, images: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            cut_paste(images, draw_cut_paste(1, 16, 16))

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_on_the_device(self) -> None:
        images = noise(4, 3, 64, 64)
        drawn = draw_cut_paste(4, 64, 64, rotation=45, generator=torch.Generator("cuda").manual_seed(0))
        corrupted, mask = cut_paste(images.cuda(), drawn)
        expected, expected_mask = cut_paste(images, drawn)
        assert corrupted.is_cuda and (mask.cpu() != expected_mask).float().mean() < 1e-3
        assert (corrupted.cpu() != expected).float().mean() < 1e-3


class TestArray:
    def test_patch_is_added_to_the_blended_image(self) -> None:
        image = torch.cat([torch.full((1, 32, 16), 0.25), torch.full((1, 32, 16), 0.5)], dim=2)
        corrupted, mask = RandCutPaste(sizes="small", return_mask=True).set_random_state(0)(image)
        values = {round(v, 4) for v in corrupted[mask == 1].tolist()}
        assert values <= {0.3, 0.35, 0.55, 0.6}  # patch + 0.2 * image
        replaced = RandCutPaste(sizes="small", blend=0).set_random_state(0)(image)
        assert set(replaced.unique().tolist()) == {0.25, 0.5}

    def test_clips_only_on_request(self) -> None:
        image = torch.ones((3, 64, 64))
        free = RandCutPaste(clip=False).set_random_state(1)(image)
        assert float(free.max()) == pytest.approx(1.2)
        assert torch.equal(RandCutPaste().set_random_state(1)(image), image)

    def test_seeds_repeat_and_differ(self) -> None:
        image = noise(1, 64, 64)

        def epoch(seed: int) -> list[torch.Tensor]:
            transform = RandCutPaste().set_random_state(seed)
            return [transform(image) for _ in range(8)]

        assert all(torch.equal(a, b) for a, b in zip(epoch(7), epoch(7), strict=True))
        results = torch.stack(epoch(7) + epoch(8))
        assert len(results.unique(dim=0)) == 16

    def test_repeats_the_last_draw(self) -> None:
        transform = RandCutPaste().set_random_state(0)
        image = noise(1, 64, 64)
        first = transform(image)
        assert torch.equal(transform(image, randomize=False), first)
        assert not torch.equal(transform(image), first)
        with pytest.raises(ValueError, match="last draw"):
            transform(noise(1, 64, 32), randomize=False)

    def test_probability(self) -> None:
        transform = RandCutPaste(prob=0.5, return_mask=True).set_random_state(0)
        image = noise(1, 32, 32)
        results = [transform(image) for _ in range(60)]
        assert 15 < sum(bool(mask.any()) for _, mask in results) < 45
        for corrupted, mask in results:
            assert torch.equal(corrupted, image) != bool(mask.any())
            assert corrupted is not image

    def test_accepts_arrays_and_metatensors(self) -> None:
        expected = RandCutPaste().set_random_state(0)(noise(1, 64, 64))
        assert torch.equal(RandCutPaste().set_random_state(0)(noise(1, 64, 64).numpy()), expected)
        image = MetaTensor(noise(1, 64, 64), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
        corrupted = RandCutPaste().set_random_state(0)(image)
        assert isinstance(corrupted, MetaTensor) and torch.equal(corrupted.affine, image.affine)
        assert torch.equal(corrupted.as_tensor(), expected)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (torch.zeros((1, 6, 64)), "side of 6 pixels is too small"),
            (torch.zeros((1, 64, 64), dtype=torch.uint8), "float image"),
            (torch.zeros((64, 64)), "float image"),
            (torch.full((1, 64, 64), 255.0), r"values in \[0, 1\]"),
            (torch.full((1, 64, 64), float("nan")), r"values in \[0, 1\]"),
        ],
    )
    def test_rejects_images(self, image: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RandCutPaste()(image)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"sizes": "large"},
            {"sizes": []},
            {"sizes": [(1.0, 0.2, 0.1)]},
            {"sizes": [(1.0, 0.2)]},
            {"sizes": [(0.0, 0.1, 0.2)]},
            {"sizes": [(1.0, 0.5, 1.0)]},
            {"blend": -0.1},
            {"jitter": 1.1},
            {"rotation": 200.0},
        ],
    )
    def test_rejects_arguments(self, arguments: dict) -> None:
        with pytest.raises(ValueError, match="must be"):
            RandCutPaste(**arguments)


class TestDictionary:
    def test_equals_the_array_version(self) -> None:
        options = {"prob": 0.7, "sizes": "small", "blend": 0.1, "rotation": 30.0, "jitter": 0.1, "clip": False}
        plain = RandCutPaste(return_mask=True, **options).set_random_state(5)
        dictionary = RandCutPasted("image", mask_keys="region", **options).set_random_state(5)
        for seed in range(10):
            sample = {"image": noise(3, 64, 64, seed=seed), "name": "a"}
            before = sample["image"].clone()
            result = dictionary(sample)
            corrupted, mask = plain(sample["image"])
            assert set(sample) == {"image", "name"}
            assert set(result) == {"image", "name", "corrupted", "region"}
            assert result["image"] is sample["image"] and torch.equal(sample["image"], before)
            assert torch.equal(result["corrupted"], corrupted)
            assert torch.equal(result["region"], mask)

    def test_keys_share_the_patch(self) -> None:
        transform = RandCutPasted(("a", "b"), ("c", "d"), clip=False).set_random_state(0)
        image = noise(1, 64, 64)
        result = transform({"a": image, "b": image / 2})
        torch.testing.assert_close(result["c"] / 2, result["d"])
        with pytest.raises(ValueError, match="use one transform each"):
            transform({"a": image, "b": noise(1, 64, 32)})

    def test_rejects_keys(self) -> None:
        with pytest.raises(ValueError, match="output_keys and mask_keys must"):
            RandCutPasted("image", output_keys="image")

    def test_never_cached(self) -> None:
        assert isinstance(RandCutPasted("image"), RandomizableTrait)


def patches_of_an_epoch(workers: int, seed: int) -> torch.Tensor:
    data = [{"image": noise(1, 48, 32).numpy()} for _ in range(6)]
    transform = Compose([ToTensord("image", track_meta=False), RandCutPasted("image", mask_keys="region")])
    dataset = CacheDataset(data, transform, progress=False, num_workers=1)
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, generator=torch.Generator().manual_seed(seed))
    return torch.cat([batch["region"] for batch in loader])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_dataloader_differ_inside_and_are_reproducible(workers: int) -> None:
    masks = patches_of_an_epoch(workers, seed=0)
    for batch in masks.split(3):
        assert len(batch.sum(dim=(1, 2, 3)).unique()) > 1  # sizes, not places only
    assert torch.equal(patches_of_an_epoch(workers, seed=0), masks)
    assert not torch.equal(patches_of_an_epoch(workers, seed=1), masks)
