# SPDX-License-Identifier: Apache-2.0
"""Array transforms that paint synthetic anomalies onto an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.transforms.transform import RandomizableTransform
from monai.utils.enums import TransformBackends
from numpy.typing import NDArray

from .cut_paste import NUM_DRAWS, CutPasteParameters, check_sizes, check_strengths, paste_window, place_patches
from .patch import copy_unit_image, side_range
from .simplex import PERIOD, TABLE_SIZE, fractal_noise


class _Patch(NamedTuple):
    """Where one patch lies in the image, and where its noise lies in the endless field (z, y, x in pixels)."""

    top: int
    left: int
    height: int
    width: int
    origin: NDArray[np.float64]


class RandSimplexNoise(RandomizableTransform):
    """Add fractal simplex noise to a rectangular patch of an image: SCRD4AD's pseudo-anomaly (arXiv 2503.13828).

    The patch's height and width are uniform integers between two fractions of the image's height and width (10 to 31
    pixels at 256), and its position is uniform inside the image. Inside it ``x~ = x + strength * noise``; outside, the
    result is bit for bit the input. Each sample has a permutation table, and each patch a place in the noise field, of
    its own, so that no two samples share a texture. The wavelengths are pixels at every image size, as published.

    Two things differ from the publication. The result is clipped to [0, 1], the range that the networks are documented
    for (``clip=False`` for the published form); and a patch may reach the image's last row and column.

    All random numbers come from ``self.R`` in :py:meth:`randomize`, so ``set_random_state`` makes them reproducible.

    Args:
        prob: probability that an image is corrupted.
        strength: factor on the noise; image intensities are in [0, 1].
        size_range: smallest and largest patch side as a fraction of the image's side, 0 < smallest <= largest <= 1.
        num_patches: patches per image; where patches overlap, their noise adds up.
        octaves: octaves of noise, each with half the previous one's wavelength.
        persistence: ratio of the amplitudes of successive octaves.
        wavelength: wavelength of the first octave in pixels.
        clip: clip the patch to [0, 1].
        return_mask: return the pair (image, mask), the mask being 1 inside the patches and 0 elsewhere.

    Raises:
        ValueError: an argument is out of its range.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 - MONAI declares it so

    def __init__(
        self,
        prob: float = 1.0,
        strength: float = 0.2,
        size_range: Sequence[float] = (10 / 256, 31 / 256),
        num_patches: int = 1,
        octaves: int = 6,
        persistence: float = 0.6,
        wavelength: float = 32.0,
        clip: bool = True,
        return_mask: bool = False,
    ) -> None:
        super().__init__(prob)
        if len(size_range) != 2 or not 0 < size_range[0] <= size_range[1] <= 1:
            raise ValueError(f"size_range must be two fractions with 0 < smallest <= largest <= 1, got {size_range}.")
        if num_patches < 1 or octaves < 1:
            raise ValueError(f"num_patches and octaves must be at least 1, got {num_patches} and {octaves}.")
        if wavelength <= 0 or persistence <= 0:
            raise ValueError(f"wavelength and persistence must be positive, got {wavelength} and {persistence}.")
        self.strength = strength
        self.size_range = (float(size_range[0]), float(size_range[1]))
        self.num_patches = num_patches
        self.octaves = octaves
        self.persistence = persistence
        self.wavelength = wavelength
        self.clip = clip
        self.return_mask = return_mask
        self._permutation = np.arange(TABLE_SIZE)
        self._patches: list[_Patch] = []

    def randomize(self, data: tuple[int, int]) -> None:
        """Draw whether to corrupt, the patches and the noise's seed.

        Args:
            data: (height, width) of the image.

        Raises:
            ValueError: the image is too small for any patch.
        """
        sides = [side_range(side, self.size_range) for side in data]
        super().randomize(None)
        self._patches = []
        if not self._do_transform:
            return
        self._permutation = self.R.permutation(TABLE_SIZE)
        for _ in range(self.num_patches):
            height, width = (int(self.R.randint(low, high + 1)) for low, high in sides)
            top = int(self.R.randint(data[0] - height + 1))
            left = int(self.R.randint(data[1] - width + 1))
            # One whole period of the longest wave, hence of all: every place in the field is equally likely.
            origin = self.R.uniform(0.0, PERIOD * self.wavelength, size=3)
            self._patches.append(_Patch(top, left, height, width, origin))

    def __call__(
        self, img: NdarrayOrTensor, randomize: bool = True
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return a corrupted copy.

        Args:
            img: float image (C, H, W) with values in [0, 1]; each channel gets its own slice of the noise.
            randomize: draw anew; otherwise repeat the last draw, which must have been for an image of this size.

        Returns:
            The corrupted image, a new tensor of the input's shape, dtype, device and (if any) metadata; with
            ``return_mask`` also the mask, uint8 (1, H, W) of 0 and 1.

        Raises:
            ValueError: the image is not a float (C, H, W) array in [0, 1], or too small for a patch.
        """
        result, values = copy_unit_image(img, "Simplex noise")
        channels, height, width = values.shape
        if randomize:
            self.randomize((height, width))
        mask = torch.zeros((1, height, width), dtype=torch.uint8, device=values.device)
        for patch in self._patches:
            if patch.top + patch.height > height or patch.left + patch.width > width:
                raise ValueError(
                    f"The last draw was for a larger image than {height} x {width}: call with randomize=True."
                )
            inside = np.s_[:, patch.top : patch.top + patch.height, patch.left : patch.left + patch.width]
            noise = fractal_noise(
                (channels, patch.height, patch.width),
                self._permutation,
                patch.origin,
                octaves=self.octaves,
                persistence=self.persistence,
                wavelength=self.wavelength,
            )
            values[inside] += self.strength * torch.from_numpy(noise).to(values)
            if self.clip:
                values[inside].clamp_(0.0, 1.0)
            mask[inside] = 1
        return (result, mask) if self.return_mask else result


class RandCutPaste(RandomizableTransform):
    """Paste a square patch of an image elsewhere into the same image: CutPaste (Li et al., CVPR 2021).

    The defaults are those of ESC-DRKD (Ge et al., Neurocomputing 651, 130994): the side of the patch comes from a
    mixture of small, middle and large ranges, scaled from 256 px to the image, and inside the place where it goes
    ``x~ = patch + blend * x``. ``blend=0`` and ``jitter=0.1`` give the pasting rule of CutPaste's own paper (arXiv
    2104.04015), less its oblong shapes and its shift of hue. Outside, the result is bit for bit the input.

    Two things differ from the publication of ESC-DRKD: the result is clipped to [0, 1], the range that the networks are
    documented for (``clip=False`` for the published form), and a patch never goes back to its own place.

    All random numbers come from ``self.R`` in :py:meth:`randomize`, so ``set_random_state`` makes them reproducible.
    For a whole batch at once there is :py:func:`~monai_rdad.transforms.synthesis.cut_paste`.

    Args:
        prob: probability that an image is corrupted.
        sizes: "mixed" (20 % of 150 to 200, 30 % of 64 to 100, 50 % of 10 to 32 pixels at 256), "small" (10 to 32), or a
            list of (weight, smallest, largest), the last two as fractions of the image's shorter side, at most 0.99.
        blend: factor on the pixels pasted over, 0 to 1.
        rotation: largest angle of the patch in degrees, either way, 0 to 180; corners that leave the image are cut off.
        jitter: largest deviation from 1 of the factors on the patch's brightness, contrast and saturation, 0 to 1.
        clip: clip the patch to [0, 1].
        return_mask: return the pair (image, mask), the mask being 1 where something was pasted and 0 elsewhere.

    Raises:
        ValueError: an argument is out of its range.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 - MONAI declares it so

    def __init__(
        self,
        prob: float = 1.0,
        sizes: str | Sequence[Sequence[float]] = "mixed",
        blend: float = 0.2,
        rotation: float = 0.0,
        jitter: float = 0.0,
        clip: bool = True,
        return_mask: bool = False,
    ) -> None:
        super().__init__(prob)
        check_strengths(blend, rotation, jitter)
        self.sizes = check_sizes(sizes)
        self.blend = blend
        self.rotation = rotation
        self.jitter = jitter
        self.clip = clip
        self.return_mask = return_mask
        self._parameters: CutPasteParameters | None = None
        self._size = (0, 0)

    def randomize(self, data: tuple[int, int]) -> None:
        """Draw whether to corrupt, the patch's size and its two places.

        Args:
            data: (height, width) of the image.

        Raises:
            ValueError: the image is too small for one of the size ranges.
        """
        super().randomize(None)
        self._size = data
        uniform = torch.from_numpy(self.R.uniform(size=(1, NUM_DRAWS)))
        parameters = place_patches(uniform, *data, self.sizes, self.rotation, self.jitter)
        self._parameters = parameters if self._do_transform else None

    def __call__(
        self, img: NdarrayOrTensor, randomize: bool = True
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return a corrupted copy.

        Args:
            img: float image (C, H, W) with values in [0, 1].
            randomize: draw anew; otherwise repeat the last draw, which must have been for an image of this size.

        Returns:
            The corrupted image, a new tensor of the input's shape, dtype, device and (if any) metadata; with
            ``return_mask`` also the mask, uint8 (1, H, W) of 0 and 1.

        Raises:
            ValueError: the image is not a float (C, H, W) array in [0, 1], too small for a patch, or of another size
                than that of the last draw.
        """
        result, values = copy_unit_image(img, "CutPaste")
        size = (values.shape[1], values.shape[2])
        if randomize:
            self.randomize(size)
        mask = torch.zeros((1, *size), dtype=torch.uint8, device=values.device)
        if (p := self._parameters) is not None:
            if size != self._size:
                raise ValueError(f"The last draw was for an image of {self._size}, not {size}: use randomize=True.")
            # no more of the image than the turned patch covers
            side, angle = p.side.item(), p.angle.item()
            spare = side / 2 * (abs(math.cos(angle)) + abs(math.sin(angle)) - 1)
            (top, bottom), (left, right) = (
                (max(0, math.floor(start.item() - spare)), min(end, math.ceil(start.item() + side + spare)))
                for start, end in zip((p.top, p.left), size, strict=True)
            )
            window = (top, left, bottom - top, right - left)
            painted, covered = paste_window(values[None], p.to(values.device), window, self.blend, self.clip)
            values[:, top:bottom, left:right], mask[:, top:bottom, left:right] = painted[0], covered[0]
        return (result, mask) if self.return_mask else result
