# SPDX-License-Identifier: Apache-2.0
"""Is a file there, and is it whole? Answered as cheaply as each format allows, without keeping a pixel."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from monai_rdad.formats import NIFTI_SUFFIXES, dicom_files, file_kind

__all__ = ["content_digest", "content_size", "is_volume", "probe", "same_size", "uniform_batch_size"]

CHUNK = 1 << 20


def probe(path: str) -> tuple[int, ...]:
    """Checks that an image file is complete and returns its size.

    PNG by its checksums, other pictures by decoding them (JPEG at an eighth of its size), NIfTI and uncompressed
    DICOM by comparing the header with the amount of data. Values (NaN, constant images) are the reader's business.

    Returns:
        (rows, columns) of a picture or DICOM file, (slices, rows, columns) of a DICOM series or a multi-frame file, the
        dimensions of a NIfTI file in its own order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unsupported or incomplete.
    """
    kind = file_kind(path)
    try:
        if kind == "picture":
            return _probe_picture(path)
        if kind == "nifti":
            return _probe_nifti(path)
        if os.path.isdir(path):
            return _probe_series(path)
        return _probe_dicom(path)
    except Exception as error:  # decoders raise many types: OSError, SyntaxError, EOFError, zlib.error ...
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split())}). Replace the file.") from error


def _probe_picture(path: str) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        size = (image.height, image.width)
        if image.format == "PNG":
            image.verify()
        else:
            image.draft(None, (image.width // 8, image.height // 8))
            image.load()
    return size


def _probe_nifti(path: str) -> tuple[int, ...]:
    import nibabel

    shape = _nifti_shape(path)
    image: Any = nibabel.load(path)
    if len(shape) > 3:
        raise ValueError(f"shape {image.shape} has more than three dimensions; save each volume as its own file")
    proxy = image.dataobj  # of a loaded file; its type as nibabel declares it lacks the offset
    needed = proxy.offset + math.prod(shape) * image.get_data_dtype().itemsize
    present = _unpacked_size(path, needed) if path.lower().endswith(".gz") else os.path.getsize(path)
    if present < needed:
        raise ValueError(f"it is cut off: {present} of {needed} bytes")
    return shape


def _nifti_shape(path: str) -> tuple[int, ...]:
    """Dimensions without trailing ones of size 1."""
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image is one as well
        raise ValueError("not a NIfTI file")
    shape = list(image.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _unpacked_size(path: str, expected: int) -> int:
    """Size of a gzip file's content; raises EOFError when it is cut off."""
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        # The trailer of a whole single-member file is the size modulo 2^32: the usual case costs no unpacking.
        if int.from_bytes(file.read(4), "little") == expected % 2**32:
            return expected
    total = 0
    with gzip.open(path) as content:
        while block := content.read(CHUNK):
            total += len(block)
    return total


def _probe_dicom(path: str) -> tuple[int, ...]:
    import pydicom

    data = pydicom.dcmread(path)
    if "PixelData" not in data:
        raise ValueError("it holds no pixels, or is cut off")
    frames = int(data.get("NumberOfFrames") or 1)
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_private and not syntax.is_compressed:
        bits = data.Rows * data.Columns * data.SamplesPerPixel * frames * data.BitsAllocated
        # 4:2:2 stores two thirds of the samples.
        bits = bits * 2 // 3 if data.PhotometricInterpretation == "YBR_FULL_422" else bits
        if len(data.PixelData) < bits // 8:
            raise ValueError(f"it is cut off: {len(data.PixelData)} of {bits // 8} bytes of pixels")
    size = (int(data.Rows), int(data.Columns))
    return size if frames == 1 else (frames, *size)


def _probe_series(folder: str) -> tuple[int, ...]:
    from monai_rdad.dicom import read_stack  # with NumPy, which a manifest of pictures does not need

    stack = read_stack(folder)
    for file in stack.files:
        _probe_dicom(file)
    return stack.shape[::-1]


def is_volume(path: str | os.PathLike[str]) -> bool:
    """Whether a file, or a folder with a DICOM series, is read as a volume: more than one slice. From its header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unsupported, or not readable.
    """
    path = os.fspath(path)
    kind = file_kind(path)
    if kind == "picture":
        return False
    from monai_rdad.dicom import read_stack

    try:
        shape = _nifti_shape(path) if kind == "nifti" else read_stack(path).shape
    except Exception as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())}). Replace it.") from error
    return len([size for size in shape if size > 1]) == 3


def uniform_batch_size(items: Sequence[Mapping[str, Any]], batch_size: int) -> int:
    """``batch_size``, or 1 where one of the items is a volume: volumes differ in their numbers of slices.

    Args:
        items: with the path of an "image".
        batch_size: for images.
    """
    return 1 if any(is_volume(item["image"]) for item in items) else batch_size


def same_size(image: tuple[int, ...], mask: tuple[int, ...], image_path: str, mask_path: str) -> bool:
    """Do the sizes of :func:`probe` agree?

    NIfTI files may hold their axes in any order and DICOM series come slices first; there the dimensions are compared
    without order. ``ReadMaskd`` compares them again, in one orientation.
    """
    if image_path.lower().endswith(NIFTI_SUFFIXES) or mask_path.lower().endswith(NIFTI_SUFFIXES):
        return sorted(d for d in image if d > 1) == sorted(d for d in mask if d > 1)
    return image == mask


def _content_files(path: str) -> list[str]:
    return dicom_files(path) if os.path.isdir(path) else [path]


def content_size(path: str) -> int:
    """Bytes of a file, or of the DICOM files in a folder."""
    return sum(os.path.getsize(file) for file in _content_files(path))


def content_digest(path: str) -> bytes:
    """Digest of a file's bytes, or of those of the DICOM files in a folder."""
    digest = hashlib.sha256()
    for name in _content_files(path):
        with open(name, "rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
    return digest.digest()
