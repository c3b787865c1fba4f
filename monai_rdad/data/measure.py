# SPDX-License-Identifier: Apache-2.0
"""What a data set's description and its search for duplicates need of an image, from decoding it once.

The figures of an image are small (about 2 kB), so that those of a hundred thousand images fit into memory while the
images do not.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from monai_rdad.data.probe import content_size
from monai_rdad.formats import dicom_files, file_kind

__all__ = [
    "EDGE",
    "LEVELS",
    "SMALL",
    "Measures",
    "grey_picture",
    "in_threads",
    "measure",
    "perceptual_hash",
    "to_bytes",
]

EDGE = 128
"""Edge in pixels of the grey square that all figures but the file's size and the image's size come from."""
SMALL = 24
"""Edge of the thumbnail that images are compared by."""
LEVELS = 64
"""Bins of the intensity histogram, over [0, 256)."""

_Input = TypeVar("_Input")
_Output = TypeVar("_Output")


@dataclass(slots=True)
class Measures:
    """Figures of one image, reduced to a grey square of 128 pixels with bytes as values.

    Attributes:
        rows: of the image as it is stored; of the middle slice of a volume.
        columns: likewise.
        channels: bands as stored: 1 grey or palette, 3 colour, 4 with alpha.
        file_bytes: size of the file, or of a DICOM series.
        mean: of the square, 0 to 255.
        deviation: standard deviation of the square.
        jpeg_bytes: size of the square as a JPEG of quality 75: how complex the image is, whatever its file format.
        small: uint8 (24, 24).
        code: perceptual hash, see :func:`perceptual_hash`.
        histogram: pixels of the square in 64 bins, uint16.
    """

    rows: int
    columns: int
    channels: int
    file_bytes: int
    mean: float
    deviation: float
    jpeg_bytes: int
    small: NDArray[np.uint8]
    code: int
    histogram: NDArray[np.uint16]


def measure(path: str | os.PathLike[str]) -> Measures:
    """Decode an image and take its figures.

    Args:
        path: any file that a manifest may name. Of a volume its middle slice counts, of a DICOM series its middle file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unsupported or broken; the message does not name the file.
    """
    from PIL import Image

    name = os.fspath(path)
    picture, (rows, columns, channels) = grey_picture(name)
    square = picture.resize((EDGE, EDGE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    values = np.asarray(square)
    stream = io.BytesIO()
    square.save(stream, "JPEG", quality=75)
    small = np.asarray(square.resize((SMALL, SMALL), Image.Resampling.BOX))
    histogram = np.bincount(values.ravel() // (256 // LEVELS), minlength=LEVELS).astype(np.uint16)
    return Measures(
        rows,
        columns,
        channels,
        content_size(name),
        float(values.mean()),
        float(values.std()),
        len(stream.getvalue()),
        small,
        perceptual_hash(values),
        histogram,
    )


def grey_picture(path: str) -> tuple[Any, tuple[int, int, int]]:
    """PIL picture of mode "L" of an image (a JPEG possibly reduced while decoding), and rows, columns, bands as stored.

    Bytes stay as they are; other values are scaled so that the percentiles 0.5 and 99.5 become 0 and 255.
    """
    from PIL import Image

    kind = file_kind(path)
    try:
        if kind == "picture":
            with Image.open(path) as file:
                size = (file.height, file.width, len(file.getbands()))
                file.draft("L" if file.mode == "L" else "RGB", (2 * EDGE, 2 * EDGE))
                if file.mode in ("L", "RGB", "P", "1", "LA", "RGBA", "CMYK", "YCbCr"):
                    return file.convert("L"), size
                values = np.asarray(file)
        elif kind == "nifti":
            import nibabel

            proxy: Any = nibabel.load(path).dataobj  # type: ignore[attr-defined]
            values = np.asarray(proxy[..., proxy.shape[2] // 2] if len(proxy.shape) > 2 else proxy).T
            size = values.shape[0], values.shape[1], 1
        else:
            import SimpleITK

            files = dicom_files(path) if os.path.isdir(path) else [path]
            values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(files[len(files) // 2]))
            values = values[values.shape[0] // 2]
            size = values.shape[0], values.shape[1], values.shape[2] if values.ndim == 3 else 1
    except Exception as error:  # decoders raise many types
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split())[:200]}). Replace the file.") from error
    picture = Image.fromarray(to_bytes(np.ascontiguousarray(values)))
    return picture.convert("L"), size


def to_bytes(
    values: NDArray[Any], low: float = 0.5, high: float = 99.5, above: float | None = None
) -> NDArray[np.uint8]:
    """Bytes of an image of any type: unchanged if it holds bytes, else scaled between two percentiles.

    Args:
        values: an image, finite.
        low: percentile that becomes 0.
        high: percentile that becomes 255.
        above: take the percentiles of the values above this one only, for instance 0 of an image without skull.
    """
    if values.dtype == np.uint8:
        return values
    sample = values if above is None else values[values > above]
    if sample.size == 0:
        return np.zeros(values.shape, np.uint8)
    bottom, top = np.percentile(sample, (low, high))
    scaled = (values.astype(np.float32) - np.float32(bottom)) / np.float32(max(top - bottom, 1e-6))
    return (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)


def perceptual_hash(square: NDArray[np.uint8]) -> int:
    """64 bits that copies of an image share, whatever their size, compression and brightness.

    The 64 lowest frequencies of a discrete cosine transform, each compared with their median without the mean
    (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).

    Args:
        square: grey image, (128, 128).
    """
    blocks = square.reshape(32, square.shape[0] // 32, 32, square.shape[1] // 32).mean((1, 3))
    low = (_COSINES @ blocks @ _COSINES.T).ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


_COSINES = np.cos(np.pi / 32 * np.outer(np.arange(8), np.arange(32) + 0.5))


def in_threads(
    function: Callable[[_Input], _Output], inputs: Sequence[_Input], what: str, progress: bool = True
) -> Iterable[_Output]:
    """Results of a function for each input, in order, computed in threads: decoders leave the interpreter lock.

    Args:
        function: of one input.
        inputs: all of them.
        what: name of the progress bar on standard error; the bar is shown in a terminal only.
        progress: whether to show it.
    """
    from tqdm import tqdm

    shown = progress and sys.stderr.isatty()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from tqdm(pool.map(function, inputs), what, len(inputs), disable=not shown, leave=False)
