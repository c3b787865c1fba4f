# SPDX-License-Identifier: Apache-2.0
"""Intensities: from what a file holds to [0, 1], and to bytes and back."""

# No postponed annotations: a function of this file is compiled by TorchScript.
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait
from monai.utils import convert_to_tensor
from torch import Tensor

__all__ = ["DequantizeIntensity", "NormalizeByPreset", "QuantizeIntensity", "round_to_bytes"]

LOW, HIGH = 0.5, 99.5  # percentiles


def round_to_bytes(image: Tensor, tie: float = 1e-3) -> Tensor:
    """Values in [0, 1] to whole numbers from 0 to 255, as floats.

    Halves, frequent where an 8-bit image is resized by a simple ratio, go up, and so does what is ``tie`` below one:
    the last bit of a value, which depends on the library that resized it, then decides nothing.
    """
    return (image * 255 + tie).round().clamp(0, 255)


class NormalizeByPreset(Transform):
    """Scales an image to float32 in [0, 1] and clips it there.

    Presets:
        "8bit": divided by 255.
        "percentile": the range between the percentiles 0.5 and 99.5 of the foreground becomes [0, 1]. Foreground is
            every voxel above the image's minimum: the empty surroundings of a brain or a fan-shaped scan, which may
            fill most of an image, then do not shift the percentiles. Taken over all channels and slices together, so
            that colours and the differences between slices are kept.
        "ct": the window of width ``window[1]`` around ``window[0]``, in Hounsfield units.
        "auto": "8bit" for uint8, "percentile" for everything else.

    Args:
        preset: one of the above.
        window: (level, width) of the preset "ct"; the default is a brain window.

    Raises:
        ValueError: unknown preset, window without positive width; (on call) values outside 0..255 for "8bit".
    """

    PRESETS = ("auto", "8bit", "percentile", "ct")

    def __init__(self, preset: str = "auto", window: Sequence[float] = (40.0, 80.0)) -> None:
        if preset not in self.PRESETS:
            raise ValueError(f"Unknown intensity preset '{preset}'. Choose one of: {', '.join(self.PRESETS)}.")
        if len(window) != 2 or not window[1] > 0:
            raise ValueError(f"window is {tuple(window)}, it must be (level, width) with a positive width.")
        self.preset = preset
        self.window = (float(window[0]), float(window[1]))

    def __call__(self, img: Any) -> Tensor:
        """Float32 tensor (C, ...) of the same shape; meta data are kept."""
        image = convert_to_tensor(img, track_meta=get_track_meta())
        low, high = self._range(image)
        return ((image.to(torch.float32) - low) / (high - low)).clamp_(0, 1)

    def _range(self, image: Tensor) -> tuple[float, float]:
        preset = self.preset
        if preset == "auto":
            preset = "8bit" if image.dtype == torch.uint8 else "percentile"
        if preset == "ct":
            level, width = self.window
            return level - width / 2, level + width / 2
        if preset == "8bit":
            if image.dtype != torch.uint8 and (image.min() < 0 or image.max() > 255):
                raise ValueError(
                    f"{getattr(image, 'meta', {}).get('filename_or_obj', 'The image')}: the preset '8bit' needs values "
                    f"in 0..255, here they are in {image.min():g}..{image.max():g}. Use 'auto' or 'percentile'."
                )
            return 0.0, 255.0
        values = np.asarray(image)
        smallest = float(values.min())
        foreground = values[values > smallest]
        if not foreground.size:  # constant: zeros
            return smallest, smallest + 1.0
        low, high = (float(v) for v in np.percentile(foreground, (LOW, HIGH)))
        # An image of two values has only one above the minimum.
        return (low, high) if high > low else (smallest, high)


class QuantizeIntensity(Transform):
    """Float in [0, 1] to uint8: 255 x to the nearest whole number, clipped; a contiguous tensor.

    Ends what a data set caches: a quarter of the memory of float32, and the error is at most 1/510, but for the ties of
    :func:`round_to_bytes`.

    Args:
        track_meta: keep the meta data, which inference needs to bring a map back into the image's geometry.
    """

    def __init__(self, track_meta: bool = False) -> None:
        self.track_meta = track_meta

    def __call__(self, img: Any) -> Tensor:
        """Uint8 tensor of the same shape."""
        image = convert_to_tensor(img, track_meta=self.track_meta)
        return round_to_bytes(image).to(torch.uint8).contiguous()


# Nothing here is random. But MONAI's caching data sets keep what precedes the first random transform, and this one
# must come after: declared random, it makes them cache bytes instead of floats.
class DequantizeIntensity(Transform, RandomizableTrait):
    """Uint8 to float32 in [0, 1]: divided by 255. Undoes :class:`QuantizeIntensity` to within 1/510."""

    def __call__(self, img: Any) -> Tensor:
        """Float32 tensor of the same shape."""
        return convert_to_tensor(img, track_meta=isinstance(img, MetaTensor)).to(torch.float32).div_(255)
