# SPDX-License-Identifier: Apache-2.0
"""What a viewer gets of a prediction: a label map or heat map as a file, and JSON."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rdad.apps.label.detector import Prediction
from monai_rdad.utils import atomic_path, one_of
from monai_rdad.visualize.maps import write_map
from monai_rdad.visualize.volume import write_nifti

__all__ = ["LABELS", "result_json", "result_suffix", "write_heat_map", "write_label_map"]

LABELS = {"anomaly": 1}
SUFFIXES = (".png", ".nii.gz", ".nii", ".nrrd", ".mha")


def result_suffix(prediction: Prediction, wanted: str | None = None) -> str:
    """Suffix of a result's file: the one wanted, else PNG for pictures and NIfTI for volumes.

    Raises:
        ValueError: a format that is not written, or PNG of a volume.
    """
    if not wanted:
        return ".png" if prediction.affine is None else ".nii.gz"
    suffix = one_of("result_extension", wanted.lower(), SUFFIXES)
    if suffix == ".png" and prediction.affine is not None:
        raise ValueError("A volume does not go into a PNG. Leave result_extension out, or choose .nii.gz or .nrrd.")
    return suffix


def write_label_map(path: str | os.PathLike[str], prediction: Prediction) -> None:
    """Write the label map, uint8 with 1 where the map reaches the threshold, in the format that the suffix names."""
    name = os.fspath(path).lower()
    if not name.endswith(".png"):
        _write(name, path, prediction.label, prediction.affine)
        return
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(prediction.label).save(temporary, format="PNG")


def write_heat_map(path: str | os.PathLike[str], prediction: Prediction) -> None:
    """Write the anomaly map: float32, or 16-bit PNG as inference does it (:func:`~monai_rdad.visualize.read_map`)."""
    name = os.fspath(path).lower()
    if name.endswith(".png"):
        write_map(path, prediction.values, prediction.max_value)
    else:
        _write(name, path, prediction.values, prediction.affine)


def result_json(prediction: Prediction) -> dict[str, Any]:
    """Scores and how the label map came about, values that JSON can hold."""
    return {
        "label_names": LABELS,
        **prediction.scores,
        "threshold": prediction.threshold,
        "threshold_source": prediction.threshold_source,
        "marked": float(prediction.label.mean()),
        "max_value": prediction.max_value,
        "model_version": prediction.version,
    }


def _write(name: str, path: str | os.PathLike[str], values: NDArray[Any], affine: NDArray[np.float64] | None) -> None:
    if affine is not None and name.endswith((".nii", ".nii.gz")):
        write_nifti(path, values, affine)
        return
    import SimpleITK

    # rows and columns of a picture, without spacing: what ITK makes of the picture itself
    image = SimpleITK.GetImageFromArray(values[None] if affine is None else values.transpose(2, 1, 0))
    if affine is not None:
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        direction = lps[:3, :3] / spacing
        if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
            raise ValueError("This volume's axes are not at right angles, which only NIfTI can hold: ask for .nii.gz.")
        image.SetSpacing(spacing.tolist())
        image.SetDirection(direction.ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
    with atomic_path(path) as temporary:
        SimpleITK.WriteImage(image, str(temporary), True)
