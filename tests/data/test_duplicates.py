# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from monai_rdad.data import duplicates
from monai_rdad.data.duplicates import connected, exact_duplicates, near_duplicates
from monai_rdad.data.measure import EDGE, LEVELS, Measures, measure, perceptual_hash, to_bytes

Array = np.ndarray[Any, Any]


def _picture(seed: int, size: tuple[int, int] = (150, 170)) -> Array:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=size), 7)
    return np.uint8(np.clip(128 + 50 * noise / noise.std(), 0, 255))


def _measures(code: int, small: Array) -> Measures:
    return Measures(1, 1, 1, 1, 0.0, 0.0, 1, small, code, np.zeros(LEVELS, np.uint16))


def test_copies_look_the_same_and_others_do_not(tmp_path: Path) -> None:
    pictures = [Image.fromarray(_picture(seed)) for seed in range(12)]
    copies = [
        pictures[0].resize((90, 80)),
        ImageEnhance.Brightness(pictures[1]).enhance(0.8),
        pictures[2].convert("RGB"),
    ]
    paths = [tmp_path / f"{i}.png" for i in range(15)]
    for picture, path in zip([*pictures, *copies], paths, strict=True):
        picture.save(path)
    pictures[3].save(tmp_path / "3.jpg", quality=40)
    pairs = near_duplicates([measure(path) for path in [*paths, tmp_path / "3.jpg"]])
    assert pairs.tolist() == [[0, 12], [1, 13], [2, 14], [3, 15]]


@pytest.mark.parametrize("bits", [0, 1, 7, 8])
def test_every_pair_within_seven_bits_is_found(bits: int) -> None:
    """Wherever the bits that differ lie: against a comparison of all with all."""
    rng = np.random.default_rng(bits)
    small = rng.integers(0, 255, (24, 24), dtype=np.uint8)
    codes = [int(code) for code in rng.integers(0, 2**63, 40, dtype=np.uint64)]
    for code in codes[:40]:
        flipped = sum(1 << int(place) for place in rng.choice(64, bits, replace=False))
        codes.append(code ^ flipped)
    found = {tuple(pair) for pair in near_duplicates([_measures(code, small) for code in codes]).tolist()}
    wanted = {(a, b) for a in range(80) for b in range(a + 1, 80) if (codes[a] ^ codes[b]).bit_count() <= 7}
    assert found == wanted
    assert len(wanted) == (40 if bits <= 7 else 0)


def test_bits_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 2**64, (3, 5), dtype=np.uint64)
    wanted = [[int(value).bit_count() for value in line] for line in values]
    assert duplicates._ones(values).tolist() == wanted
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert duplicates._ones(values).tolist() == wanted


def test_exact_duplicates_and_components(tmp_path: Path) -> None:
    contents = [b"aa", b"bb", b"aa", b"ccc", b"bb", b"aa"]
    paths = [str(tmp_path / str(i)) for i in range(6)]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    assert exact_duplicates(paths, [len(c) for c in contents]) == [[0, 2, 5], [1, 4]]
    labels = connected(np.array([[0, 2], [2, 5], [1, 4]]), 6)
    assert labels[0] == labels[2] == labels[5] != labels[1] == labels[4] != labels[3]


def test_measures_of_every_format(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    """The same picture in each format has the same figures, but for its channels and the file's size."""
    import nibabel

    picture = _picture(3, (EDGE, EDGE))
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([picture] * 3)).save(tmp_path / "b.tif")
    Image.fromarray(np.dstack([picture] * 3 + [picture * 0 + 255])).save(tmp_path / "c.png")
    write_dicom(tmp_path / "d.dcm", picture)
    nibabel.save(nibabel.Nifti1Image(np.stack([picture.T] * 3, -1), np.eye(4)), tmp_path / "e.nii.gz")
    found = {name: measure(tmp_path / name) for name in ("a.png", "b.tif", "c.png", "d.dcm", "e.nii.gz")}
    for name, figures in found.items():
        assert abs(figures.mean - picture.mean()) < 0.6 and figures.code == found["a.png"].code
        assert figures.file_bytes == (tmp_path / name).stat().st_size
        assert (figures.rows, figures.columns) == (EDGE, EDGE)
        assert figures.histogram.sum() == EDGE**2
    assert [figures.channels for figures in found.values()] == [1, 3, 4, 1, 1]


def test_jpeg_in_dicom(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    """As the RSNA and SIIM challenges store their radiographs."""
    import io

    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    picture = _picture(6, (EDGE, EDGE))
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=95)
    data = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", picture))
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = encapsulate([stream.getvalue()])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "b.dcm")
    plain, packed = measure(tmp_path / "a.dcm"), measure(tmp_path / "b.dcm")
    assert abs(plain.mean - packed.mean) < 1 and packed.file_bytes < plain.file_bytes
    assert (plain.code ^ packed.code).bit_count() <= 4


def test_wide_values_and_broken_files(tmp_path: Path) -> None:
    wide = _picture(4).astype(np.uint16) * 150
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(_picture(4)).save(tmp_path / "narrow.png")
    assert (measure(tmp_path / "wide.png").code ^ measure(tmp_path / "narrow.png").code).bit_count() <= 2
    (tmp_path / "cut.png").write_bytes((tmp_path / "narrow.png").read_bytes()[:900])
    with pytest.raises(ValueError, match=r"cannot be decoded .* Replace the file"):
        measure(tmp_path / "cut.png")


def test_to_bytes() -> None:
    values = np.concatenate([np.zeros(1000), np.linspace(100, 300, 201)]).astype(np.float32)
    whole, above = to_bytes(values), to_bytes(values, above=0.0)
    assert whole[0] == 0 and whole[-1] == 255
    assert abs(int(above[1100]) - 128) <= 1  # 200 is in the middle of what is above 0
    assert not to_bytes(np.zeros(5, np.float32), above=0.0).any()


def test_hash_is_that_of_a_cosine_transform() -> None:
    from scipy.fft import dctn

    square = _picture(5, (EDGE, EDGE))
    low = dctn(square.reshape(32, 4, 32, 4).mean((1, 3)))[:8, :8].ravel()
    bits = "".join("01"[int(value > np.median(low[1:]))] for value in low)
    assert perceptual_hash(square) == int(bits, 2)
    darker = perceptual_hash((square // 2 + 30).astype(np.uint8))
    assert (perceptual_hash(square) ^ darker).bit_count() <= 2
