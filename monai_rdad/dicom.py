# SPDX-License-Identifier: Apache-2.0
"""Stacks of DICOM slices: which files, in which order, and where they lie; from the headers alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_rdad.formats import dicom_files

__all__ = ["Stack", "read_stack"]

TAGS = [
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "Modality",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PixelSpacing",
    "Rows",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SharedFunctionalGroupsSequence",
    "SliceThickness",
]
UNEVEN = 0.02  # relative difference of gaps, and shift per gap within the plane: rounding stays below
SAME_PLACE = 0.01  # mm
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes point to the left and the back


class Stack(NamedTuple):
    """Slices in the order of their positions along the normal of the slices (row direction x column direction).

    Attributes:
        files: of a series, one per slice; or one multi-frame file.
        frames: of a multi-frame file, in the order of the slices; empty for a series.
        shape: (columns, rows, slices).
        affine: float64 (4, 4), from (column, row, slice) to mm in RAS+.
        located: whether the headers say where the slices lie. If not, there is a single file, and the affine has no
            meaning beyond the distance of pixels.
    """

    files: tuple[str, ...]
    frames: tuple[int, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    located: bool


class _Plane(NamedTuple):
    name: str  # of the file, or the number of the frame: for messages
    size: tuple[int, int]  # rows, columns
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float
    localizer: bool


def read_stack(path: str) -> Stack:
    """The slices of a DICOM file, or of the series in a folder.

    Args:
        path: a DICOM file, or a folder that holds one series and nothing else of DICOM.

    Raises:
        ValueError: no DICOM file; several series; or slices that make no volume: no position, different sizes,
            distances of pixels or orientations, several in one place, gaps of different size, a gantry tilt. The
            message says what there is, and the remedy.
    """
    files = dicom_files(path) if os.path.isdir(path) else [path]
    if not files:
        raise ValueError("the folder holds no DICOM file: name an image file or a folder with one DICOM series")
    headers = [_header(file) for file in files]
    _check_one_series(headers)
    if len(files) > 1:
        planes = [_plane(header, os.path.basename(file)) for header, file in zip(headers, files, strict=True)]
        if frames := sum(int(header.get("NumberOfFrames") or 1) > 1 for header in headers):
            raise ValueError(f"{frames} of its {len(files)} files hold several frames: give each a folder of its own")
        order, affine = _stacked(planes)
        return Stack(tuple(files[i] for i in order), (), (*planes[0].size[::-1], len(files)), affine, True)
    header = headers[0]
    frames = int(header.get("NumberOfFrames") or 1)
    shape = (int(header.Columns), int(header.Rows), frames)
    order = list(range(frames)) if frames > 1 else []
    planes = _frames(header) if frames > 1 else [_plane(header, os.path.basename(files[0]))]
    if len(planes) != frames or any(p.position is None or p.orientation is None for p in planes):
        # a radiograph, or a film: frames without a place in space
        row, column = _floats(header.get("PixelSpacing")) or (1.0, 1.0)
        return Stack((files[0],), tuple(order), shape, RAS @ np.diag([column, row, 1.0, 1.0]), False)
    places, affine = _stacked(planes)
    return Stack((files[0],), tuple(places) if frames > 1 else (), shape, affine, True)


def _header(file: str) -> Any:
    import pydicom

    return pydicom.dcmread(file, specific_tags=TAGS, stop_before_pixels=True)


def _check_one_series(headers: Sequence[Any]) -> None:
    series: dict[str, list[Any]] = {}
    for header in headers:
        series.setdefault(str(header.get("SeriesInstanceUID")), []).append(header)
    if len(series) > 1:
        # numbers and not UIDs: messages end up in logs
        listed = ", ".join(
            f"number {members[0].get('SeriesNumber') or '?'} ({members[0].get('Modality') or '?'}) {len(members)} files"
            for members in list(series.values())[:5]
        )
        more = ", ..." if len(series) > 5 else ""
        raise ValueError(
            f"the folder holds {len(series)} DICOM series: {listed}{more}: give each series a folder of its own"
        )


def _floats(values: Any) -> tuple[float, ...] | None:
    return tuple(float(v) for v in values) if values else None


def _plane(header: Any, name: str) -> _Plane:
    return _Plane(
        name,
        (int(header.Rows), int(header.Columns)),
        _floats(header.get("ImagePositionPatient")),
        _floats(header.get("ImageOrientationPatient")),
        _floats(header.get("PixelSpacing")),
        float(header.get("SliceThickness") or 1.0),
        "LOCALIZER" in (header.get("ImageType") or []),
    )


def _frames(header: Any) -> list[_Plane]:
    """Planes of a multi-frame file by its functional groups; none without them."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    planes = []
    for number, frame in enumerate(header.get("PerFrameFunctionalGroupsSequence") or []):

        def find(group: str, key: str, frame: Any = frame) -> Any:
            for place in (frame, shared):
                if group in place and place[group].value:
                    return place[group].value[0].get(key)
            return None

        planes.append(
            _Plane(
                f"frame {number + 1}",
                (int(header.Rows), int(header.Columns)),
                _floats(find("PlanePositionSequence", "ImagePositionPatient")),
                _floats(find("PlaneOrientationSequence", "ImageOrientationPatient")),
                _floats(find("PixelMeasuresSequence", "PixelSpacing")),
                float(find("PixelMeasuresSequence", "SliceThickness") or 1.0),
                False,
            )
        )
    return planes


def _stacked(planes: Sequence[_Plane]) -> tuple[list[int], NDArray[np.float64]]:
    """Order of the planes and affine of the volume that they make."""
    for attribute, tag in (
        ("position", "ImagePositionPatient"),
        ("orientation", "ImageOrientationPatient"),
        ("spacing", "PixelSpacing"),
    ):
        lacking = [plane.name for plane in planes if getattr(plane, attribute) is None]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of its {len(planes)} slices have no {tag} ({lacking[0]}): a volume needs it for each: "
                "export the series anew, or save it as NIfTI"
            )
    _check_equal(planes, "size", lambda plane: plane.size)
    _check_equal(planes, "orientation", lambda plane: _rounded(plane.orientation, 3))
    _check_equal(planes, "distance of pixels", lambda plane: _rounded(plane.spacing, 4))
    rows, columns = np.array(planes[0].orientation, dtype=np.float64).reshape(2, 3)
    normal = np.cross(rows, columns)
    positions = np.array([plane.position for plane in planes], dtype=np.float64)
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    step = planes[0].thickness
    if len(planes) > 1:
        gaps = np.diff(heights[order])
        _check_gaps(gaps, [planes[i].name for i in order])
        shifts = np.diff(positions[order], axis=0) - gaps[:, None] * normal
        slope = np.linalg.norm(shifts, axis=1) / gaps
        if slope.max() > UNEVEN:
            degrees = np.degrees(np.arctan(np.median(slope)))
            raise ValueError(
                f"its slices are shifted against each other, by a gantry tilt of {degrees:.1f} degrees or otherwise: "
                "convert it with a tool that corrects the tilt, such as dcm2niix"
            )
        step = float(gaps.mean())
    row_spacing, column_spacing = planes[0].spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3] = np.stack([rows * column_spacing, columns * row_spacing, normal * step, positions[order[0]]], axis=1)
    return order.tolist(), RAS @ affine


def _rounded(values: Sequence[float] | None, digits: int) -> tuple[float, ...]:
    return tuple(round(v, digits) + 0.0 for v in values or ())


def _check_equal(planes: Sequence[_Plane], what: str, key: Callable[[_Plane], tuple[float, ...]]) -> None:
    counts = Counter(key(plane) for plane in planes)
    if len(counts) == 1:
        return
    usual = counts.most_common(1)[0][0]
    others = [plane.name for plane in planes if key(plane) != usual]
    localizers = sum(plane.localizer for plane in planes)
    hint = f"; {localizers} of them say that they are localizers" if localizers else ""
    raise ValueError(
        f"its {len(planes)} slices differ in {what}: {len(others)} of them are unlike the others ({others[0]}){hint}: "
        "move those to a folder of their own"
    )


def _check_gaps(gaps: NDArray[np.float64], names: Sequence[str]) -> None:
    same = np.flatnonzero(gaps < SAME_PLACE)
    if same.size:
        raise ValueError(
            f"{same.size} times two slices lie in one place, for instance {names[same[0]]} and {names[same[0] + 1]}: "
            "remove copies; give each echo, phase or time of a repeated scan a folder of its own"
        )
    usual = float(np.median(gaps))
    uneven = np.flatnonzero(np.abs(gaps - usual) > np.maximum(SAME_PLACE, UNEVEN * usual))
    if uneven.size:
        k = uneven[np.abs(gaps[uneven] - usual).argmax()]
        raise ValueError(
            f"the gap between {names[k]} and {names[k + 1]} is {gaps[k]:.4g} mm, elsewhere {usual:.4g} mm: a slice is "
            "missing, or the slices are not evenly spaced; add the missing file, or resample the series"
        )
