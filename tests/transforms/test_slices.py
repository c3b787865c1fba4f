# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, Orientation

from monai_rdad.data import ManifestError, SliceCacheDataset, is_volume, load_manifest, uniform_batch_size
from monai_rdad.transforms import (
    DequantizeIntensityd,
    NormalizeByPresetd,
    QuantizeIntensityd,
    ReadImage,
    ReadImaged,
    ReadMaskd,
    ResizeInPlaned,
    SplitSlices,
    SplitSlicesd,
)
from monai_rdad.transforms.io import array as io
from monai_rdad.transforms.slices import SliceView, foreground_fraction

SIZE = 64


def nifti(path: Path, array: np.ndarray[Any, Any], affine: Any = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_read_image_shows_each_axis_as_radiologists_do(tmp_path: Path, axis: int) -> None:
    """Against MONAI's own reorientation, from an oblique and flipped file, and back to the very voxels."""
    array = np.random.default_rng(0).normal(size=(7, 8, 9)).astype(np.float32)
    affine = np.array([[0.1, 2, 0, 3], [0.2, 0, -1.0, 4], [-3.0, 0.1, 0.1, 5], [0, 0, 0, 1]])
    reader = ReadImage(axis=axis)
    image = reader(nifti(tmp_path / "v.nii.gz", array, affine))
    codes = nibabel.aff2axcodes(np.asarray(image.affine))
    assert codes == tuple(("IPR", "ILA", "PLS")[axis])
    expected = Orientation("".join(codes), labels=None)(ReadImage()(tmp_path / "v.nii.gz"))
    np.testing.assert_array_equal(image, expected)
    back = reader.inverse(image)
    np.testing.assert_array_equal(back[0], array)
    np.testing.assert_array_equal(back.affine, nibabel.load(tmp_path / "v.nii.gz").affine)


@pytest.mark.parametrize("source", [0, 1, 2])
@pytest.mark.parametrize("target", [0, 1, 2])
def test_views_turn_into_each_other(tmp_path: Path, source: int, target: int) -> None:
    path = nifti(tmp_path / "v.nii", np.random.default_rng(1).normal(size=(5, 6, 7)).astype(np.float32))
    start, end = (torch.as_tensor(np.asarray(ReadImage(axis=axis)(path))) for axis in (source, target))
    view = SliceView(source, target)
    assert torch.equal(view(start), end)
    assert torch.equal(view.inverse(end), start)


def test_foreground_of_bytes_and_floats_is_the_same() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert float(foreground_fraction(levels)) == float(foreground_fraction(levels / 255)) == 243 / 256  # above 12
    colours = torch.zeros(1, 3, 2, 2)
    colours[0, 2, 0, 0] = 1
    assert float(foreground_fraction(colours)) == 0.25


def test_slices_that_qualify() -> None:
    volume = torch.zeros(1, 20, 20, 10, dtype=torch.uint8)
    for k in range(10):
        volume[:, :k, :10, k] = 200  # k / 40 of slice k
    chosen = SplitSlices(min_foreground=0.1)(volume)
    assert [(axis, k) for axis, k, _ in chosen] == [(2, k) for k in range(4, 10)]
    assert all(torch.equal(plane, volume[..., k]) for _, k, plane in chosen)
    assert len(SplitSlices(min_foreground=0)(volume)) == 10
    assert [k for _, k, _ in SplitSlices(min_foreground=0.1, slices_per_volume=2)(volume)] == [5, 8]
    exclude = torch.zeros(1, 200, 30, 10, dtype=torch.uint8)  # of another size; one voxel suffices
    exclude[0, 199, 29, 7] = 1
    assert [k for _, k, _ in SplitSlices(min_foreground=0.1)(volume, exclude)] == [4, 5, 6, 8, 9]
    with pytest.raises(ValueError, match=r"none of its slices .* at least 0.5 of a slice"):
        SplitSlices(min_foreground=0.5)(volume)


@given(axes=st.permutations([0, 1, 2]), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_excluded_voxels_are_in_no_slice(axes: list[int], seed: int) -> None:
    """Along every axis, and each slice is the one that reading along its axis gives."""
    rng = np.random.default_rng(seed)
    volume = torch.as_tensor(rng.integers(100, 200, (1, 12, 12, 12), dtype=np.uint8))
    exclude = torch.as_tensor((rng.random((1, 12, 12, 12)) < 0.002).astype(np.uint8))
    slices = SplitSlices(axes, 0.0)(volume, exclude)
    found = {(axis, k) for axis, k, _ in slices}
    for axis in axes:
        view = SliceView(axes[0], axis)
        kept = {k for k in range(12) if not view(exclude)[..., k].any()}
        assert {k for a, k in found if a == axis} == kept
    assert all(torch.equal(plane, SliceView(axes[0], axis)(volume)[..., k]) for axis, k, plane in slices)


@pytest.mark.parametrize("axes", [[], [2, 2], [3], [-1]])
def test_wrong_axes(axes: list[int]) -> None:
    with pytest.raises(ValueError, match="axes is .*name one or more of 0"):
        SplitSlices(axes)
    with pytest.raises(ValueError, match="axis is 3"):
        ReadImage(axis=3)


def chain(**kwargs: Any) -> Compose:
    return Compose(
        [
            ReadImaged("image", axis=kwargs.get("axes", [2])[0]),
            ReadMaskd("exclude", label_key=None, axis=kwargs.get("axes", [2])[0]),
            NormalizeByPresetd("image"),
            ResizeInPlaned("image", SIZE),
            QuantizeIntensityd("image"),
            SplitSlicesd(**kwargs),
            DequantizeIntensityd("image"),
        ]
    )


def test_data_set_of_slices_reads_each_volume_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices have the intensities of the volume, not their own, and equal those that inference sees."""
    rng = np.random.default_rng(3)
    array = (rng.random((70, 60, 12)) * np.arange(12)).astype(np.float32)  # slices of growing brightness
    nifti(tmp_path / "v.nii.gz", array)
    mask = np.zeros((70, 60, 12), np.uint8)
    mask[20, 30, 5] = 1
    nifti(tmp_path / "m.nii.gz", mask)
    (tmp_path / "manifest.json").write_text(
        json.dumps({"training": [{"image": "v.nii.gz", "label": 0, "exclude": "m.nii.gz"}], "testing": []})
    )
    reads = []
    read = io._READ["nifti"]
    monkeypatch.setitem(io._READ, "nifti", lambda path: reads.append(path) or read(path))
    items = load_manifest(tmp_path / "manifest.json")["training"]
    data = SliceCacheDataset(items, chain(min_foreground=0.05), progress=False)
    assert [item["name"] for item in data.data] == [f"v.nii.gz axis 2 slice {k}" for k in (*range(1, 5), *range(6, 12))]
    assert all(item["image"].dtype == torch.uint8 for item in data.data)
    whole = Compose([*chain().transforms[:1], *chain().transforms[2:5]])({"image": str(tmp_path / "v.nii.gz")})
    for _ in range(2):
        planes = [data[i]["image"] for i in range(len(data))]
    assert len(reads) == 3  # image and mask here, the image once more for `whole`
    for item, plane in zip(data.data, planes, strict=True):
        k = int(item["name"].split()[-1])
        assert torch.equal(plane, whole["image"][..., k].float() / 255)
    assert planes[0].max() < 0.2 < 0.8 < planes[-1].max()


def test_one_clear_error(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((20, 20, 3)).astype(np.float32)
    nifti(tmp_path / "v.nii", array)
    nifti(tmp_path / "flat.nii", array[..., :1])
    nifti(tmp_path / "m.nii", np.ones((20, 20, 3), np.uint8))
    nifti(tmp_path / "m_flat.nii", np.ones((20, 20, 1), np.uint8))
    nifti(tmp_path / "moved.nii", np.ones((20, 20, 3), np.uint8), np.diag([1, 1, 1.5, 1]))

    def run(**item: str) -> list[Any]:
        item = {k: str(tmp_path / v) for k, v in item.items()} | {"name": "it"}
        return chain()(item)  # type: ignore[return-value]

    assert len(run(image="v.nii")) == 3 and len(run(image="flat.nii")) == 1
    for message, files in {
        "it: none of its slices": {"image": "v.nii", "exclude": "m.nii"},
        "it: it is a 2D image and has no slices to exclude": {"image": "flat.nii", "exclude": "m_flat.nii"},
        "affine puts it elsewhere": {"image": "v.nii", "exclude": "moved.nii"},
    }.items():
        with pytest.raises(RuntimeError) as caught:
            run(**files)
        assert message in str(caught.value.__cause__)


def test_manifest(tmp_path: Path) -> None:
    nifti(tmp_path / "v.nii", np.random.default_rng(0).random((20, 20, 3)))
    nifti(tmp_path / "w.nii", np.random.default_rng(1).random((20, 20, 3)))
    nifti(tmp_path / "small.nii", np.zeros((20, 20, 2), np.uint8))

    def load(split: str, exclude: Any) -> Any:
        content = {"training": [{"image": "v.nii", "label": 0}]}
        content.setdefault(split, []).append({"image": "w.nii", "label": 0, "exclude": exclude})
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        return load_manifest(tmp_path / "manifest.json")

    assert load("training", "v.nii")["training"][1]["exclude"] == str(tmp_path / "v.nii")
    assert "exclude" not in load("training", None)["training"][1]
    for split, exclude, message in (
        ("testing", "v.nii", "'exclude' takes slices of a volume out of the training"),
        ("training", 3, "'exclude' is 3, it must be a path"),
        ("training", "absent.nii", "there is no such file"),
        ("training", "small.nii", "has size"),
    ):
        with pytest.raises(ManifestError, match=message):
            load(split, exclude)


def test_batches_hold_one_volume(tmp_path: Path) -> None:
    volume = {"image": str(nifti(tmp_path / "v.nii.gz", np.zeros((20, 20, 3))))}
    flat = {"image": str(nifti(tmp_path / "flat.nii.gz", np.zeros((20, 1, 20))))}
    assert is_volume(volume["image"]) and not is_volume(flat["image"])
    assert uniform_batch_size([flat, flat], 8) == 8 and uniform_batch_size([flat, volume], 8) == 1
    assert uniform_batch_size([], 4) == 4
