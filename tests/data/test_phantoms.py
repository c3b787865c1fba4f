# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from monai_rdad.data import load_manifest, phantoms
from monai_rdad.data.phantom_anatomy import LESION_KINDS, Head, Lesion
from monai_rdad.data.phantoms import phantom_dataset, phantom_slice, phantom_volume

SMALL = {"size": 48, "training": 3, "validation": 1, "calibration": 2, "testing": 2, "volumes": 1}


@pytest.fixture(scope="module")
def default_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default set as every user gets it, but without its volumes."""
    return Path(phantom_dataset(tmp_path_factory.mktemp("phantoms"), volumes=0))


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def slices(lesion: bool, count: int = 24, size: int = 96) -> list[tuple[Any, Any]]:
    return [phantom_slice(np.random.default_rng([9, i]), lesion, size) for i in range(count)]


def interior(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The head without its outermost 4 % of the picture's width, found from the picture alone."""
    head = ndimage.binary_fill_holes(ndimage.binary_closing(image > 50))
    assert head is not None
    return ndimage.binary_erosion(head, iterations=round(0.04 * len(image)))


def test_slice_is_a_function_of_the_seed() -> None:
    first, again, other = (phantom_slice(np.random.default_rng(s), True, 64) for s in (3, 3, 4))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("lesion", [False, True])
def test_slice_form(lesion: bool) -> None:
    for image, mask in slices(lesion, 4, 64):
        assert image.shape == mask.shape == (64, 64) and image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == ({0, 1} if lesion else {0})
        assert image[0].max() < 60 and image.max() > 150  # air around a bright scalp


def test_lesions_lie_inside_the_head_and_have_the_size_of_lesions() -> None:
    areas = []
    for image, mask in slices(True):
        assert not (mask.astype(bool) & ~interior(image)).any()
        assert ndimage.label(ndimage.binary_dilation(mask))[1] == 1
        areas.append(mask.mean())
    assert min(areas) > 0.002 and max(areas) < 0.06 and max(areas) > 2 * min(areas)


def test_lesions_stand_out_and_go_both_ways() -> None:
    brighter, darker = 0, 0
    for image, mask in slices(True):
        around = ndimage.binary_dilation(mask, iterations=6) & ~ndimage.binary_dilation(mask, iterations=2)
        values = image[mask > 0].astype(float) - np.median(image[around])
        brighter += values.max() > 40
        darker += values.min() < -40
    assert brighter >= 20 and darker >= 5


def test_every_kind_of_lesion_occurs_and_differs() -> None:
    axis = np.linspace(-1, 1, 40, dtype=np.float32)
    grid = (axis[None, :, None], axis[:, None, None], np.full((1, 1, 1), 0.15, np.float32))
    head = Head(np.random.default_rng(0))
    points = head.place(grid)
    assert {Lesion(np.random.default_rng(i), head, points).kind for i in range(40)} == set(LESION_KINDS)
    lesion = Lesion(np.random.default_rng(0), head, points)
    pictures = []
    for lesion.kind in LESION_KINDS:
        image, depth = head.render(points, 0.05)
        pictures.append(lesion.paint(image, points, depth, head, 0.05)[0])
    assert min(np.abs(a - b).max() for i, a in enumerate(pictures) for b in pictures[:i]) > 0.1


def test_volume_is_consistent_and_its_affine_sane() -> None:
    shape = (40, 48, 6)
    volume, mask, affine = phantom_volume(np.random.default_rng(1), True, shape)
    assert volume.shape == mask.shape == shape and volume.dtype == np.float32 and mask.dtype == np.uint8
    assert np.isfinite(volume).all() and volume.min() >= 0 and volume.max() > 100
    assert aff2axcodes(affine) == ("L", "A", "S")
    assert np.allclose(nibabel.affines.voxel_sizes(affine), [5, 5, 3.6], rtol=1e-5)
    centre = affine @ [*((np.array(shape) - 1) / 2), 1]
    assert np.allclose(centre[:2], 0, atol=1e-3) and 0 < centre[2] < 60
    # neighbouring slices show the same head
    flat = volume.reshape(-1, shape[2])
    assert np.corrcoef(flat[:, 0], flat[:, 1])[0, 1] > 0.8
    assert mask.any() and not phantom_volume(np.random.default_rng(1), False, shape)[1].any()


def test_axes_of_slices_and_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of the head coordinates themselves: x grows to the left, y to posterior, z upwards."""
    for axis, expected in enumerate((np.s_[None, :], np.s_[:, None])):
        with monkeypatch.context() as patch:

            def show(rng: Any, lesion: bool, grid: Any, step: float, axis: int = axis) -> tuple[Any, Any]:
                picture = np.broadcast_to(grid[axis], np.broadcast_shapes(*(g.shape for g in grid)))
                return picture, np.zeros(picture.shape, np.uint8)

            patch.setattr(phantoms, "_scan", show)
            image, _ = phantom_slice(np.random.default_rng(0), False, 32)  # negative coordinates are cut off
            ramp = np.clip((np.arange(32) + 0.5) / 16 - 1, 0, 1) * 255
            assert np.abs(image - ramp[expected]).max() <= 1
            volume, _, affine = phantom_volume(np.random.default_rng(0), False, (32, 24, 3))
        voxels = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
        world = nibabel.affines.apply_affine(affine, voxels) / phantoms.UNIT_MM  # right, anterior, superior
        assert np.corrcoef(volume.ravel(), -world[..., axis].ravel())[0, 1] > 0.999999


@pytest.mark.parametrize("call", [lambda r: phantom_slice(r, True, 8), lambda r: phantom_volume(r, True, (8, 20, 1))])
def test_too_small_a_phantom_is_refused(call: Any) -> None:
    with pytest.raises(ValueError, match="at least 16"):
        call(np.random.default_rng(0))


def test_dataset_is_complete_and_reproducible(tmp_path: Path) -> None:
    first, second = (phantom_dataset(tmp_path / name, **SMALL) for name in "ab")
    assert contents(first) == contents(second)
    other = phantom_dataset(tmp_path / "a", seed=1, **SMALL)
    assert other != first
    pairs = zip(contents(first).items(), contents(other).items(), strict=True)
    assert all(a != b for (name, a), (_, b) in pairs if name.startswith(("training", "testing", "volumes")))

    splits = load_manifest(Path(first) / "manifest.json")
    assert {k: len(v) for k, v in splits.items()} == {"training": 3, "validation": 2, "calibration": 2, "testing": 4}
    groups = [item["group"] for items in splits.values() for item in items]
    assert len(set(groups)) == len(groups)
    manifest = json.loads((Path(first) / "manifest.json").read_text())
    assert [item["label"] for item in manifest["volumes"]] == [0, 1] and {"name", "licence"} <= set(manifest)
    for items in (*splits.values(), manifest["volumes"]):
        assert all(("mask" in item) == (item["label"] == 1) for item in items)
    normal, abnormal = manifest["volumes"]
    image, mask = (nibabel.load(Path(first) / abnormal[key]) for key in ("image", "mask"))
    assert image.shape == mask.shape and np.array_equal(image.affine, mask.affine)
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}
    assert {p.name for p in (Path(first) / "volumes").iterdir()} == {Path(i["image"]).name for i in (normal, abnormal)}


def test_counts_do_not_change_samples(tmp_path: Path) -> None:
    few = contents(phantom_dataset(tmp_path, **SMALL))
    more = contents(phantom_dataset(tmp_path, **(SMALL | {"training": 5, "validation": 2, "testing": 3})))
    assert all(more[name] == data for name, data in few.items() if name != "manifest.json")


def test_second_call_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_RDAD_CACHE", str(tmp_path))
    folder = phantom_dataset(**SMALL)
    assert Path(folder).parent == tmp_path
    monkeypatch.setattr(phantoms, "phantom_slice", None)
    assert phantom_dataset(**SMALL) == folder


def test_crash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def crash(*args: Any) -> Any:
        made.append(args)
        if len(made) == 4:
            raise RuntimeError("power cut")
        return phantom_slice(*args)

    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "phantom_slice", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            phantom_dataset(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []
    assert (Path(phantom_dataset(tmp_path, **SMALL)) / "manifest.json").is_file()


def test_slower_of_two_processes_uses_the_faster_ones_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contents(phantom_dataset(tmp_path / "alone", **SMALL))
    write = phantoms._write_dataset

    def write_slowly(folder: Path, settings: dict[str, int]) -> None:
        monkeypatch.setattr(phantoms, "_write_dataset", write)
        phantom_dataset(tmp_path / "shared", **SMALL)  # the other process comes first
        write(folder, settings)

    monkeypatch.setattr(phantoms, "_write_dataset", write_slowly)
    folder = phantom_dataset(tmp_path / "shared", **SMALL)
    assert contents(folder) == expected
    assert [p.name for p in (tmp_path / "shared").iterdir()] == [Path(folder).name]


def test_incomplete_folder_is_an_error(tmp_path: Path) -> None:
    folder = Path(phantom_dataset(tmp_path, **SMALL))
    (folder / "manifest.json").unlink()
    with pytest.raises(FileExistsError, match="Move it away"):
        phantom_dataset(tmp_path, **SMALL)


def test_lesions_cannot_be_told_by_trivial_means(default_set: Path) -> None:
    manifest = load_manifest(default_set / "manifest.json")

    def pixels(items: list[dict[str, Any]], size: int) -> np.ndarray[Any, Any]:
        pictures = (Image.open(i["image"]).resize((size, size), Image.Resampling.BILINEAR) for i in items)
        return np.stack([np.asarray(p, float).ravel() for p in pictures])

    testing = manifest["testing"]
    labels = [item["label"] for item in testing]
    full = [np.asarray(Image.open(item["image"])) for item in testing]
    scores: dict[str, Any] = {
        "mean": [image.mean() for image in full],
        "std": [image.std() for image in full],
        "file size": [Path(item["image"]).stat().st_size for item in testing],
    }
    for size in (24, 64):
        distances = np.sort(cdist(pixels(testing, size), pixels(manifest["training"], size)), axis=1)
        scores |= {f"1-NN {size}": distances[:, 0], f"3-NN {size}": distances[:, :3].mean(axis=1)}
    found = {name: roc_auc_score(labels, values) for name, values in scores.items()}
    assert all(0.25 < value < 0.75 for value in found.values()), found
