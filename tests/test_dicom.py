# SPDX-License-Identifier: Apache-2.0
"""Which DICOM files make a volume, where it lies, and one clear error for everything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from monai_rdad.data import is_volume, list_inputs
from monai_rdad.data.probe import probe
from monai_rdad.dicom import read_stack
from monai_rdad.transforms import ReadImage

Writer = Callable[..., Path]
VOXELS = np.random.default_rng(0).integers(0, 4096, (6, 20, 30)).astype(np.uint16)
TURN = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]  # oblique
ORIENTATIONS = {
    "axial": ([1, 0, 0], [0, 1, 0]),
    "feet first": ([-1, 0, 0], [0, 1, 0]),
    "sagittal": ([0, 1, 0], [0, 0, -1]),
    "oblique": (TURN[0].tolist(), TURN[1].tolist()),
}


def series(write: Writer, folder: Path, orientation: str = "axial", gap: float = 3.0, **options: Any) -> Path:
    """A series whose names and instance numbers are in no order.

    ``change`` maps the index of a slice to attributes, ``without`` is the index of one to leave out, ``shift`` moves
    each slice against the one before; the rest are attributes of all.
    """
    folder.mkdir(exist_ok=True)
    row, column = (np.array(v, float) for v in ORIENTATIONS[orientation])
    change, without = options.pop("change", {}), options.pop("without", None)
    shift = np.array(options.pop("shift", (0, 0, 0)), float)
    for k, name in enumerate(np.random.default_rng(1).permutation(len(VOXELS))):
        position = np.array([5.0, -7.0, 11.0]) + k * (gap * np.cross(row, column) + shift)
        attributes: dict[str, Any] = {
            "ImagePositionPatient": [round(v, 6) for v in position],
            "ImageOrientationPatient": [*row, *column],
            "FrameOfReferenceUID": "1.2.77",
            "SeriesNumber": 4,
        }
        if k == without:
            continue
        write(folder / f"{name}.dcm", VOXELS[k], number=int(name), **attributes | options | change.get(k, {}))
    return folder


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_geometry_is_that_of_simpleitk(tmp_path: Path, write_dicom: Writer, orientation: str) -> None:
    folder = series(write_dicom, tmp_path / "s", orientation)
    stack = read_stack(str(folder))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    assert stack.shape == image.GetSize() == (30, 20, 6) and stack.located
    for index in ((0, 0, 0), (29, 0, 0), (3, 19, 5)):
        left, back, up = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((stack.affine @ [*index, 1])[:3], [-left, -back, up], atol=1e-4)
    assert probe(str(folder)) == (6, 20, 30) and is_volume(folder)
    transform = ReadImage()
    read = transform(folder)
    np.testing.assert_array_equal(transform.inverse(read)[0], VOXELS.transpose(2, 1, 0))


def test_one_slice_is_an_image(tmp_path: Path, write_dicom: Writer) -> None:
    (tmp_path / "s").mkdir()
    write_dicom(tmp_path / "s/a.dcm", VOXELS[0])
    assert not is_volume(tmp_path / "s")
    assert [item["name"] for item in list_inputs(tmp_path / "s")] == ["s"]
    np.testing.assert_array_equal(ReadImage()(tmp_path / "s")[0], VOXELS[0])


def test_rescale_slopes_of_the_slices(tmp_path: Path, write_dicom: Writer) -> None:
    """PET scans have one slope per slice."""
    change = {k: {"RescaleSlope": 0.5 + k, "RescaleIntercept": -k} for k in range(6)}
    image = ReadImage()(series(write_dicom, tmp_path / "s", change=change))
    expected = VOXELS * (0.5 + np.arange(6))[:, None, None] - np.arange(6)[:, None, None]
    np.testing.assert_allclose(image[0], np.moveaxis(expected, 0, -1), rtol=1e-5)


def test_inverted_grey(tmp_path: Path, write_dicom: Writer) -> None:
    folder = series(write_dicom, tmp_path / "s", PhotometricInterpretation="MONOCHROME1")
    image = ReadImage()(folder)
    plain = ReadImage()(series(write_dicom, tmp_path / "plain"))
    assert np.ptp(np.asarray(image) + np.asarray(plain)) == 0  # high values bright


def multiframe(write: Writer, path: Path, order: list[int], located: bool = True) -> Path:
    """An enhanced file whose frames are in the given order of slices."""
    frames = VOXELS[order]
    write(path, VOXELS[0], position=None)
    data = dcmread(path)
    data.NumberOfFrames = len(order)
    data.PixelData = frames.tobytes()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    data.FrameOfReferenceUID = "1.2.77"
    if located:
        measures, orientation = Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 3.0
        orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        shared = Dataset()
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
        data.SharedFunctionalGroupsSequence = [shared]
        groups = []
        for k in order:
            position, group = Dataset(), Dataset()
            position.ImagePositionPatient = [1.0, 2.0, 3.0 * k]
            group.PlanePositionSequence = [position]
            groups.append(group)
        data.PerFrameFunctionalGroupsSequence = groups
    data.save_as(path)
    return path


def test_multiframe(tmp_path: Path, write_dicom: Writer) -> None:
    order = [2, 0, 1, 5, 4, 3]
    path = multiframe(write_dicom, tmp_path / "m.dcm", order)
    stack = read_stack(str(path))
    assert stack.shape == (30, 20, 6) and [order[f] for f in stack.frames] == list(range(6))
    np.testing.assert_allclose(stack.affine, [[-0.75, 0, 0, -1], [0, -0.5, 0, -2], [0, 0, 3, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(ReadImage()(path)[0], np.moveaxis(VOXELS, 0, -1))
    assert probe(str(path)) == (6, 20, 30) and is_volume(path)
    film = multiframe(write_dicom, tmp_path / "film.dcm", [0, 1, 2], located=False)
    assert not read_stack(str(film)).located and read_stack(str(film)).frames == (0, 1, 2)
    with pytest.raises(ValueError, match="two slices lie in one place"):
        read_stack(str(multiframe(write_dicom, tmp_path / "twice.dcm", [0, 1, 1])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"without": 3}, "the gap between .* is 6 mm, elsewhere 3 mm: a slice is missing"),
        (
            {"change": {3: {"ImagePositionPatient": [5, -7, 20.5]}}},
            "is (3|2).5 mm, elsewhere 3 mm: .* not evenly spaced",
        ),
        ({"change": {3: {"ImagePositionPatient": [5, -7, 17]}}}, "1 times two slices lie in one place"),
        ({"change": {3: {"SeriesInstanceUID": "9.9"}}}, r"2 DICOM series: number 4 \(MR\) 5 files, .* 1 files"),
        ({"change": {3: {"ImagePositionPatient": None}}}, "1 of its 6 slices have no ImagePositionPatient"),
        ({"change": {3: {"PixelSpacing": None}}}, "1 of its 6 slices have no PixelSpacing"),
        ({"change": {3: {"PixelSpacing": [0.5, 0.5]}}}, "6 slices differ in distance of pixels: 1 of them"),
        ({"change": {3: {"Rows": 10, "PixelData": bytes(600)}}}, "6 slices differ in size: 1 of them"),
        (
            {"change": {3: {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImageType": ["ORIGINAL", "LOCALIZER"]}}},
            "6 slices differ in orientation: 1 of them .* 1 of them say that they are localizers",
        ),
        ({"shift": (0, 0.5, 0)}, "gantry tilt of 9.5 degrees"),
    ],
)
def test_what_makes_no_volume(tmp_path: Path, write_dicom: Writer, options: Any, message: str) -> None:
    """The same in the manifest's check, in the list of inputs and in the reader."""
    folder = series(write_dicom, tmp_path / "s", **options)
    with pytest.raises(ValueError, match=message):
        ReadImage()(folder)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        list_inputs(folder)


def test_no_series_at_all(tmp_path: Path, write_dicom: Writer) -> None:
    """Radiographs, without positions, are images of their own; a folder named as one series is an error."""
    folder = series(write_dicom, tmp_path / "s", ImagePositionPatient=None)
    for file in folder.iterdir():
        data = dcmread(file)
        data.ImagePositionPatient = None
        del data.ImagePositionPatient
        data.save_as(file)
    assert len(list_inputs(folder)) == 6
    with pytest.raises(ValueError, match="6 of its 6 slices have no ImagePositionPatient"):
        ReadImage()(folder)


def test_compression_without_decoder(tmp_path: Path, write_dicom: Writer) -> None:
    path = write_dicom(tmp_path / "x.dcm", VOXELS[0])
    data = dcmread(path)
    data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")  # high-throughput JPEG 2000
    data.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    data.save_as(path)
    with pytest.raises(ValueError, match=r"cannot be decoded.*1\.2\.840\.10008\.1\.2\.4\.201.*gdcmconv --raw"):
        ReadImage()(path)


def test_real_series(real_data: Path) -> None:
    folder = real_data / "volumes" / "dicom_t1_sag"
    if not folder.is_dir():
        pytest.skip("no dicom_t1_sag")
    stack = read_stack(str(folder))
    assert stack.shape == (256, 256, 35)
    np.testing.assert_allclose(np.linalg.norm(stack.affine[:3, :3], axis=0), [1.015625, 1.015625, 4.8], atol=1e-6)
