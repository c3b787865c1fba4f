# SPDX-License-Identifier: Apache-2.0
"""Which files are images, and of what kind; shared by the manifest's checks and the readers. Standard library only."""

from __future__ import annotations

import os
from typing import Literal

__all__ = ["DICOM_SUFFIXES", "NIFTI_SUFFIXES", "PICTURE_SUFFIXES", "FileKind", "dicom_files", "file_kind"]

FileKind = Literal["picture", "nifti", "dicom"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


def file_kind(path: str | os.PathLike[str]) -> FileKind:
    """Kind of an image file, by its suffix; a folder is a DICOM series, and so is a file with DICOM's magic number.

    Args:
        path: an existing file or folder.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: no supported kind; the message lists them.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: there is no such file. Check the path and the data set's folder.")
    name = path.lower()
    if os.path.isdir(path) or name.endswith(DICOM_SUFFIXES):
        return "dicom"
    if name.endswith(PICTURE_SUFFIXES):
        return "picture"
    if name.endswith(NIFTI_SUFFIXES):
        return "nifti"
    # Scanners export DICOM files without a suffix.
    with open(path, "rb") as file:
        if file.read(132)[128:] == b"DICM":
            return "dicom"
    supported = ", ".join(PICTURE_SUFFIXES + NIFTI_SUFFIXES + DICOM_SUFFIXES)
    raise ValueError(f"{path}: not a supported image file ({supported}, folder with a DICOM series). Convert it.")


def dicom_files(folder: str | os.PathLike[str]) -> list[str]:
    """Sorted paths of the DICOM files that lie directly in a folder; other files are passed over."""
    found = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.lower().endswith(PICTURE_SUFFIXES + NIFTI_SUFFIXES) or not os.path.isfile(path):
            continue
        try:
            if file_kind(path) == "dicom":
                found.append(path)
        except ValueError:
            continue
    return found
