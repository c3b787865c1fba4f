# SPDX-License-Identifier: Apache-2.0
"""Is a file there, and is it whole? Answered as cheaply as each format allows, without keeping a pixel."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
from typing import Any

from monai_rdad.formats import NIFTI_SUFFIXES, dicom_files, file_kind

__all__ = ["content_digest", "content_size", "probe", "same_size"]

CHUNK = 1 << 20


def probe(path: str) -> tuple[int, ...]:
    """Checks that an image file is complete and returns its size.

    PNG by its checksums, other pictures by decoding them (JPEG at an eighth of its size), NIfTI and uncompressed
    DICOM by comparing the header with the amount of data. Values (NaN, constant images) are the reader's business.

    Returns:
        (rows, columns) of a picture or DICOM file, (slices, rows, columns) of a DICOM series, the dimensions of a
        NIfTI file in its own order.

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
        return _probe_dicom(path)[0]
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

    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image is one as well
        raise ValueError("not a NIfTI file")
    shape = list(image.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 3:
        raise ValueError(f"shape {image.shape} has more than three dimensions; save each volume as its own file")
    proxy: Any = image.dataobj  # of a loaded file; its type as nibabel declares it lacks the offset
    needed = proxy.offset + math.prod(shape) * image.get_data_dtype().itemsize
    present = _unpacked_size(path, needed) if path.lower().endswith(".gz") else os.path.getsize(path)
    if present < needed:
        raise ValueError(f"it is cut off: {present} of {needed} bytes")
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


def _probe_dicom(path: str) -> tuple[tuple[int, int], str]:
    """Rows and columns, and the series it belongs to."""
    import pydicom

    data = pydicom.dcmread(path)
    if "PixelData" not in data:
        raise ValueError("it holds no pixels, or is cut off")
    if not data.file_meta.TransferSyntaxUID.is_compressed:
        bits = data.Rows * data.Columns * data.SamplesPerPixel * int(data.get("NumberOfFrames", 1)) * data.BitsAllocated
        # 4:2:2 stores two thirds of the samples.
        bits = bits * 2 // 3 if data.PhotometricInterpretation == "YBR_FULL_422" else bits
        if len(data.PixelData) < bits // 8:
            raise ValueError(f"it is cut off: {len(data.PixelData)} of {bits // 8} bytes of pixels")
    return (int(data.Rows), int(data.Columns)), str(data.get("SeriesInstanceUID"))


def _probe_series(folder: str) -> tuple[int, ...]:
    found = [_probe_dicom(file) for file in dicom_files(folder)]
    if not found:
        raise ValueError("the folder holds no DICOM file")
    sizes, series = {size for size, _ in found}, {uid for _, uid in found}
    if len(series) > 1 or len(sizes) > 1:
        raise ValueError(f"the folder holds {len(series)} DICOM series with {len(sizes)} sizes; one of each is needed")
    return (len(found), *sizes.pop())


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
