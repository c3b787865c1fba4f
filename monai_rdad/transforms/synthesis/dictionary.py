# SPDX-License-Identifier: Apache-2.0
"""Dictionary versions of the transforms in :py:mod:`monai_rdad.transforms.synthesis.array`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.misc import ensure_tuple

from .array import RandCutPaste, RandSimplexNoise


class _RandCorruptiond(RandomizableTransform, MapTransform):
    """Keeps the input and writes the corrupted copy beside it: what the dictionary transforms of this file share.

    Args:
        keys: see the derived classes, as for all that follow but the last.
        output_keys: where the corrupted copies go.
        mask_keys: where the masks go.
        allow_missing_keys: skip keys that a sample lacks instead of raising.
        corruption: the array transform; it must return masks.
    """

    backend = RandSimplexNoise.backend

    def __init__(
        self,
        keys: KeysCollection,
        output_keys: KeysCollection,
        mask_keys: KeysCollection | None,
        allow_missing_keys: bool,
        corruption: RandSimplexNoise | RandCutPaste,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, corruption.prob)
        self.output_keys = ensure_tuple(output_keys)
        self.mask_keys = (None,) * len(self.keys) if mask_keys is None else ensure_tuple(mask_keys)
        if not len(self.keys) == len(self.output_keys) == len(self.mask_keys):
            raise ValueError(
                f"keys, output_keys and mask_keys must be equally many, got {keys}, {output_keys}, {mask_keys}."
            )
        if set(self.keys) & {*self.output_keys, *self.mask_keys}:
            raise ValueError(f"output_keys and mask_keys must differ from keys, got {output_keys}, {mask_keys}.")
        self.corruption = corruption

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> _RandCorruptiond:
        """Seed the transform; see :py:meth:`monai.transforms.Randomizable.set_random_state`."""
        # One generator for both, so that the array version with the same seed draws the same numbers.
        self.corruption.set_random_state(seed, state)
        super().set_random_state(state=self.corruption.R)
        return self

    def randomize(self, data: tuple[int, int]) -> None:
        """Draw anew for images of (height, width) ``data``."""
        self.corruption.randomize(data)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the corrupted copies (and masks) added.

        Raises:
            KeyError: a key is missing.
            ValueError: images of one sample differ in height or width, or an image does not suit the transform.
        """
        result = dict(data)
        size: tuple[int, int] | None = None
        for key, output_key, mask_key in self.key_iterator(result, self.output_keys, self.mask_keys):
            shape = tuple(data[key].shape[-2:])
            if size is not None and shape != size:
                raise ValueError(
                    f"Image '{key}' is {shape}, but the sample's others are {size}: use one transform each."
                )
            # Drawing belongs to the first image, whose checks come before the draw.
            result[output_key], mask = self.corruption(data[key], randomize=size is None)
            if mask_key is not None:
                result[mask_key] = mask
            size = shape
        return result


class RandSimplexNoised(_RandCorruptiond):
    """Dictionary version of :py:class:`RandSimplexNoise` that keeps the input and writes the corrupted copy beside it.

    All keys of a sample get the same patches and the same noise field, so their images must have the same height and
    width. With the same random state it gives what the array version gives.

    Args:
        keys: keys of the clean float images (C, H, W) in [0, 1].
        output_keys: where the corrupted copies go, one per key. Written for every sample, also for those that
            ``prob`` leaves clean, so that samples can be batched.
        mask_keys: where the masks (uint8 (1, H, W), 1 inside the patches) go, one per key; None writes none.
        prob: see :py:class:`RandSimplexNoise`, as for all that follow but the last.
        strength: factor on the noise.
        size_range: smallest and largest patch side as a fraction of the image's side.
        num_patches: patches per image.
        octaves: octaves of noise.
        persistence: ratio of the amplitudes of successive octaves.
        wavelength: wavelength of the first octave in pixels.
        clip: clip the patch to [0, 1].
        allow_missing_keys: skip keys that a sample lacks instead of raising.

    Raises:
        ValueError: the numbers of keys differ, an output would overwrite an input, or an argument is out of its range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_keys: KeysCollection = "corrupted",
        mask_keys: KeysCollection | None = None,
        prob: float = 1.0,
        strength: float = 0.2,
        size_range: Sequence[float] = (10 / 256, 31 / 256),
        num_patches: int = 1,
        octaves: int = 6,
        persistence: float = 0.6,
        wavelength: float = 32.0,
        clip: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        corruption = RandSimplexNoise(
            prob=prob,
            strength=strength,
            size_range=size_range,
            num_patches=num_patches,
            octaves=octaves,
            persistence=persistence,
            wavelength=wavelength,
            clip=clip,
            return_mask=True,
        )
        super().__init__(keys, output_keys, mask_keys, allow_missing_keys, corruption)


class RandCutPasted(_RandCorruptiond):
    """Dictionary version of :py:class:`RandCutPaste` that keeps the input and writes the corrupted copy beside it.

    All keys of a sample get their patch from the same place and at the same place, so their images must have the same
    height and width. With the same random state it gives what the array version gives.

    Args:
        keys: keys of the clean float images (C, H, W) in [0, 1].
        output_keys: where the corrupted copies go, one per key. Written for every sample, also for those that
            ``prob`` leaves clean, so that samples can be batched.
        mask_keys: where the masks (uint8 (1, H, W), 1 where something was pasted) go, one per key; None writes none.
        prob: see :py:class:`RandCutPaste`, as for all that follow but the last.
        sizes: "mixed", "small" or a list of (weight, smallest, largest).
        blend: factor on the pixels pasted over.
        rotation: largest angle of the patch in degrees.
        jitter: largest deviation from 1 of the colour factors.
        clip: clip the patch to [0, 1].
        allow_missing_keys: skip keys that a sample lacks instead of raising.

    Raises:
        ValueError: the numbers of keys differ, an output would overwrite an input, or an argument is out of its range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_keys: KeysCollection = "corrupted",
        mask_keys: KeysCollection | None = None,
        prob: float = 1.0,
        sizes: str | Sequence[Sequence[float]] = "mixed",
        blend: float = 0.2,
        rotation: float = 0.0,
        jitter: float = 0.0,
        clip: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        corruption = RandCutPaste(prob, sizes, blend, rotation, jitter, clip, return_mask=True)
        super().__init__(keys, output_keys, mask_keys, allow_missing_keys, corruption)
