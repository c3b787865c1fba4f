# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
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
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of phantoms, small in number and size."""
    from PIL import Image

    from monai_rdad.data.phantoms import phantom_slice

    folder = tmp_path_factory.mktemp("tiny")
    manifest: dict[str, list[dict[str, Any]]] = {}
    index = 0
    for split, count, abnormal in (("training", 6, 0), ("validation", 2, 1), ("calibration", 1, 0), ("testing", 5, 3)):
        manifest[split] = []
        for i in range(count):
            image, mask = phantom_slice(np.random.default_rng(index), lesion=i < abnormal, size=80)
            name = f"{split}/{i}.png"
            (folder / split).mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / name)
            item = {"image": name, "label": int(i < abnormal), "group": f"subject{index}"}
            if i < abnormal:
                item["mask"] = f"{split}/{i}_mask.png"
                Image.fromarray(mask * 255).save(folder / item["mask"])
            manifest[split].append(item)
            index += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


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
