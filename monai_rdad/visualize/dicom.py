# SPDX-License-Identifier: Apache-2.0
"""Anomaly maps as DICOM objects in the patient's study, which viewers lay over the images."""

from __future__ import annotations

import inspect
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rdad import __version__
from monai_rdad.dicom import Stack, read_stack
from monai_rdad.utils import atomic_path

__all__ = ["require_highdicom", "write_dicom_map", "write_dicom_segmentation"]

# type 2 attributes of patient and study, which have to be there but may be empty; anonymised files lack some
MAY_BE_EMPTY = (
    "AccessionNumber",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyID",
    "StudyTime",
)
MAP_SERIES, SEGMENTATION_SERIES = 9001, 9002  # numbers under which a viewer lists the results


def require_highdicom() -> Any:
    """The module highdicom.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        raise ImportError(
            "DICOM output needs highdicom: pip install 'monai_rdad[dicom]', or leave out --dicom."
        ) from error
    # it logs the UIDs of the source's images at the level of information
    logging.getLogger("highdicom").setLevel(logging.WARNING)
    return highdicom


def write_dicom_map(path: Path, source: str, anomaly_map: NDArray[np.float32]) -> bool:
    """Write a map as a DICOM parametric map with the float values themselves.

    Patient and study are those of the source, so that the object joins its study; the frame of reference and the
    positions of the slices are the source's, to which every frame refers.

    Args:
        path: file to write.
        source: the DICOM file, or folder of the series, of which the map is.
        anomaly_map: (rows, columns) of a single slice, (columns, rows, slices) of a volume, as the image was read.

    Returns:
        False, and nothing is written, if the source has no frame of reference, as radiographs have none.

    Raises:
        ImportError: highdicom is not installed.
        ValueError: the source lacks what the standard demands.
    """
    hd = require_highdicom()
    from pydicom.sr.codedict import codes

    stack, images = _source(source)
    if not images:
        return False
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="anomaly",
        lut_explanation="Sum of cosine distances between teacher and student",
        unit=codes.UCUM.NoUnits,
        value_range=(low, max(high, low + 1e-6)),
        slope=1.0,
        intercept=0.0,
    )
    _save(
        path,
        source,
        lambda: hd.pm.ParametricMap(
            images,
            _frames(anomaly_map, stack).astype(np.float32),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            **_window(hd, (low + high) / 2, max(high - low, 1e-6)),
            content_label="ANOMALY_MAP",
            content_description="Anomaly map",
            **_common(hd, MAP_SERIES, "Anomaly map"),
        ),
    )
    return True


def write_dicom_segmentation(path: Path, source: str, anomaly_map: NDArray[np.float32], threshold: float) -> bool:
    """Write what lies at or above a threshold as a binary DICOM segmentation with one segment.

    Args:
        path: file to write.
        source: as in :func:`write_dicom_map`.
        anomaly_map: as in :func:`write_dicom_map`.
        threshold: map value.

    Returns:
        False, and nothing is written, if the source has no frame of reference or nothing reaches the threshold.

    Raises:
        ImportError: highdicom is not installed.
        ValueError: the source lacks what the standard demands.
    """
    hd = require_highdicom()
    from pydicom.sr.codedict import codes

    found = anomaly_map >= threshold if math.isfinite(threshold) else np.zeros(anomaly_map.shape, bool)
    stack, images = _source(source)
    if not images or not found.any():
        return False
    algorithm = hd.AlgorithmIdentificationSequence("monai_rdad", codes.DCM.ArtificialIntelligence, __version__)
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )
    _save(
        path,
        source,
        lambda: hd.seg.Segmentation(
            images,
            _frames(found, stack).astype(np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            content_label="ANOMALY",
            content_description="Anomaly map above a threshold",
            **_common(hd, SEGMENTATION_SERIES, "Anomalies"),
        ),
    )
    return True


def _source(path: str) -> tuple[Stack, list[Any]]:
    """The slices of the source and their headers; no headers if they have no place in a frame of reference."""
    import pydicom

    stack = read_stack(path)
    images = [pydicom.dcmread(file, stop_before_pixels=True) for file in stack.files]
    if not stack.located or any(not image.get("FrameOfReferenceUID") for image in images):
        return stack, []
    for image in images:
        if not image.get("SliceThickness"):  # may be empty in the source, but not in what is made of it
            image.SliceThickness = float(np.linalg.norm(stack.affine[:3, 2]))
        for keyword in MAY_BE_EMPTY:
            if keyword not in image:
                setattr(image, keyword, "")
    return stack, images


def _frames(values: NDArray[Any], stack: Stack) -> NDArray[Any]:
    """Planes (frames, rows, columns), of a multi-frame source in the order of its frames."""
    planes = values[None] if values.ndim == 2 else values.transpose(2, 1, 0)
    return planes[np.argsort(stack.frames)] if stack.frames else planes


def _window(hd: Any, center: float, width: float) -> dict[str, Any]:
    """How a viewer shows the map at first, as the installed highdicom wants to be told."""
    if "voi_lut_transformations" in inspect.signature(hd.pm.ParametricMap).parameters:
        return {"voi_lut_transformations": [hd.VOILUTTransformation(window_center=center, window_width=width)]}
    return {"window_center": center, "window_width": width}


def _common(hd: Any, number: int, description: str) -> dict[str, Any]:
    return {
        "series_instance_uid": hd.UID(),
        "series_number": number,
        "series_description": description,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "monai_rdad",
        "manufacturer_model_name": "monai_rdad",
        "software_versions": __version__,
        "device_serial_number": "0",
    }


def _save(path: Path, source: str, make: Any) -> None:
    try:
        result = make()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: no DICOM object can be made of its map ({error}). Complete its headers, or leave out --dicom."
        ) from error
    with atomic_path(path) as temporary:
        result.save_as(str(temporary))
