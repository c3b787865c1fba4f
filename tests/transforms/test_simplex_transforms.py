# SPDX-License-Identifier: Apache-2.0
"""The simplex-noise corruption as array and dictionary transform.

Covers a defect of the published method: its noise generator is seeded once and always reads the field from its origin,
so that all pseudo-anomalies of a run share one texture.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, RandomizableTrait, ToTensord

from monai_rdad.transforms.synthesis import RandSimplexNoise, RandSimplexNoised, array
from monai_rdad.transforms.synthesis.simplex import PERIOD


def flat_image(channels: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.full((channels, height, width), 0.5)


def box(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of a mask's only rectangle."""
    rows, columns = (mask[0].any(dim=1 - axis).nonzero().ravel() for axis in (0, 1))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    assert int(mask.sum()) == height * width
    return top, left, height, width


class TestArray:
    @settings(max_examples=30, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        channels=st.sampled_from([1, 3]),
        height=st.integers(9, 300),
        width=st.integers(9, 300),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    )
    def test_changes_the_patch_and_nothing_else(
        self, seed: int, channels: int, height: int, width: int, dtype: torch.dtype
    ) -> None:
        image = torch.rand((channels, height, width), generator=torch.Generator().manual_seed(seed % 2**31)).to(dtype)
        before = image.clone()
        transform = RandSimplexNoise(return_mask=True).set_random_state(seed)
        corrupted, mask = transform(image)
        assert torch.equal(image, before)
        assert (corrupted.dtype, corrupted.shape) == (dtype, image.shape)
        assert (mask.dtype, mask.shape) == (torch.uint8, (1, height, width))
        inside = mask.bool().expand_as(image)
        assert torch.equal(corrupted[~inside], image[~inside])
        assert float(corrupted.min()) >= 0
        assert float(corrupted.max()) <= 1
        _, _, patch_height, patch_width = box(mask)
        for size, side in ((patch_height, height), (patch_width, width)):
            assert 10 / 256 * side <= size <= 31 / 256 * side
        if patch_height * patch_width >= 9:
            assert not torch.equal(corrupted[inside], image[inside])

    def test_adds_the_fractal_noise_times_strength(self) -> None:
        transform = RandSimplexNoise(clip=False, return_mask=True, strength=0.2).set_random_state(0)
        samples = []
        for _ in range(100):
            corrupted, mask = transform(flat_image())
            samples.append((corrupted - 0.5)[mask.bool().expand_as(corrupted)])
            assert float(samples[-1].abs().max()) > 0
        assert float(torch.cat(samples).std()) / 0.2 == pytest.approx(0.39, abs=0.06)
        weaker = RandSimplexNoise(clip=False, strength=0.1).set_random_state(0)(flat_image())
        stronger = RandSimplexNoise(clip=False, strength=0.2).set_random_state(0)(flat_image())
        torch.testing.assert_close(2 * (weaker - 0.5), stronger - 0.5)

    def test_clips_only_on_request(self) -> None:
        image = torch.ones((3, 64, 64))
        free = RandSimplexNoise(clip=False).set_random_state(1)(image)
        assert float(free.max()) > 1
        assert torch.equal(RandSimplexNoise().set_random_state(1)(image), free.clamp(0, 1))

    def test_patch_sizes_and_places_at_256_px(self) -> None:
        transform = RandSimplexNoise(octaves=1, return_mask=True).set_random_state(0)
        boxes = np.array([box(transform(flat_image(1, 256, 256))[1]) for _ in range(400)])
        for sizes in boxes[:, 2:].T:
            assert set(sizes) == set(range(10, 32))
        assert boxes[:, :2].min() < 5
        assert (boxes[:, :2] + boxes[:, 2:]).max() > 251
        assert np.abs((boxes[:, :2] + boxes[:, 2:] / 2).mean(axis=0) - 128).max() < 10

    def test_samples_have_their_own_texture(self) -> None:
        def patches(seed: int) -> list[torch.Tensor]:
            transform = RandSimplexNoise(size_range=(0.3125, 0.3125), clip=False, return_mask=True).set_random_state(
                seed
            )
            result = []
            for _ in range(12):
                corrupted, mask = transform(flat_image())
                result.append(corrupted[mask.bool().expand_as(corrupted)].view(3, 20, 20))
            return result

        epoch, again, other = patches(7), patches(7), patches(8)
        assert all(torch.equal(a, b) for a, b in zip(epoch, again, strict=True))
        for i, first in enumerate(epoch):
            for second in epoch[i + 1 :] + other:
                # Not one field read at the same place, nor the same field up to brightness or contrast.
                assert float((first - second).abs().max()) > 0.05
                assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.95
        corners = torch.stack([patch[:, 0, 0] for patch in epoch])
        assert len(corners.unique(dim=0)) == len(epoch)

    def test_draws_table_and_place_per_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tables, places = set(), set()

        def spy(shape: tuple[int, int, int], permutation: np.ndarray, origin: np.ndarray, **_: float) -> np.ndarray:
            assert sorted(permutation) == list(range(256))
            tables.add(tuple(permutation))
            places.add(tuple(origin))
            return np.zeros(shape, dtype=np.float32)

        monkeypatch.setattr(array, "fractal_noise", spy)
        transform = RandSimplexNoise(num_patches=2).set_random_state(0)
        for _ in range(50):
            transform(flat_image())
        assert (len(tables), len(places)) == (50, 100)
        reach = np.array(list(places)) / (PERIOD * 32)
        assert reach.min() < 0.05
        assert 0.95 < reach.max() < 1

    def test_repeats_the_last_draw(self) -> None:
        transform = RandSimplexNoise().set_random_state(0)
        first = transform(flat_image())
        assert torch.equal(transform(flat_image(), randomize=False), first)
        assert not torch.equal(transform(flat_image()), first)

    def test_channels_get_neighbouring_slices(self) -> None:
        colour = RandSimplexNoise(clip=False).set_random_state(3)(flat_image(3))
        grey = RandSimplexNoise(clip=False).set_random_state(3)(flat_image(1))
        torch.testing.assert_close(colour[:1], grey)
        assert not torch.equal(colour[0], colour[1])

    def test_several_patches(self) -> None:
        corrupted, mask = RandSimplexNoise(num_patches=5, return_mask=True).set_random_state(0)(flat_image(1, 256, 256))
        assert int(mask.sum()) > 31 * 31
        assert int(mask.max()) == 1
        assert torch.equal(corrupted[mask == 0], torch.full_like(corrupted[mask == 0], 0.5))

    def test_probability(self) -> None:
        transform = RandSimplexNoise(prob=0.5, return_mask=True).set_random_state(0)
        image = flat_image(1)
        pairs = [transform(image) for _ in range(60)]
        assert 15 < sum(bool(mask.any()) for _, mask in pairs) < 45
        for corrupted, mask in pairs:
            assert torch.equal(corrupted, image) != bool(mask.any())
            assert corrupted is not image

    def test_accepts_arrays_and_metatensors(self) -> None:
        expected = RandSimplexNoise().set_random_state(0)(flat_image())
        assert torch.equal(RandSimplexNoise().set_random_state(0)(flat_image().numpy()), expected)
        image = MetaTensor(flat_image(), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
        corrupted = RandSimplexNoise().set_random_state(0)(image)
        assert isinstance(corrupted, MetaTensor)
        assert torch.equal(corrupted.affine, image.affine)
        assert torch.equal(corrupted.as_tensor(), expected)
        assert torch.equal(image.as_tensor(), flat_image())

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (flat_image(1, 8, 64), "side of 8 pixels is too small"),
            (flat_image(1, 64, 5), "side of 5 pixels is too small"),
            (torch.zeros((1, 64, 64), dtype=torch.uint8), "float image"),
            (torch.zeros((64, 64)), "float image"),
            (torch.zeros((1, 64, 64, 4)), "float image"),
            (torch.full((1, 64, 64), 255.0), r"values in \[0, 1\]"),
            (torch.full((1, 64, 64), float("nan")), r"values in \[0, 1\]"),
        ],
    )
    def test_rejects_images(self, image: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RandSimplexNoise()(image)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"size_range": (0.2, 0.1)},
            {"size_range": (0.0, 0.1)},
            {"size_range": (0.1, 1.1)},
            {"size_range": (0.1,)},
            {"num_patches": 0},
            {"octaves": 0},
            {"wavelength": 0.0},
            {"persistence": -1.0},
        ],
    )
    def test_rejects_arguments(self, arguments: dict) -> None:
        with pytest.raises(ValueError, match="must be"):
            RandSimplexNoise(**arguments)

    def test_rejects_a_stale_draw(self) -> None:
        transform = RandSimplexNoise(size_range=(0.9, 1.0)).set_random_state(0)
        transform(flat_image())
        with pytest.raises(ValueError, match="larger image"):
            transform(flat_image(1, 32, 32), randomize=False)


class TestDictionary:
    def test_equals_the_array_version(self) -> None:
        plain = RandSimplexNoise(return_mask=True, prob=0.7).set_random_state(5)
        dictionary = RandSimplexNoised("image", mask_keys="region", prob=0.7).set_random_state(5)
        for _ in range(10):
            sample = {"image": torch.rand((3, 64, 64)), "name": "a"}
            before = sample["image"].clone()
            result = dictionary(sample)
            corrupted, mask = plain(sample["image"])
            assert set(sample) == {"image", "name"}
            assert set(result) == {"image", "name", "corrupted", "region"}
            assert result["image"] is sample["image"]
            assert torch.equal(sample["image"], before)
            assert torch.equal(result["corrupted"], corrupted)
            assert torch.equal(result["region"], mask)

    def test_without_a_mask_key(self) -> None:
        result = RandSimplexNoised(keys="image")({"image": flat_image()})
        assert set(result) == {"image", "corrupted"}
        assert not torch.equal(result["corrupted"], result["image"])

    def test_keys_share_the_noise(self) -> None:
        transform = RandSimplexNoised(("a", "b"), ("c", "d"), clip=False).set_random_state(0)
        result = transform({"a": flat_image(1), "b": flat_image(3) / 2})
        torch.testing.assert_close(result["c"] - 0.5, result["d"][:1] - 0.25)
        with pytest.raises(ValueError, match="use one transform each"):
            transform({"a": flat_image(1), "b": flat_image(1, 64, 32)})

    def test_missing_keys(self) -> None:
        with pytest.raises(KeyError, match="image"):
            RandSimplexNoised("image")({"name": "a"})
        transform = RandSimplexNoised(("a", "b"), ("c", "d"), allow_missing_keys=True)
        assert set(transform({"b": flat_image(1)})) == {"b", "d"}
        assert set(transform({"name": "x"})) == {"name"}

    @pytest.mark.parametrize(
        "arguments",
        [
            {"keys": ("a", "b")},
            {"keys": "a", "output_keys": "a"},
            {"keys": "a", "mask_keys": "a"},
            {"keys": "a", "mask_keys": ("m", "n")},
        ],
    )
    def test_rejects_keys(self, arguments: dict) -> None:
        with pytest.raises(ValueError, match="output_keys and mask_keys must"):
            RandSimplexNoised(**arguments)

    def test_never_cached(self) -> None:
        assert isinstance(RandSimplexNoised("image"), RandomizableTrait)


def noise_of_epochs(workers: int, seed: int, epochs: int = 2) -> torch.Tensor:
    """What the corruption added to each image of some epochs, (epochs x images, 1, H, W)."""
    data = [{"image": flat_image(1, 48, 32).numpy()} for _ in range(4)]
    transform = Compose([ToTensord("image", track_meta=False), RandSimplexNoised("image")])
    dataset = CacheDataset(data, transform, progress=False, num_workers=1)
    # MONAI's loader seeds the transforms from its generator, anew in each epoch.
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, generator=torch.Generator().manual_seed(seed))
    return torch.cat([batch["corrupted"] - batch["image"] for _ in range(epochs) for batch in loader])


@pytest.mark.parametrize("workers", [0, 2])
def test_dataloader_noise_differs_and_is_reproducible(workers: int) -> None:
    noise = noise_of_epochs(workers, seed=0)
    # Sums, so that the same texture at another place would be noticed too.
    assert len(noise.abs().sum(dim=(1, 2, 3)).unique()) == len(noise) == 8
    assert torch.equal(noise_of_epochs(workers, seed=0), noise)
    assert not torch.equal(noise_of_epochs(workers, seed=1, epochs=1), noise[:4])
