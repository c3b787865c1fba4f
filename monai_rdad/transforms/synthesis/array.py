# SPDX-License-Identifier: Apache-2.0
"""Array transforms that paint synthetic anomalies onto an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import RandomizableTransform
from monai.utils.enums import TransformBackends
from numpy.typing import NDArray

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

    def _side_range(self, side: int) -> tuple[int, int]:
        """Smallest and largest patch side, in pixels, for an image side."""
        # The small number keeps a product that is whole but for rounding on its integer.
        low = max(1, math.ceil(self.size_range[0] * side - 1e-6))
        high = math.floor(self.size_range[1] * side + 1e-6)
        if high < low:
            raise ValueError(
                f"An image side of {side} pixels is too small for a patch of {self.size_range[0]:.4f} to "
                f"{self.size_range[1]:.4f} of it: no whole number of pixels lies in that range. Use larger images or "
                "another size_range."
            )
        return low, high

    def randomize(self, data: tuple[int, int]) -> None:
        """Draw whether to corrupt, the patches and the noise's seed.

        Args:
            data: (height, width) of the image.

        Raises:
            ValueError: the image is too small for any patch.
        """
        sides = [self._side_range(side) for side in data]
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
        image = img if isinstance(img, torch.Tensor) else torch.as_tensor(img)
        result = image.clone()
        # Plain views of the same storage: MetaTensor would carry its metadata through every step.
        values = result.as_tensor() if isinstance(result, MetaTensor) else result
        if values.ndim != 3 or not values.is_floating_point():
            raise ValueError(
                f"Simplex noise needs a float image (C, H, W), got {values.dtype} of shape {tuple(values.shape)}. "
                "Scale it to [0, 1] first."
            )
        low, high = (float(v) for v in values.aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(
                f"Simplex noise needs values in [0, 1], got {low:.4g} to {high:.4g}. Scale the image first."
            )

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
