# SPDX-License-Identifier: Apache-2.0
"""What to infer on: a file, a series, or a folder of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from monai_rdad.data.manifest import Item, PathLike, check_files
from monai_rdad.formats import dicom_files, file_kind

__all__ = ["list_inputs"]


def list_inputs(path: PathLike, on_error: Literal["raise", "skip"] = "raise") -> list[Item]:
    """Items {"image", "name"} for inference, each checked for being complete.

    Args:
        path: an image file, a folder with one DICOM series, or a folder with image files and such folders. DICOM
            files in one folder are taken as a volume as soon as two of one series have a position in space, and then
            all of them have to fit; otherwise each is an image.

        on_error: "raise", or "skip" to leave out broken files with a warning each.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: unsupported or broken files, or no image in the folder.
    """
    source = Path(path).expanduser().absolute()
    if not source.is_dir():
        file_kind(source)  # what is wrong with a single file needs no list of files
    if not source.is_dir() or _is_series(source):
        items = [{"image": str(source), "name": source.name}]
    else:
        items = [{"image": str(entry), "name": entry.name} for entry in sorted(source.iterdir()) if _is_input(entry)]
    if not items:
        raise ValueError(f"{source}: no image in this folder. Name an image file, or the folder that holds the images.")
    splits = {"input": items}
    check_files(splits, source, skip=on_error == "skip" and source.is_dir())
    return splits["input"]


def _is_series(folder: Path) -> bool:
    """Whether the DICOM files in a folder want to be a volume: two of one series, or all there are, have a position."""
    import pydicom

    tags = ["SeriesInstanceUID", "ImagePositionPatient"]
    headers = [pydicom.dcmread(file, specific_tags=tags, stop_before_pixels=True) for file in dicom_files(folder)]
    located = Counter(str(h.get("SeriesInstanceUID")) for h in headers if "ImagePositionPatient" in h)
    return max(located.values(), default=0) > 1 or (len(headers) == 1 and bool(located))


def _is_input(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return _is_series(path)
    try:
        file_kind(path)
    except ValueError:
        return False
    return True
