# SPDX-License-Identifier: Apache-2.0
"""Readers of images and masks: every supported file becomes a channel-first MetaTensor that looks like a PNG.

Pictures (PNG, JPEG, BMP, TIFF) and single-frame DICOM files keep their pixel order: rows, columns. NIfTI files and
DICOM volumes have a geometry, by which they are turned until each slice looks like a radiological picture; the turn
is recorded, so that ``inverse`` (called by ``monai.transforms.Invertd``) gives back the voxel order of the file.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor, NibabelReader, PILReader
from monai.data.utils import is_supported_format
from monai.transforms import InvertibleTransform, Orientation
from monai.transforms.spatial.functional import orientation
from monai.utils import TraceKeys
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from monai_rdad.dicom import read_stack
from monai_rdad.formats import PICTURE_SUFFIXES, file_kind

__all__ = ["ReadImage", "ReadMask"]

Array = NDArray[Any]

# Axis codes (towards which side an array axis grows) that make a slice look like a radiological picture, by the axis
# of the body across the slice: sagittal and coronal have the head up, axial the nose.
VIEW_AXCODES = ("IPR", "ILA", "PLS")
SLICE_AXCODES = {side: VIEW_AXCODES[axis] for axis, sides in enumerate(("RL", "AP", "SI")) for side in sides}

# ITU-R BT.601, as in Pillow's conversion to mode "L".
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


class _PictureReader(PILReader):
    """MONAI's reader with rows first, TIFF allowed, palettes expanded and alpha dropped."""

    def __init__(self) -> None:
        super().__init__(converter=self._plain_mode, reverse_indexing=False)

    def verify_suffix(self, filename: Any) -> bool:
        return is_supported_format(filename, [suffix[1:] for suffix in PICTURE_SUFFIXES])

    @staticmethod
    def _plain_mode(image: Any) -> Any:
        """Grey (8, 16, 32 bit or float) or 8-bit RGB."""
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"it has {image.n_frames} pages: save each page as its own file, or the stack as NIfTI")
        if image.mode.startswith("I") or image.mode == "F":
            return image
        if ";16" in str([tile[3] for tile in image.tile]):
            raise ValueError("Pillow would cut its 16-bit colours to 8 bits: save it as 8-bit colour or 16-bit grey")
        return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")


def _read_picture(path: str) -> tuple[Array, Array]:
    """Array (C, H, W) and the identity."""
    reader = _PictureReader()
    image = reader.read(path)
    array, _ = reader.get_data(image)
    image.close()
    return (array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)), np.eye(4)


def _read_nifti(path: str) -> tuple[Array, Array]:
    """Array (1, X, Y, Z) and affine; trailing dimensions of size 1 do not count, missing ones are added."""
    reader = NibabelReader()
    image = reader.read(path)
    shape = list(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 3:
        raise ValueError(f"it has shape {image.shape}: save each 3D volume of the fourth dimension as its own file")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"its voxels are of type {image.get_data_dtype()}: save them as integers or floats")
    array, meta = reader.get_data(image)
    return array.reshape(1, *shape, *[1] * (3 - len(shape))), np.asarray(meta["affine"])


def _read_dicom(path: str) -> tuple[Array, Array]:
    """Array (C, columns, rows, slices) after rescale slope and intercept, and affine (RAS+)."""
    stack = read_stack(path)
    planes = np.concatenate([_dicom_pixels(file) for file in stack.files])
    if stack.frames:
        planes = planes[list(stack.frames)]
    return np.ascontiguousarray(np.moveaxis(planes, (0, 1, 2), (3, 2, 1))), stack.affine


def _dicom_pixels(file: str) -> Array:
    """Array (frames, rows, columns, C) of one file."""
    # SimpleITK rather than pydicom: it decodes every common compression, converts YBR to RGB and MONOCHROME1 to high =
    # bright. Slice by slice, because each may have a rescale slope of its own.
    import SimpleITK

    try:
        image = SimpleITK.ReadImage(file, imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise ValueError(_undecodable(file) or str(error)) from error
    array = SimpleITK.GetArrayFromImage(image)
    array = array if image.GetNumberOfComponentsPerPixel() > 1 else array[..., None]
    return array if array.ndim == 4 else array[None]


def _undecodable(file: str) -> str | None:
    """A message if it is the compression that no decoder knows."""
    import pydicom

    syntax = pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID
    if syntax.is_private or not syntax.is_compressed:
        return None
    return (
        f"{os.path.basename(file)} cannot be decoded; its pixels are compressed as {syntax.name} ({syntax}). If it is "
        "whole, decompress it, for instance with gdcmconv --raw"
    )


_READ = {"picture": _read_picture, "nifti": _read_nifti, "dicom": _read_dicom}


class _Reader(InvertibleTransform):
    """What images and masks have in common: decode, check, turn to display order, and turn back."""

    def __init__(self, axis: int = 2) -> None:
        if axis not in (0, 1, 2):
            raise ValueError(f"axis is {axis}, it must be 0 (sagittal slices), 1 (coronal) or 2 (axial).")
        self.axis = axis

    def __call__(self, path: str | os.PathLike[str]) -> MetaTensor:
        path = os.fspath(path)
        kind = file_kind(path)
        try:
            array, affine = _READ[kind](path)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise many types: OSError, EOFError, zlib.error, ITK's RuntimeError ...
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{path}: cannot be read: {reason}. Replace the file or leave it out.") from error
        if array.size == 0:
            raise ValueError(f"{path}: the image is empty (shape {array.shape}). Leave it out.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise ValueError(f"{path}: {count} voxels are NaN or infinite. Replace them, for example by 0.")
        array = self._values(array, path)
        has_geometry = kind != "picture"
        if kind == "dicom" and array.shape[-1] == 1:
            has_geometry = False
            array = array[..., 0].swapaxes(1, 2)  # (columns, rows) -> (rows, columns), as in a picture
            affine = affine[:, [1, 0, 2, 3]]
        return self._to_display(array, affine, path, has_geometry)

    @abstractmethod
    def _values(self, array: Array, path: str) -> Array:
        """What the array means: intensities, or labels of a mask."""

    def _to_display(self, array: Array, affine: Array, path: str, has_geometry: bool) -> MetaTensor:
        """MetaTensor in display order; a volume that is one voxel thick becomes a 2D image."""
        matrix = torch.as_tensor(affine, dtype=torch.float64)
        meta = {
            "filename_or_obj": path,
            "original_affine": matrix.clone(),
            "spatial_shape": np.array(array.shape[1:]),
            "space": "RAS",
        }
        pixels = np.require(array, requirements=("C", "W"))  # Pillow's arrays are read-only, which PyTorch dislikes
        image = MetaTensor(torch.from_numpy(pixels), affine=matrix, meta=meta)
        if not has_geometry:
            # Recorded although nothing is done, so that `inverse` finds an entry for every image.
            return self.push_transform(image, extra_info={})
        source = io_orientation(affine) if np.isfinite(affine).all() else np.array([[np.nan]])
        if np.isnan(source).any():
            raise ValueError(f"{path}: its affine is singular or not finite. Correct the header (sform, qform).")
        thin = [axis for axis, size in enumerate(array.shape[1:]) if size == 1]
        flat = len(thin) == 1
        axcodes = SLICE_AXCODES[aff2axcodes(affine)[thin[0]]] if flat else VIEW_AXCODES[self.axis]
        turn = ornt_transform(source, axcodes2ornt(axcodes))
        turned = orientation(image, affine, turn, lazy=False, transform_info=self.get_transform_info())
        return cast(MetaTensor, turned[..., 0] if flat else turned)

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """From display order back to the file's voxel order and affine, for instance of an anomaly map.

        Args:
            data: MetaTensor (C, H, W) or (C, H, W, D) that carries the meta data of an image read by this transform.

        Returns:
            MetaTensor (C, H, W) of a picture or single-frame DICOM file; else (C, X, Y, Z) as the file has them.
        """
        info = self.pop_transform(data)
        original = data.meta["original_affine"]
        image = data
        if "original_affine" in info.get(TraceKeys.EXTRA_INFO, {}):
            turn_back = Orientation("".join(aff2axcodes(np.asarray(original))), labels=None)
            with turn_back.trace_transform(False):
                image = cast(MetaTensor, turn_back(image[..., None] if image.ndim == 3 else image))
        # Set, not only computed: the inverses of resampling steps leave rounding errors.
        image.affine = original.clone()
        return image


class ReadImage(_Reader):
    """Reads an image file: PNG, JPEG, BMP, TIFF, DICOM (file, or folder with one series), NIfTI.

    The result is a MetaTensor with ``affine`` (identity for pictures) and ``meta["filename_or_obj"]``, values as
    stored (DICOM after rescale slope and intercept, MONOCHROME1 inverted so that high values are bright):

    - uint8 where the file holds unsigned bytes, float32 for everything else; 16-bit grey keeps its 16 bits;
    - (C, H, W) with rows first for pictures and single-frame DICOM; the EXIF orientation tag is not applied;
    - (C, H, W) for a NIfTI file one voxel thick, turned like a radiological picture: axial with the anterior side up
      and the patient's left on the right; coronal and sagittal with the superior side up;
    - (C, H, W, D) for volumes, so that ``image[..., k]`` is a slice as above: axial (axis codes PLS) unless ``axis``
      says otherwise.

    Palettes are expanded and alpha is dropped. ``inverse`` undoes the turn of NIfTI files and DICOM volumes.

    Args:
        channels: of the result. 1 converts colour to luminance (ITU-R BT.601), 3 repeats grey.
        volumes: whether volumes are welcome.
        axis: of the body across the slices of a volume: 0 sagittal, 1 coronal, 2 axial.

    Raises:
        FileNotFoundError: (on call) no such file.
        ValueError: ``channels`` is neither 1 nor 3, or there is no such axis; (on call) unsupported, truncated or
            broken file, DICOM slices that make no volume (:func:`monai_rdad.dicom.read_stack`), 4D volume, 16-bit
            colour, singular affine, NaN or infinite voxels, constant image, neither 1 nor 3 channels.
    """

    def __init__(self, channels: int = 1, volumes: bool = True, axis: int = 2) -> None:
        super().__init__(axis)
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}, it must be 1 (grey) or 3 (colour).")
        self.channels = channels
        self.volumes = volumes

    def __call__(self, path: str | os.PathLike[str]) -> MetaTensor:
        """The image of a file."""
        image = super().__call__(path)
        if image.ndim == 4 and not self.volumes:
            raise ValueError(f"{path}: a volume, but 2D images are wanted here. Save its slices as images.")
        return image

    def _values(self, array: Array, path: str) -> Array:
        if array.shape[0] not in (1, 3):
            raise ValueError(f"{path}: it has {array.shape[0]} channels. Save it as grey or RGB.")
        if not np.ptp(array.reshape(len(array), -1), axis=1).any():
            raise ValueError(f"{path}: the image is constant, there is nothing to see in it. Leave it out.")
        as_bytes = array.dtype == np.uint8
        if self.channels == 1 and array.shape[0] == 3:
            array = np.tensordot(LUMINANCE, array.astype(np.float32), axes=1)[None]
            array = np.rint(array) if as_bytes else array
        elif self.channels == 3 and array.shape[0] == 1:
            array = np.repeat(array, 3, axis=0)
        return array.astype(np.uint8 if as_bytes else np.float32, copy=False)


class ReadMask(_Reader):
    """Reads a mask file of any format of :class:`ReadImage`, in the same pixel order.

    Returns a uint8 MetaTensor (1, H, W) or (1, H, W, D): 1 where any channel of the file is not 0, else 0.

    Args:
        axis: of the body across the slices of a volume, as for the image.

    Raises:
        FileNotFoundError: (on call) no such file.
        ValueError: (on call) as for :class:`ReadImage`; a constant mask is fine.
    """

    def _values(self, array: Array, path: str) -> Array:
        return (array != 0).any(axis=0, keepdims=True).astype(np.uint8)
