# SPDX-License-Identifier: Apache-2.0
"""DICOM objects of maps: read back by highdicom and pydicom, in the source's geometry and study."""

from __future__ import annotations

import builtins
import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Invertd
from pydicom import dcmread
from pydicom.dataset import Dataset as Header
from torch import nn

from monai_rdad.data import list_inputs
from monai_rdad.inferers import SlicewiseInferer
from monai_rdad.transforms import NormalizeByPresetd, ReadImaged, ResizeInPlaned, ScoreReduction
from monai_rdad.visualize.writer import PredictionWriter

hd = pytest.importorskip("highdicom")

SIZE = 64
PATIENT = {
    "PatientName": "Doe^Jane",
    "PatientID": "PID-4711",
    "PatientBirthDate": "19700102",
    "PatientSex": "F",
    "StudyInstanceUID": "1.2.826.0.1.55",
    "StudyDate": "20200202",
    "StudyTime": "101112",
    "StudyID": "STUDY-9",
    "AccessionNumber": "ACC-8",
    "ReferringPhysicianName": "Who^Doctor",
    "FrameOfReferenceUID": "1.2.77",
    "SeriesNumber": 3,
    "InstitutionName": "Hospital of Nowhere",
}
ROW, COLUMN = (np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0][i] for i in (0, 1))  # oblique
SLICES = 5


class Brightness(nn.Module):
    """The map is twice the image's brightness."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 2 * image.mean(1, keepdim=True)


def series(write: Callable[..., Path], folder: Path, **attributes: Any) -> Path:
    """A dark oblique series with a bright block in slice 3; file names run against the positions."""
    folder.mkdir()
    for k in range(SLICES):
        pixels = np.full((SIZE, SIZE), 20, np.uint8)
        pixels[:10] = 0
        if k == 3:
            pixels[20:30, 40:44] = 255
        position = np.array([1.0, 2, 3]) + 3.0 * k * np.cross(ROW, COLUMN)
        write(
            folder / f"{9 - k}.dcm",
            pixels,
            number=9 - k,
            **{"ImagePositionPatient": position.round(6).tolist(), "ImageOrientationPatient": [*ROW, *COLUMN]}
            | PATIENT
            | attributes,
        )
    return folder


def infer(source: Path, out: Path, **kwargs: Any) -> list[dict[str, str]]:
    before = Compose(
        [ReadImaged("image"), NormalizeByPresetd("image", preset="8bit"), ResizeInPlaned("image", size=SIZE)]
    )
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(list_inputs(source), before), batch_size=1),
        network=Brightness(),
        inferer=SlicewiseInferer(),
        postprocessing=Invertd(["pred", "image"], before, orig_keys="image", nearest_interp=False),
        val_handlers=[PredictionWriter(out, ScoreReduction("max"), **{"dicom": True, "threshold": 1.5} | kwargs)],
    ).run()
    with open(out / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def position(frame: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient)


def test_objects_lie_where_the_series_lies(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    folder, out = series(write_dicom, tmp_path / "scan"), tmp_path / "out"
    (row,) = infer(folder, out)
    assert row["map"] == "scan_map.nii.gz"
    sources = {tuple(float(v) for v in d.ImagePositionPatient): d for d in map(dcmread, folder.iterdir())}

    # the parametric map: values as in the NIfTI file, each frame in the place of its slice, and referring to it
    values: Any = nibabel.load(out / "scan_map.nii.gz")
    planes = values.get_fdata(dtype=np.float32).transpose(2, 1, 0)
    result = dcmread(out / "scan_map.dcm")
    pixels = np.frombuffer(result.FloatPixelData, np.float32).reshape(SLICES, SIZE, SIZE)
    frames = result.PerFrameFunctionalGroupsSequence
    assert len(frames) == SLICES
    for frame, plane in zip(frames, pixels, strict=True):
        place = min(sources, key=lambda p: float(np.linalg.norm(np.subtract(p, position(frame)))))
        np.testing.assert_allclose(position(frame), place, atol=1e-4)
        np.testing.assert_allclose(plane, sources[place].pixel_array * (2 / 255), atol=1e-6)
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == sources[place].SOPInstanceUID
    np.testing.assert_allclose(np.sort(pixels, 0), np.sort(planes, 0), atol=1e-6)
    shared = result.SharedFunctionalGroupsSequence[0]
    np.testing.assert_allclose(shared.PixelMeasuresSequence[0].PixelSpacing, [0.5, 0.75])
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose([float(v) for v in orientation], [*ROW, *COLUMN], atol=1e-6)

    # the segmentation: exactly the block
    segmentation = hd.seg.segread(out / "scan_seg.dcm")
    assert segmentation.number_of_segments == 1
    assert segmentation.get_segment_description(1).segment_label == "Anomaly"
    uids = [sources[p].SOPInstanceUID for p in sorted(sources, key=lambda p: float(p @ np.cross(ROW, COLUMN)))]
    found = segmentation.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)[..., 0]
    np.testing.assert_array_equal(found, planes >= 1.5)
    assert found[3, 20:30, 40:44].all() and found.sum() == 40

    # the NIfTI map, by SimpleITK, against the series
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    original, written = reader.Execute(), SimpleITK.ReadImage(str(out / "scan_map.nii.gz"))
    assert original.GetSize() == written.GetSize()
    for part in ("Origin", "Spacing", "Direction"):
        np.testing.assert_allclose(getattr(written, f"Get{part}")(), getattr(original, f"Get{part}")(), atol=1e-4)

    # the lesion list: the centre of the block in the patient's space
    with open(out / "lesions.csv", newline="", encoding="utf-8") as file:
        (lesion,) = csv.DictReader(file)
    left, back, up = original.TransformContinuousIndexToPhysicalPoint((41.5, 24.5, 3))
    centre = [float(lesion[k]) for k in ("x_mm", "y_mm", "z_mm")]
    np.testing.assert_allclose(centre, [-left, -back, up], atol=1e-3)
    assert float(lesion["volume_ml"]) == pytest.approx(40 * 0.5 * 0.75 * 3 / 1000)
    assert float(lesion["peak"]) == pytest.approx(2, abs=1e-5) and int(lesion["voxels"]) == 40
    content = json.loads((out / "scan_volume.json").read_text())
    assert content["space"] == "RAS" and content["threshold"] == 1.5 and len(content["slices"]) == SLICES
    assert content["lesions"][0]["volume_ml"] == float(lesion["volume_ml"])


def test_objects_join_the_study_and_nothing_else_names_the_patient(
    tmp_path: Path,
    write_dicom: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, out = series(write_dicom, tmp_path / "scan"), tmp_path / "out"
    with caplog.at_level(logging.DEBUG):
        infer(folder, out)
    first = dcmread(folder / "9.dcm")
    for name in ("scan_map.dcm", "scan_seg.dcm"):
        result = dcmread(out / name)
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"):
            assert result[keyword].value == first[keyword].value
        assert result.FrameOfReferenceUID == first.FrameOfReferenceUID
        assert result.SeriesInstanceUID != first.SeriesInstanceUID and "InstitutionName" not in result
    uid = first.SOPInstanceUID
    secrets = [uid] + [
        str(v) for k, v in PATIENT.items() if k not in ("PatientSex", "FrameOfReferenceUID", "SeriesNumber")
    ]
    texts = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".dcm"}
    assert len(texts) == 6
    texts |= {"log": caplog.text.encode(), "streams": "".join(capfd.readouterr()).encode()}
    import gzip

    texts["scan_map.nii.gz"] = gzip.decompress(texts["scan_map.nii.gz"])
    for name, text in texts.items():
        for secret in secrets:
            assert secret.encode() not in text, name


def test_order_of_a_multiframe_source(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    """Frames in any order: each frame of the map refers to the frame that it is of."""
    order = [2, 0, 1]
    frames = np.zeros((3, SIZE, SIZE), np.uint8)
    frames[np.arange(3), 8, order] = 255  # slice k has its dot in column k
    path = write_dicom(tmp_path / "m.dcm", frames[0], position=None, **PATIENT)
    data = dcmread(path)
    data.NumberOfFrames, data.PixelData = 3, frames.tobytes()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    measures, orientation, shared = Header(), Header(), Header()
    measures.PixelSpacing, measures.SliceThickness = [1, 1], 3
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    data.SharedFunctionalGroupsSequence, groups = [shared], []
    for k in order:
        place, group = Header(), Header()
        place.ImagePositionPatient = [0, 0, 3 * k]
        group.PlanePositionSequence = [place]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    data.save_as(path)
    infer(path, tmp_path / "out")
    result = dcmread(tmp_path / "out/m_map.dcm")
    pixels = np.frombuffer(result.FloatPixelData, np.float32).reshape(3, SIZE, SIZE)
    for frame, plane in zip(result.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        assert plane[8].argmax() == position(frame)[2] / 3
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert order[int(source.ReferencedFrameNumber) - 1] == position(frame)[2] / 3


def test_single_slices_and_radiographs(
    tmp_path: Path, write_dicom: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    pixels[5:9, 40:44] = 255
    (tmp_path / "in").mkdir()
    write_dicom(tmp_path / "in/a.dcm", pixels, **PATIENT)
    elsewhere = {k: v for k, v in PATIENT.items() if k != "FrameOfReferenceUID"}
    write_dicom(tmp_path / "in/b.dcm", pixels, position=None, series="1.2.4", **elsewhere)
    with caplog.at_level(logging.WARNING):
        rows = infer(tmp_path / "in", tmp_path / "out")
    assert [row["map"] for row in rows] == ["a_map.png", "b_map.png"]
    assert "b.dcm: no frame of reference" in caplog.text and "a.dcm: no frame" not in caplog.text
    found = sorted(p.name for p in (tmp_path / "out").glob("*.dcm"))
    assert found == ["a_map.dcm", "a_seg.dcm"]
    result = dcmread(tmp_path / "out/a_map.dcm")
    plane = np.frombuffer(result.FloatPixelData, np.float32).reshape(SIZE, SIZE)
    np.testing.assert_allclose(plane, pixels * (2 / 255), atol=1e-6)


def test_nothing_found_is_no_segmentation(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    folder = series(write_dicom, tmp_path / "scan")
    infer(folder, tmp_path / "high", threshold=5.0)
    infer(folder, tmp_path / "none", threshold=None)
    for out in (tmp_path / "high", tmp_path / "none"):
        assert [p.name for p in out.glob("*.dcm")] == ["scan_map.dcm"]
        assert (out / "lesions.csv").read_text().count("\n") == 1
    infer(folder, tmp_path / "off", dicom=False)
    assert not list((tmp_path / "off").glob("*.dcm"))


def test_anonymised_files(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    """Without patient attributes that may be empty; without what may not, one clear error."""
    gone = dict.fromkeys(k for k in PATIENT if k not in ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesNumber"))
    folder = series(write_dicom, tmp_path / "scan")
    for file in folder.iterdir():
        data = dcmread(file)
        for keyword in gone:
            delattr(data, keyword)
        data.save_as(file)
    infer(folder, tmp_path / "out")
    assert dcmread(tmp_path / "out/scan_map.dcm").PatientName == ""
    for file in folder.iterdir():
        data = dcmread(file)
        del data.StudyInstanceUID
        data.save_as(file)
    with pytest.raises(ValueError, match="scan: no DICOM object can be made of its map .*StudyInstanceUID"):
        infer(folder, tmp_path / "broken")


def test_without_highdicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at the start and not after hours."""
    real = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "highdicom":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImportError, match=r"pip install 'monai_rdad\[dicom\]'"):
        PredictionWriter(tmp_path, ScoreReduction("max"), dicom=True)
    PredictionWriter(tmp_path, ScoreReduction("max"))
