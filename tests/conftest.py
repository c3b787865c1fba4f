# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# two processes of pytest-xdist share the cores; spinning threads would slow each other down
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

torch.set_flush_denormal(True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real images for checks that need them; the test is skipped where there is none."""
    folder = Path(os.environ.get("MONAI_RDAD_TEST_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real images: set MONAI_RDAD_TEST_DATA to a folder of data sets")
    return folder.resolve()


@pytest.fixture(scope="session")
def write_dicom() -> Callable[..., Path]:
    """Writer of one uncompressed DICOM file from an array (rows, columns[, 3]); None removes an attribute."""

    def write(
        path: Path,
        pixels: np.ndarray[Any, Any],
        series: str = "1.2.3",
        position: tuple[float, float, float] | None = (0.0, 0.0, 0.0),
        photometric: str = "MONOCHROME2",
        rescale: tuple[float, float] | None = None,
        number: int = 1,
        **attributes: Any,
    ) -> Path:
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, generate_uid

        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.Modality = series, "1.2.4", "MR"
        data.InstanceNumber = number
        data.Rows, data.Columns = pixels.shape[:2]
        data.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
        if pixels.ndim == 3:
            data.PlanarConfiguration = 0
        data.PhotometricInterpretation = photometric
        data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        if position is not None:
            data.PixelSpacing = [0.5, 0.75]  # between rows, between columns
            data.ImagePositionPatient = list(position)
            data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        if rescale is not None:
            data.RescaleSlope, data.RescaleIntercept = rescale
        data.PixelData = pixels.tobytes()
        for name, value in attributes.items():
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)
        data.save_as(str(path))
        return path

    return write
