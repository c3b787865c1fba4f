# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, NibabelWriter
from monai.transforms import Compose, Invertd, Resized
from nibabel.orientations import axcodes2ornt
from PIL import Image

from monai_rdad.transforms import (
    NormalizeByPresetd,
    ReadImage,
    ReadImaged,
    ReadMask,
    ReadMaskd,
)

RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]
BYTES: Array = RNG.integers(0, 256, (20, 30, 4), dtype=np.uint8)
WORDS: Array = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)


def oblique(axcodes: str, angle: float = 0.2) -> Array:
    """Affine of an array whose axes grow towards ``axcodes``, tilted, with voxels of 1, 2 and 3 mm along R, A, S."""
    c, s = np.cos(angle), np.sin(angle)
    tilted = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) * [1, 2, 3]
    affine = np.eye(4)
    for axis, (world, sign) in enumerate(axcodes2ornt(axcodes).astype(int)):
        affine[:3, axis] = sign * tilted[:, world]
    affine[:3, 3] = [5, -7, 11]
    return affine


def nifti(path: Path, array: Array, affine: Array | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def deep_colour_png(path: Path) -> Path:
    """A PNG of 16 bits per colour; Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + row.tobytes() for row in RNG.integers(0, 9, (4, 5 * 3)).astype(">u2"))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".PNG"])
def test_grey_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(BYTES[..., 0]).save(path)
    image = ReadImage()(path)
    assert isinstance(image, MetaTensor) and image.dtype == torch.uint8
    np.testing.assert_array_equal(image[0], BYTES[..., 0])  # rows first
    assert image.meta["filename_or_obj"] == str(path) and torch.equal(image.affine, torch.eye(4, dtype=torch.float64))
    np.testing.assert_array_equal(ReadImage(channels=3)(path), np.repeat(BYTES[None, ..., 0], 3, axis=0))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
def test_modes(tmp_path: Path, mode: str) -> None:
    """Colour as Pillow expands it, without alpha; luminance within rounding of Pillow's own."""
    original = Image.fromarray(BYTES).convert(mode) if mode != "P" else Image.fromarray(BYTES[..., :3]).quantize(16)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    original.save(path)
    rgb = np.asarray(original.convert("RGB"))
    np.testing.assert_array_equal(np.moveaxis(np.asarray(ReadImage(channels=3)(path)), 0, -1), rgb)
    grey = ReadImage(channels=1)(path)
    assert grey.dtype == torch.uint8 and grey.shape == (1, 20, 30)
    assert np.abs(np.asarray(grey[0], int) - np.asarray(original.convert("RGB").convert("L"), int)).max() <= 1


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(40), 2 * np.arange(50)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "x.jpg", quality=95)
    image = ReadImage()(tmp_path / "x.jpg")
    assert np.abs(np.asarray(image[0], float) - smooth).mean() < 2


def test_more_than_eight_bits(tmp_path: Path) -> None:
    for name in ("x.png", "x.tif"):
        Image.fromarray(WORDS).save(tmp_path / name)
        image = ReadImage()(tmp_path / name)
        assert image.dtype == torch.float32
        np.testing.assert_array_equal(image[0], WORDS)
    values = RNG.normal(size=(20, 30)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(ReadImage()(tmp_path / "float.tif")[0], values)
    with pytest.raises(ValueError, match=r"deep\.png: cannot be read: .*16-bit colours.*8-bit colour or 16-bit grey"):
        ReadImage()(deep_colour_png(tmp_path / "deep.png"))


def test_dicom_file(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    pixels = (WORDS // 16).astype(np.int16)
    path = write_dicom(tmp_path / "x.dcm", pixels, position=(10, 20, 30), rescale=(2, -1024))
    image = ReadImage()(path)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image[0], 2.0 * pixels - 1024)  # rows, columns, as in a PNG
    # One step along a row moves 0.75 mm to the left, one down a column 0.5 mm backwards; RAS+.
    rows, columns, origin = np.asarray(image.affine)[:3, [0, 1, 3]].T
    np.testing.assert_allclose([rows, columns, origin], [[0, -0.5, 0], [-0.75, 0, 0], [-10, -20, 30]])
    # Without suffix, unsigned bytes, no geometry at all.
    bare = write_dicom(tmp_path / "IM0001", BYTES[..., 0], position=None)
    np.testing.assert_array_equal(ReadImage()(bare)[0], BYTES[..., 0])
    assert ReadImage()(bare).dtype == torch.uint8


def test_dicom_photometry(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    inverted = write_dicom(tmp_path / "m1.dcm", BYTES[..., 0], photometric="MONOCHROME1")
    np.testing.assert_array_equal(ReadImage()(inverted)[0], 255 - BYTES[..., 0])
    colour = write_dicom(tmp_path / "rgb.dcm", BYTES[..., :3], photometric="RGB", position=None)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(ReadImage(3)(colour)), 0, -1), BYTES[..., :3])


def test_dicom_series(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    volume = RNG.integers(0, 4096, (7, 20, 30)).astype(np.uint16)
    order = RNG.permutation(7)
    for number, k in enumerate(order):  # neither names nor instance numbers tell the position
        write_dicom(tmp_path / f"{number}.dcm", volume[k], position=(0, 0, 3.0 * k), number=number)
    (tmp_path / "readme.txt").write_text("not an image")
    image = ReadImage()(tmp_path)
    np.testing.assert_array_equal(image[0], np.moveaxis(volume, 0, -1))
    np.testing.assert_allclose(np.abs(image.affine[:3, :3]).max(0).values, [0.5, 0.75, 3])
    write_dicom(tmp_path / "other.dcm", volume[0], series="1.2.9")
    with pytest.raises(ValueError, match=r"2 DICOM series: number \? \(MR\) 7 files, .* 1 files: give each series"):
        ReadImage()(tmp_path)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SLA"])
def test_volume_and_back(tmp_path: Path, axcodes: str) -> None:
    """Flipped, permuted, oblique: the picture is PLS, and what Invertd writes back has the file's voxels and affine."""
    array = RNG.normal(size=(12, 14, 9)).astype(np.float32)
    path = nifti(tmp_path / "x.nii.gz", array, oblique(axcodes))
    source = nibabel.load(path)
    for resize in ([], [Resized("image", (20, 22, -1), mode="trilinear")]):
        chain = Compose([ReadImaged("image"), *resize])
        item = chain({"image": str(path)})
        assert nibabel.aff2axcodes(np.asarray(item["image"].affine)) == ("P", "L", "S")
        item["pred"] = MetaTensor(torch.as_tensor(np.asarray(item["image"]).copy()))  # as a network returns it
        pred = Invertd("pred", chain, orig_keys="image", nearest_interp=False)(item)["pred"]
        writer = NibabelWriter()
        writer.set_data_array(pred, channel_dim=0)
        writer.set_metadata(pred.meta, resample=False)
        writer.write(tmp_path / "map.nii.gz")
        written = nibabel.load(tmp_path / "map.nii.gz")
        assert written.shape == source.shape
        np.testing.assert_array_equal(written.affine, source.affine)
        if not resize:
            np.testing.assert_array_equal(written.get_fdata(dtype=np.float32), array)


def test_volume_points_keep_their_place(tmp_path: Path) -> None:
    array = np.zeros((8, 9, 10), np.float32)
    array[1, 6, 3] = 1
    affine = oblique("PIR")
    image = ReadImage()(nifti(tmp_path / "x.nii", array, affine))
    found = np.argwhere(np.asarray(image[0]) == 1)[0]
    np.testing.assert_allclose(np.asarray(image.affine) @ [*found, 1], affine @ [1, 6, 3, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "axcodes", "shown"),
    [
        ((12, 14), "RAS", "PL"),
        ((12, 14, 1), "LPS", "PL"),
        ((12, 14, 1, 1), "RAS", "PL"),
        ((12, 1, 14), "RAS", "IL"),
        ((1, 12, 14), "RAS", "IP"),
        ((12, 14, 1), "ASL", "IP"),
    ],
)
def test_single_slices(tmp_path: Path, shape: tuple[int, ...], axcodes: str, shown: str) -> None:
    """A NIfTI slice is a 2D image in radiological view, and returns to its own axes."""
    array = RNG.normal(size=shape).astype(np.float32)
    path = nifti(tmp_path / "x.nii.gz", array, oblique(axcodes))
    chain = Compose([ReadImaged("image"), Resized("image", (12, 14))])
    image = ReadImage()(path)
    assert image.ndim == 3
    assert nibabel.aff2axcodes(np.asarray(image.affine))[:2] == tuple(shown)
    plain = Compose([ReadImaged("image")])
    for steps in (plain, chain):
        item = steps({"image": str(path)})
        item["pred"] = MetaTensor(torch.as_tensor(np.asarray(item["image"]).copy()))
        pred = Invertd("pred", steps, orig_keys="image")(item)["pred"]
        np.testing.assert_array_equal(pred.affine, nibabel.load(path).affine)
        assert np.squeeze(pred[0]).shape == np.squeeze(array).shape
        if steps is plain:
            np.testing.assert_array_equal(np.squeeze(pred[0]), np.squeeze(array))


def test_picture_goes_through_invertd(tmp_path: Path) -> None:
    Image.fromarray(BYTES[..., 0]).save(tmp_path / "x.png")
    chain = Compose([ReadImaged("image"), NormalizeByPresetd("image"), Resized("image", (16, 16))])
    item = chain({"image": str(tmp_path / "x.png")})
    item["pred"] = MetaTensor(torch.zeros(1, 16, 16))
    assert Invertd("pred", chain, orig_keys="image", nearest_interp=False)(item)["pred"].shape == (1, 20, 30)


def test_nifti_values(tmp_path: Path) -> None:
    volume = RNG.integers(0, 256, (5, 6, 7), dtype=np.uint8)
    assert ReadImage()(nifti(tmp_path / "u8.nii", volume)).dtype == torch.uint8
    big_endian = nibabel.Nifti1Image(volume.astype(">i2"), np.eye(4), nibabel.Nifti1Header(endianness=">"))
    nibabel.save(big_endian, tmp_path / "be.nii")
    image = ReadImage()(tmp_path / "be.nii")
    assert image.dtype == torch.float32 and float(image.max()) == volume.max()
    assert ReadImage(channels=3)(tmp_path / "be.nii").shape == (3, 6, 5, 7)


def test_one_clear_error(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    noise = RNG.normal(size=(6, 7, 8)).astype(np.float32)
    holes = noise.copy()
    holes[0, 0, :3] = np.nan
    holes[1, 1, 1] = np.inf
    flat = np.eye(4)
    flat[2, 2] = 0
    stack = [Image.fromarray(WORDS), Image.fromarray(WORDS)]
    stack[0].save(tmp_path / "pages.tif", save_all=True, append_images=stack[1:])
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "plain.png")
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "fake.dcm").write_text("x")
    (tmp_path / "none").mkdir()
    singular = nibabel.Nifti1Image(noise, np.eye(4))
    singular.set_sform(flat, 1)
    nibabel.save(singular, tmp_path / "flat.nii")
    nifti(tmp_path / "nan.nii.gz", holes)
    nifti(tmp_path / "four.nii.gz", RNG.normal(size=(4, 5, 6, 2)))
    nifti(tmp_path / "complex.nii.gz", noise.astype(np.complex64))
    for name, message in {
        "pages.tif": "2 pages",
        "plain.png": "constant.*Leave it out",
        "text.txt": "not a supported image file .*Convert",
        "fake.dcm": "cannot be read.*Replace",
        "none": "no DICOM file",
        "flat.nii": "singular.*Correct the header",
        "nan.nii.gz": "4 voxels are NaN or infinite. Replace",
        "four.nii.gz": r"shape \(4, 5, 6, 2\): save each 3D volume",
        "complex.nii.gz": "type complex64",
    }.items():
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            ReadImage(channels=3)(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent\.png: there is no such file"):
        ReadImage()(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="channels is 2"):
        ReadImage(channels=2)
    with pytest.raises(ValueError, match=r"it has 2 channels\. Save it as grey or RGB"):
        ReadImage()._values(np.zeros((2, 4, 4)), "x.nii")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".nii", ".nii.gz", ".dcm"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_truncated(tmp_path: Path, suffix: str, keep: float, write_dicom: Callable[..., Path]) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix.startswith(".nii"):
        nifti(path, RNG.normal(size=(9, 9, 9)).astype(np.float32))
    elif suffix == ".dcm":
        write_dicom(path, WORDS)
    else:
        Image.fromarray(BYTES[..., :3]).save(path)
    ReadImage()(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"x{suffix}: cannot be read.*Replace"):
        ReadImage()(path)


def test_no_deprecation_warnings(tmp_path: Path) -> None:
    path = nifti(tmp_path / "x.nii", RNG.normal(size=(6, 7, 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transform = ReadImage()
        transform.inverse(transform(path))


# ---- masks


def test_read_mask(tmp_path: Path) -> None:
    truth = RNG.integers(0, 2, (20, 30), dtype=np.uint8)
    Image.fromarray(truth * 255).save(tmp_path / "grey.png")
    Image.fromarray(truth.astype(bool)).save(tmp_path / "bits.png")
    Image.fromarray(np.stack([0 * truth, 0 * truth, truth, 0 * truth + 255], -1)).save(tmp_path / "rgba.png")
    Image.fromarray(np.zeros_like(truth)).save(tmp_path / "empty.png")
    for name in ("grey.png", "bits.png", "rgba.png"):
        mask = ReadMask()(tmp_path / name)
        assert mask.dtype == torch.uint8
        np.testing.assert_array_equal(mask[0], truth)
    assert not ReadMask()(tmp_path / "empty.png").any()


def test_read_maskd(tmp_path: Path) -> None:
    Image.fromarray(BYTES[..., 0]).save(tmp_path / "x.png")
    for name, mask in {"m": np.eye(20, 30), "small": np.eye(20, 29), "none": np.zeros((20, 30))}.items():
        Image.fromarray((255 * mask).astype(np.uint8)).save(tmp_path / f"{name}.png")
    chain = Compose([ReadImaged("image"), ReadMaskd("mask")])

    def read(label: int, mask: str | None) -> torch.Tensor:
        item: dict[str, Any] = {"image": str(tmp_path / "x.png"), "label": label}
        item |= {"mask": str(tmp_path / mask)} if mask else {}
        return chain(item)["mask"]

    np.testing.assert_array_equal(read(1, "m.png")[0], np.eye(20, 30))
    for label, mask, value in ((0, None, 0), (1, None, 255), (0, "none.png", 0)):
        filled = read(label, mask)
        assert filled.shape == (1, 20, 30) and filled.dtype == torch.uint8 and bool((filled == value).all())
    for label, mask, message in (
        (1, "small.png", r"small\.png: the mask has size \(20, 29\), its image \(20, 30\)"),
        (0, "m.png", "marks pixels, but the item's label is 0"),
        (1, "none.png", "is empty, but the item's label is 1"),
    ):
        with pytest.raises(RuntimeError) as caught:  # MONAI's wrapper of any error in a chain
            read(label, mask)
        assert isinstance(caught.value.__cause__, ValueError)
        caught.match("applying transform")
        with pytest.raises(ValueError, match=message):
            raise caught.value.__cause__


def test_volume_mask_follows_its_own_affine(tmp_path: Path) -> None:
    image = nifti(tmp_path / "image.nii", RNG.normal(size=(6, 7, 8)), oblique("RAS"))
    truth = np.zeros((6, 7, 8), np.uint8)
    truth[1, 2, 3] = 1
    same = nibabel.Nifti1Image(truth, oblique("RAS"))
    nibabel.save(same.as_reoriented(axcodes2ornt("SPL")), tmp_path / "turned.nii")
    shifted = oblique("RAS")
    shifted[0, 3] += 4
    nifti(tmp_path / "shifted.nii", truth, shifted)
    d = {"image": ReadImage()(image), "label": 1}
    expected = ReadMask()(nifti(tmp_path / "same.nii", truth, oblique("RAS")))
    np.testing.assert_array_equal(ReadMaskd("mask")({**d, "mask": str(tmp_path / "turned.nii")})["mask"], expected)
    with pytest.raises(ValueError, match="affine puts it elsewhere"):
        ReadMaskd("mask")({**d, "mask": str(tmp_path / "shifted.nii")})


def test_real_volumes(real_data: Path) -> None:
    for name, shape in {
        "ms_patient07/flair.nii.gz": (1, 218, 182, 182),
        "healthy/chris_t1.nii.gz": (1, 256, 188, 190),
        "dicom_ct_torchio": (1, 128, 88, 17),
    }.items():
        path = real_data / "volumes" / name
        if not path.exists():
            pytest.skip(f"no {name}")
        transform = ReadImage()
        image = transform(path)
        assert image.shape == shape
        if path.is_file():
            file = nibabel.load(path)
            back = transform.inverse(image)
            np.testing.assert_array_equal(back[0], np.asarray(file.dataobj))
            np.testing.assert_array_equal(back.affine, file.affine)
