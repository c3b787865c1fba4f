# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_rdad.data.synthetic_scenes import IGNORED, Scenes, TextureScenes, acquire, corrupt
from monai_rdad.data.synthetic_textures import KINDS, Textures, seeded


@pytest.fixture(scope="module")
def scenes():
    return TextureScenes(classes=48, size=32, pool=48, layers=4)


def draw(*numbers):
    return torch.rand(4, generator=seeded(*numbers))


def test_a_seed_is_a_function_of_all_its_integers_and_their_order():
    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    streams = [draw(*n) for n in ((1, 2, 3), (3, 2, 1), (1, 2), (1, 2, 4), (1, 2, 3, 0))]
    assert len({tuple(s.tolist()) for s in streams}) == len(streams)


def test_scenes_depend_on_seed_epoch_and_step_alone(scenes):
    later = scenes.scenes(step=7, batch=3, epoch=2)
    fresh = TextureScenes(classes=48, size=32, pool=48, layers=4).scenes(step=7, batch=3, epoch=2)
    assert all(torch.equal(a, b) for a, b in zip(later, fresh, strict=True))
    for other in (scenes.scenes(8, 3, 2), scenes.scenes(7, 3, 3)):
        assert not torch.equal(later.image, other.image)
    other_seed = TextureScenes(classes=48, size=32, seed=1, pool=48, layers=4).scenes(7, 3, 2)
    assert not torch.equal(later.image, other_seed.image)


def test_pictures_are_finite_and_in_range_and_one_leaf_is_on_top(scenes):
    made = scenes.scenes(0, 16, 0)
    assert made.image.shape == (16, 3, 32, 32) and made.classes.shape == (16, 4)
    assert made.image.isfinite().all() and made.image.min() >= 0 and made.image.max() <= 1
    assert torch.equal(made.regions.sum(1), torch.ones(16, 32, 32))
    grey = (made.image == made.image[:, :1]).flatten(1).all(1)
    assert 0 < grey.sum() < 16  # colour and grey pictures
    assert made.regions[:, 1:].any()


def test_every_kind_of_texture_is_standardised_and_varies_from_draw_to_draw(scenes):
    c = torch.arange(48)
    assert set(scenes.textures.kind.tolist()) == set(range(len(KINDS)))
    first, second = (scenes.textures.sample(c, seeded(s)).numpy() for s in (1, 2))
    assert np.isfinite(first).all()
    assert np.abs(first.mean((1, 2))).max() < 0.5 and np.abs(first).max() <= 3.5
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first, second, strict=True)]
    assert np.median(np.abs(alike)) < 0.2


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_any_class_can_be_sampled_alone(scenes, kind):
    c = (scenes.textures.kind == kind).nonzero()[:1, 0]
    assert scenes.textures.sample(c, seeded(0)).std() == pytest.approx(1, abs=0.2)


def test_two_draws_of_a_class_have_alike_spectra_and_histograms():
    """A classifier that knows nothing of the generator finds the class of a second draw among 48."""

    def describe(textures):
        t = textures.numpy()
        power = np.log(np.abs(np.fft.fft2(t))[:, :49, :] ** 2 + 1e-3)
        blocks = power[:, :48, :].reshape(len(t), 12, 4, 24, 4).mean((2, 4)).reshape(len(t), -1)
        shape = np.quantile(t, [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99], axis=(1, 2)).T
        return np.concatenate([blocks / blocks.std() / 8, shape], 1)

    c, textures = torch.arange(48), Textures(48, edge=96)
    first, second = (describe(textures.sample(c, seeded(s))) for s in (3, 4))
    nearest = ((second[:, None] - first[None]) ** 2).sum(-1).argmin(1)
    assert (nearest == np.arange(48)).mean() > 0.3  # chance: 0.02


def test_labels_are_the_class_of_the_leaf_that_fills_the_cell():
    regions = torch.zeros(1, 2, 8, 8)
    regions[:, 1, :, :5] = 1
    regions[:, 0] = 1 - regions[:, 1]
    made = Scenes(torch.zeros(1, 3, 8, 8), regions, torch.tensor([[7, 9]]), torch.tensor([IGNORED]))
    # columns 4 to 7 hold one quarter of leaf 1 and three quarters of leaf 0
    assert made.labels(4).tolist() == [[[9, 7], [9, 7]]]
    assert made.labels(4, purity=0.8).tolist() == [[[9, IGNORED], [9, IGNORED]]]
    assert made.labels(8).tolist() == [[[9]]]


def test_compositions_depend_on_their_class_seed_epoch_and_step_alone():
    def make(seed=0):
        return TextureScenes(classes=16, size=32, seed=seed, pool=16, compositions=40)

    made = make().composed(step=3, batch=32, epoch=1)
    assert all(torch.equal(a, b) for a, b in zip(made, make().composed(3, 32, 1), strict=True))
    assert not torch.equal(made.image, make().composed(4, 32, 1).image)
    assert not torch.equal(made.image, make(1).composed(3, 32, 1).image)
    assert made.image.min() >= 0 and made.image.max() <= 1 and made.image.isfinite().all()
    assert set(made.composition.tolist()) <= set(range(40)) and len(set(made.composition.tolist())) > 15
    # the first texture of composition k is k modulo the number of textures, and every picture has at least one leaf
    assert torch.equal(made.classes[:, 0], made.composition % 16)
    assert torch.equal(made.regions.sum(1), torch.ones(32, 32, 32))
    assert (made.regions[:, 1].sum((1, 2)) > 0).float().mean() > 0.9


def test_compositions_of_a_class_look_more_alike_than_those_of_others():
    scenes = TextureScenes(classes=16, size=64, pool=16, compositions=16)
    made = scenes.composed(step=0, batch=256, epoch=0)
    image = made.image
    about = torch.cat([image.mean((2, 3)), image.std((2, 3)), image.diff(dim=2).abs().mean((2, 3))], 1)
    distance = torch.cdist(about, about).fill_diagonal_(9)
    same = made.composition[distance.argmin(1)] == made.composition
    assert same.float().mean() > 0.25  # chance: 0.06


def test_compositions_need_all_textures_in_the_pool():
    with pytest.raises(ValueError, match="A pool of 8 textures lacks some of the 16"):
        TextureScenes(classes=16, pool=8, compositions=4)


def test_a_class_has_the_same_look_at_any_edge():
    """Half as many pixels, the same number of periods: the spectra agree where both have one."""
    c = torch.arange(24)
    wide, narrow = Textures(24, edge=128), Textures(24, edge=64)
    about = []
    for textures in (wide, narrow):
        power = torch.fft.fft2(textures.sample(c, seeded(0))).abs()[:, :16, :16].square()
        about.append(power.flatten(1) / power.flatten(1).sum(1, keepdim=True))
    alike = torch.cdist(about[1].sqrt(), about[0].sqrt()).argmin(1) == c
    assert alike.float().mean() > 0.25  # chance: 0.04


def test_one_layer_shows_one_texture():
    made = TextureScenes(classes=8, size=32, pool=8, layers=1).scenes(0, 4, 0)
    assert torch.equal(made.labels(16), made.classes[:, :, None].expand(4, 2, 2))


def test_acquisition_changes_nothing_at_strength_0_and_keeps_the_range(scenes):
    image = scenes.scenes(1, 16, 0).image.clamp(0.01, 1)
    assert torch.allclose(acquire(image, seeded(0), strength=0.0), image, atol=1e-6)
    acquired = acquire(image, seeded(0))
    assert acquired.min() >= 0 and acquired.max() <= 1
    assert ((acquired - image).abs().mean((1, 2, 3)) > 1e-3).all()
    assert torch.equal(acquired, acquire(image, seeded(0)))


def test_corruption_touches_the_mask_and_nothing_else(scenes):
    image = scenes.scenes(2, 64, 0).image
    changed, mask = corrupt(image, seeded(5))
    assert mask.shape == (64, 1, 32, 32) and mask.min() >= 0 and mask.max() <= 1
    untouched = mask == 0
    assert torch.equal(changed[untouched.expand_as(image)], image[untouched.expand_as(image)])
    share = (mask.amax((1, 2, 3)) == 0).float().mean()
    assert 0.3 < share < 0.7
    inside = mask.expand_as(image) > 0.9
    assert (changed - image)[inside].abs().mean() > 0.02
