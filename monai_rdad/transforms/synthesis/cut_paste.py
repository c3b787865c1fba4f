# SPDX-License-Identifier: Apache-2.0
"""CutPaste on batches: square patches of images, pasted elsewhere in the same images, all images at once.

:py:class:`~monai_rdad.transforms.synthesis.RandCutPaste` is the same for one image: it draws by the same function and
paints with the same function, on a smaller window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from .patch import side_range

# Mixtures of patch sizes by name: (weight, smallest, largest side as fractions of the image's side). Ge et al.
# (Neurocomputing 651, 130994) give pixels of images of 256 x 256; for classifying OCT they use the small ones only.
PATCH_SIZES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "mixed": ((0.2, 150 / 256, 200 / 256), (0.3, 64 / 256, 100 / 256), (0.5, 10 / 256, 32 / 256)),
    "small": ((1.0, 10 / 256, 32 / 256),),
}

# Uniform numbers that one image takes: size range, side, source, destination, angle and three colour factors.
NUM_DRAWS = 8


class CutPasteParameters(NamedTuple):
    """What is pasted where, one entry per image.

    Args:
        side: of the square patch in pixels, int64 (B,).
        source_top: first row of the patch in the image, int64 (B,).
        source_left: its first column, int64 (B,).
        top: first row of the place where it goes, before rotation, int64 (B,).
        left: its first column, int64 (B,).
        angle: rotation of the patch about the centre of that place, clockwise, in radians, float (B,).
        colour: factors on brightness, contrast and saturation, float (B, 3), or None to leave the patch as it is.
    """

    side: Tensor
    source_top: Tensor
    source_left: Tensor
    top: Tensor
    left: Tensor
    angle: Tensor
    colour: Tensor | None = None

    def to(self, device: torch.device) -> CutPasteParameters:
        """The same on another device."""
        colour = None if self.colour is None else self.colour.to(device)
        side, source_top, source_left, top, left, angle = (value.to(device) for value in self[:6])
        return CutPasteParameters(side, source_top, source_left, top, left, angle, colour)


def check_sizes(sizes: str | Sequence[Sequence[float]]) -> tuple[tuple[float, float, float], ...]:
    """A mixture of patch sizes, by name or given in full.

    Raises:
        ValueError: an unknown name, or not a mixture.
    """
    if isinstance(sizes, str):
        if sizes not in PATCH_SIZES:
            raise ValueError(f"sizes must be one of {', '.join(PATCH_SIZES)}, or a list of ranges, got '{sizes}'.")
        return PATCH_SIZES[sizes]
    if not sizes or not all(len(s) == 3 and s[0] > 0 and 0 < s[1] <= s[2] <= 0.99 for s in sizes):
        raise ValueError(
            "sizes must be a list of (weight, smallest, largest) with weight > 0 and 0 < smallest <= largest <= 0.99, "
            f"fractions of the image's side, got {sizes}."
        )
    return tuple((float(weight), float(low), float(high)) for weight, low, high in sizes)


def check_strengths(blend: float, rotation: float, jitter: float) -> None:
    """Raise a ValueError for values out of their ranges, see :py:func:`cut_paste` and :py:func:`draw_cut_paste`."""
    if not 0 <= blend <= 1 or not 0 <= jitter <= 1:
        raise ValueError(f"blend and jitter must be in [0, 1], got {blend} and {jitter}.")
    if not 0 <= rotation <= 180:
        raise ValueError(f"rotation must be in [0, 180] degrees, got {rotation}.")


def place_patches(
    uniform: Tensor,
    height: int,
    width: int,
    sizes: tuple[tuple[float, float, float], ...],
    rotation: float,
    jitter: float,
) -> CutPasteParameters:
    """Parameters from random numbers.

    Args:
        uniform: float64 (B, NUM_DRAWS), uniform in [0, 1).
        height: of the images.
        width: of the images.
        sizes: mixture of patch sizes, fractions of the shorter side of the images.
        rotation: largest angle in degrees, either way.
        jitter: largest deviation of the colour factors from 1.

    Raises:
        ValueError: the images are too small for one of the size ranges.
    """

    def integers(column: int, count: Tensor) -> Tensor:
        return (uniform[:, column] * count).floor().long()

    ranges = torch.tensor([side_range(min(height, width), (low, high)) for _, low, high in sizes])
    edges = torch.tensor(list(accumulate(weight for weight, _, _ in sizes)), dtype=torch.float64)
    chosen = torch.searchsorted(edges[:-1] / edges[-1], uniform[:, 0].contiguous(), right=True)
    low, high = ranges[chosen].unbind(1)
    side = low + integers(1, high - low + 1)
    columns = width - side + 1
    places = (height - side + 1) * columns
    source = integers(2, places)
    # one of the other places: a patch put back where it was would be no anomaly
    place = integers(3, places - 1)
    place = place + (place >= source)
    angle = (2 * uniform[:, 4] - 1) * math.radians(rotation)
    colour = (1 + (2 * uniform[:, 5:8] - 1) * jitter).float() if jitter > 0 else None
    return CutPasteParameters(
        side, source // columns, source % columns, place // columns, place % columns, angle.float(), colour
    )


def draw_cut_paste(
    batch: int,
    height: int,
    width: int,
    sizes: str | Sequence[Sequence[float]] = "mixed",
    rotation: float = 0.0,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
) -> CutPasteParameters:
    """Draw sizes and places for a batch, each image for itself.

    The source is uniform over the places inside the image, the destination uniform over all other places.

    Args:
        batch: number of images.
        height: of the images.
        width: of the images.
        sizes: "mixed", "small" (see :py:data:`PATCH_SIZES`) or a mixture of one's own: (weight, smallest, largest) per
            range, the last two as fractions of the shorter side of the images, at most 0.99. The side is a uniform
            integer of its range.
        rotation: largest angle of the patch in degrees, either way, 0 to 180.
        jitter: largest deviation from 1 of the factors on brightness, contrast and saturation, 0 to 1.
        generator: source of the random numbers, on whose device they are drawn; None for torch's global one.

    Returns:
        Parameters on the CPU, whatever the generator's device.

    Raises:
        ValueError: an argument is out of its range, or the images are too small for one of the size ranges.
    """
    mixture = check_sizes(sizes)
    check_strengths(0.0, rotation, jitter)
    device = torch.device("cpu") if generator is None else generator.device
    uniform = torch.rand((batch, NUM_DRAWS), dtype=torch.float64, generator=generator, device=device).cpu()
    return place_patches(uniform, height, width, mixture, rotation, jitter)


def cut_paste(
    images: Tensor, parameters: CutPasteParameters, blend: float = 0.2, clip: bool = True
) -> tuple[Tensor, Tensor]:
    """Paste a patch of each image elsewhere into it: ``patch + blend * image`` inside, the image outside.

    A rotated patch turns about the centre of its place, with each pixel the nearest one of the patch; corners that then
    stick out of the image are cut off.

    Args:
        images: float (B, C, H, W) with values in [0, 1], on any device.
        parameters: as :py:func:`draw_cut_paste` gives them for images of this size.
        blend: factor on the pixels pasted over, in [0, 1]: 0.2 in ESC-DRKD (Ge et al., Neurocomputing 651, 130994), 0,
            plain replacement, in CutPaste (Li et al., CVPR 2021, arXiv 2104.04015).
        clip: clip the patch to [0, 1].

    Returns:
        The corrupted images, and the masks, uint8 (B, 1, H, W): 1 where something was pasted, 0 elsewhere.

    Raises:
        ValueError: not such images, not as many parameters, or a blend out of its range.
    """
    check_strengths(blend, 0.0, 0.0)
    if images.ndim != 4 or not images.is_floating_point() or len(images) != len(parameters.side):
        raise ValueError(
            f"CutPaste needs float images (B, C, H, W), as many as parameters ({len(parameters.side)}), got "
            f"{images.dtype} of shape {tuple(images.shape)}."
        )
    window = (0, 0, images.shape[2], images.shape[3])
    return paste_window(images, parameters.to(images.device), window, blend, clip)


def paste_window(
    images: Tensor, parameters: CutPasteParameters, window: tuple[int, int, int, int], blend: float, clip: bool
) -> tuple[Tensor, Tensor]:
    """:py:func:`cut_paste` for the part of the images that a window (top, left, height, width) shows."""
    top, left, height, width = window
    side, source_top, source_left, to_top, to_left = (value[:, None, None] for value in parameters[:5])
    cos, sin = parameters.angle.cos()[:, None, None], parameters.angle.sin()[:, None, None]
    # centres of the window's pixels, seen from the centre of the patch's place ...
    y = torch.arange(top, top + height, device=images.device)[:, None] + 0.5 - (to_top + side / 2)
    x = torch.arange(left, left + width, device=images.device) + 0.5 - (to_left + side / 2)
    # ... and, turned back, from the corner of the patch
    v = (cos * y - sin * x + side / 2).floor().long()
    u = (sin * y + cos * x + side / 2).floor().long()
    inside = (v >= 0) & (v < side) & (u >= 0) & (u < side)
    index = torch.where(inside, (source_top + v) * images.shape[3] + source_left + u, 0)
    index = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    patch = images.flatten(2).gather(2, index).unflatten(2, (height, width))
    inside = inside[:, None]
    if parameters.colour is not None:
        patch = _recolour(patch, inside, parameters.colour.to(patch.dtype))
    shown = images[:, :, top : top + height, left : left + width]
    pasted = patch + blend * shown
    if clip:
        pasted = pasted.clamp(0.0, 1.0)
    return torch.where(inside, pasted, shown), inside.to(torch.uint8)


def _recolour(patch: Tensor, inside: Tensor, colour: Tensor) -> Tensor:
    """Brightness about zero, contrast about the mean of the patch, saturation about the mean of the channels."""
    brightness, contrast, saturation = colour[:, :, None, None, None].unbind(1)
    patch = brightness * patch
    # means and no sums, which float16 could not hold
    mean = (patch * inside).mean(dim=(1, 2, 3), keepdim=True) / inside.to(patch.dtype).mean(dim=(2, 3), keepdim=True)
    patch = contrast * (patch - mean) + mean
    grey = patch.mean(dim=1, keepdim=True)
    return saturation * (patch - grey) + grey
