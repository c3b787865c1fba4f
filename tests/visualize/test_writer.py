# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Invertd
from PIL import Image
from torch import nn

from monai_rdad.inferers import SlicewiseInferer
from monai_rdad.transforms import NormalizeByPresetd, ReadImaged, ResizeInPlaned, ScoreReduction
from monai_rdad.visualize import writer
from monai_rdad.visualize.writer import PredictionWriter, file_stem, read_map

SIZE = 64


class Brightness(nn.Module):
    """The map is twice the image's brightness: known everywhere, and it follows every turn of the image."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 2 * image.mean(1, keepdim=True)


def picture(path: Path, size: tuple[int, int] = (40, 56), color: bool = False, level: int = 60) -> Path:
    """Dark, with a bright block in the upper right quarter."""
    array = np.full(size, level, np.uint8)
    array[4:16, -18:-4] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([array] * 3, -1) if color else array).save(path)
    return path


def volume(path: Path, affine: Any, shape: tuple[int, ...] = (20, 24, 12), slice_axis: int = 2, k: int = 3) -> Path:
    """Dark, with a bright block in slice k."""
    array = np.full(shape, 20, np.uint8)
    block: list[Any] = [slice(3, 9)] * 3
    block[slice_axis] = slice(k, k + 1)
    array[tuple(block)] = 255
    array[(0,) * 3] = 0
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def infer(
    items: list[dict[str, Any]], folder: Path, network: nn.Module | None = None, decollate: bool = True, **kwargs: Any
) -> list[dict[str, str]]:
    before = Compose(
        [
            ReadImaged("image", channels=kwargs.pop("channels", 1)),
            NormalizeByPresetd("image", preset="8bit"),
            ResizeInPlaned("image", size=SIZE),
        ]
    )
    after = Invertd(["pred", "image"], before, orig_keys="image", nearest_interp=False)
    SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(items, before), batch_size=1),
        network=network or Brightness(),
        inferer=SlicewiseInferer(),
        postprocessing=after if decollate else None,
        val_handlers=[PredictionWriter(folder, **{"reduction": ScoreReduction("max")} | kwargs)],
        decollate=decollate,
    ).run()
    with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def named(*paths: Path) -> list[dict[str, Any]]:
    return [{"image": str(p), "name": p.name} for p in paths]


@pytest.mark.parametrize("color", [False, True])
def test_picture(tmp_path: Path, color: bool) -> None:
    path = picture(tmp_path / "a.png", color=color)
    (row,) = infer(named(path), tmp_path / "out", scale=(0.0, 2.0), channels=3 if color else 1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_map.png", "a_overlay.png", "scores.csv"]
    with Image.open(path) as source:
        expected = 2 / 255 * np.asarray(source.convert("L"), np.float32)
    result = read_map(tmp_path / "out/a_map.png")
    assert result.shape == (40, 56) and result.dtype == np.float32
    assert np.abs(result - expected).mean() < 0.02  # the block's edges were resampled
    assert result[10, 45] == pytest.approx(2.0, abs=0.01) and result[30, 10] == pytest.approx(120 / 255, abs=1e-3)
    with Image.open(tmp_path / "out/a_map.png") as image:
        assert image.mode.startswith("I") and float(image.text["monai_rdad max_value"]) == 6.0
        assert np.asarray(image)[10, 45] == pytest.approx(65535 / 3, rel=0.01)  # the documented scale
    assert (row["name"], row["width"], row["height"], row["depth"]) == ("a.png", "56", "40", "1")
    assert (row["map"], row["overlay"], row["slice"], row["max_value"]) == ("a_map.png", "a_overlay.png", "", "6.0")
    assert float(row["score"]) == pytest.approx(2.0, abs=1e-5)
    assert float(row["max"]) == pytest.approx(result.max(), abs=1e-4)
    assert float(row["mean"]) == pytest.approx(result.mean(), abs=1e-4)
    with Image.open(tmp_path / "out/a_overlay.png") as image:
        assert image.size == (56, 40) and image.mode == "RGB"


AFFINES = {
    "RAS": np.diag([1.0, 2.0, 3.0, 1.0]),
    "LPI": np.diag([-1.0, -1.0, -3.0, 1.0]),
    "oblique SAR": np.array([[0, 0.1, 2, -5], [0.1, 1, 0, 7], [3.0, -0.1, 0, 9], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("orientation", AFFINES)
def test_volume(tmp_path: Path, orientation: str) -> None:
    affine = AFFINES[orientation]
    axis = 0 if "SAR" in orientation else 2  # towards superior (or inferior)
    path = volume(tmp_path / "v.nii.gz", affine, slice_axis=axis)
    (row,) = infer(named(path), tmp_path / "out", scale=(0.0, 2.0))
    files = ["lesions.csv", "scores.csv", "slices.csv", "v_map.nii.gz", "v_overlay.png", "v_volume.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == files
    source, result = nibabel.load(path), nibabel.load(tmp_path / "out/v_map.nii.gz")
    assert result.shape == source.shape and result.get_data_dtype() == np.float32
    assert np.array_equal(result.affine, source.affine)
    assert np.abs(result.get_fdata() - 2 / 255 * source.get_fdata()).mean() < 0.02
    peak = np.unravel_index(result.get_fdata().argmax(), result.shape)
    assert source.get_fdata()[peak] == 255
    assert [row[k] for k in ("width", "height", "depth")] == ["20", "24", "12"]
    assert (row["slice"], row["max_value"]) == ("3", "")
    with Image.open(tmp_path / "out/v_overlay.png") as image:
        # Nine axial slices: columns from the right to the left side, rows from front to back, square pixels.
        columns, rows = {"RAS": (20, 48), "LPI": (20, 24), "oblique SAR": (24, 24)}[orientation]
        assert image.size == (3 * columns, 3 * rows)


def test_score_is_that_of_the_evaluation(tmp_path: Path) -> None:
    """From the map at the network's size, and not from the resampled one."""
    path = picture(tmp_path / "a.png", (200, 16))
    (row,) = infer(named(path), tmp_path / "out", reduction=ScoreReduction("mean"))
    before = Compose([ReadImaged("image"), NormalizeByPresetd("image", preset="8bit"), ResizeInPlaned("image", SIZE)])
    expected = Brightness()(before({"image": str(path)})["image"][None]).mean()
    assert float(row["score"]) == pytest.approx(float(expected), rel=1e-6)


def test_one_slice_nifti_and_views(tmp_path: Path) -> None:
    coronal = volume(tmp_path / "thin.nii", np.eye(4), shape=(20, 1, 30), slice_axis=1, k=0)
    (row,) = infer(named(coronal), tmp_path / "out")
    assert nibabel.load(tmp_path / "out/thin_map.nii.gz").shape == (20, 1, 30)
    assert row["slice"] == ""
    with Image.open(tmp_path / "out/thin_overlay.png") as image:
        assert image.size == (20, 30)  # upright


def test_equal_names_order_and_folders(tmp_path: Path) -> None:
    paths = [picture(tmp_path / p, level=10 + 40 * i) for i, p in enumerate(("b/x.png", "a/x.png", "a/x.bmp", "x.png"))]
    items = [{"image": str(p), "name": str(p.relative_to(tmp_path))} for p in paths]
    rows = infer(items, tmp_path / "out")
    assert [r["name"] for r in rows] == [i["name"] for i in items]
    assert [r["map"] for r in rows] == ["b__x_map.png", "a__x_map.png", "a__x_2_map.png", "x_map.png"]
    for i, row in enumerate(rows):
        assert read_map(tmp_path / "out" / row["map"])[30, 10] == pytest.approx(2 * (10 + 40 * i) / 255, abs=1e-3)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), max_size=6))
def test_stems_are_safe_and_unlike(names: list[str]) -> None:
    taken: set[str] = set()
    stems = [file_stem(name, taken) for name in [*names, *names]]
    assert len({s.casefold() for s in stems}) == len(stems)
    for stem in stems:
        assert stem and not set(stem) & set('/\\<>:"|?*\0') and len(f"{stem}_map.nii.gz".encode()) < 255
        assert f"{stem}_map.png" not in (".", "..")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a/b/c.nii.gz", "a__b__c"),
        ("../../x.PNG", "x"),
        ("series.1.2.3", "series.1.2.3"),
        ("C:\\data\\s.dcm", "C___data__s"),
        (".png", "image"),
    ],
)
def test_stem(name: str, stem: str) -> None:
    assert file_stem(name, set()) == stem


def test_normal_image_looks_calm_beside_an_abnormal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "HOLD", 2)  # the third input is drawn with the scale of the first two
    wild = picture(tmp_path / "wild.png", level=0)
    calm = tmp_path / "calm.png"
    array = np.full((40, 56), 30, np.uint8)
    array[:4] = 33
    Image.fromarray(array).save(calm)
    Image.fromarray(array).save(tmp_path / "last.png")
    infer(named(calm, wild, tmp_path / "last.png"), tmp_path / "out")

    def colored(name: str) -> float:
        with Image.open(tmp_path / "out" / f"{name}_overlay.png") as image:
            pixels = np.asarray(image).astype(int)
        return float(np.ptp(pixels, axis=2).max())

    assert colored("wild") > 60
    assert colored("calm") < 15
    assert colored("last") == colored("calm")


def test_large_picture_gets_a_small_overlay_and_a_full_map(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", (1000, 500))
    infer(named(path), tmp_path / "out", scale=(0.0, 1.0))
    assert read_map(tmp_path / "out/a_map.png").shape == (1000, 500)
    with Image.open(tmp_path / "out/a_overlay.png") as image:
        assert image.size == (384, 768)


def test_values_beyond_the_scale(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (row,) = infer(named(picture(tmp_path / "a.png")), tmp_path / "out", max_value=1.0)
    assert "a.png: its map reaches 2; the PNG cuts values above 1" in caplog.text
    assert read_map(tmp_path / "out/a_map.png").max() == pytest.approx(1.0)
    assert float(row["max"]) == pytest.approx(2.0, abs=0.01)


def test_refuses(tmp_path: Path) -> None:
    class Broken(Brightness):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image).log10() * float("inf")

    path = picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png: the anomaly map is not finite"):
        infer(named(path), tmp_path / "out", Broken())
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match='no "name"'):
        infer([{"image": str(path)}], tmp_path / "out")
    with pytest.raises(ValueError, match="decollate=True"):
        infer(named(path), tmp_path / "out", decollate=False)
    with pytest.raises(ValueError, match="no map of PredictionWriter"):
        read_map(path)
