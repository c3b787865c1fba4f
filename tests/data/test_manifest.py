# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from monai_rdad.data import ManifestError, data_record, list_inputs, load_manifest, manifest_hash, split_by_group

RNG = np.random.default_rng(0)


def picture(path: Path, shape: tuple[int, ...] = (24, 32)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path.name


def save(folder: Path, content: Any, name: str = "manifest.json") -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


@pytest.fixture
def dataset(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """A sound data set of eight pictures in ``tmp_path``; tests spoil it."""
    content: dict[str, list[dict[str, Any]]] = {}
    for split, count in (("training", 3), ("validation", 1), ("calibration", 1), ("testing", 3)):
        names = [f"{split}{i}" for i in range(count)]
        content[split] = [{"image": picture(tmp_path / f"{name}.png"), "label": 0, "group": name} for name in names]
    content["testing"][2] |= {"label": 1, "mask": picture(tmp_path / "mask.png")}
    return content


def test_both_forms_give_the_same(tmp_path: Path, dataset: dict[str, Any]) -> None:
    names = {"training": "train", "validation": "val", "calibration": "calibration", "testing": "test"}
    flat = [{"mask": None, **item, "split": names[split], "cls": 3} for split in dataset for item in dataset[split]]
    a, b = load_manifest(save(tmp_path, dataset)), load_manifest(save(tmp_path, flat, "flat.json"))
    assert a == b
    assert {split: len(items) for split, items in a.items()} == {
        "training": 3,
        "validation": 1,
        "calibration": 1,
        "testing": 3,
    }
    assert a["testing"][2] == {
        "image": str(tmp_path / "testing2.png"),
        "label": 1,
        "mask": str(tmp_path / "mask.png"),
        "group": "testing2",
        "stratum": "",
        "name": "testing2.png",
    }


def test_dataset_dir_unknown_keys_defaults(tmp_path: Path, dataset: dict[str, Any]) -> None:
    del dataset["training"][0]["group"]
    dataset["training"][1]["group"] = 17
    dataset["training"][1]["stratum"] = "scanner a"
    dataset["training"][1]["mask"] = "mask.png"
    dataset |= {"name": "set", "numTraining": 3, "modality": {"0": "MR"}}
    manifest = save(tmp_path.parent, dataset, f"{tmp_path.name}.json")
    splits = load_manifest(manifest, tmp_path)
    assert [item["group"] for item in splits["training"]] == ["training0.png", "17", "training2"]
    assert [item["stratum"] for item in splits["training"]] == ["", "scanner a", ""]
    assert "mask" not in splits["training"][1]  # normal by definition; keeps batches of one shape
    with pytest.raises(ManifestError, match=r"8 broken items(?s:.*)no such file(?s:.*)and 3 more"):
        load_manifest(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": 3}, "'image' is 3"),
        ({"image": None}, "'image' is None"),
        ({"label": "0"}, "'label' is '0'"),
        ({"label": 2}, "'label' is 2"),
        ({"label": True}, "'label' is True"),
        ({"label": 0.0}, "'label' is 0.0"),
        ({"mask": 1}, "'mask' is 1"),
        ({"mask": ""}, "'mask' is ''"),
        ({"group": ["a"]}, "'group' is"),
        ({"split": "holdout"}, "'split' is 'holdout'.*calibration"),
        ({"split": ["test"]}, "'split' is"),
    ],
)
def test_wrong_types_are_named(tmp_path: Path, dataset: dict[str, Any], change: dict[str, Any], message: str) -> None:
    flat = [{**item, "split": split} for split, items in dataset.items() for item in items]
    flat[4] |= change
    with pytest.raises(ManifestError, match=f"1 wrong items(?s:.*)record 4.*{message}"):
        load_manifest(save(tmp_path, flat), on_error="skip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no valid JSON.*line 1"),
        ("3", "holds a number"),
        ("null", "holds a null"),
        ("{}", "names no image"),
        ("[]", "names no image"),
        ('{"training": []}', "names no image"),
        ('{"images": []}', "names no image"),
        ('{"training": {"a": 1}}', "'training' is a object, it must be a list"),
        ('["a.png"]', "record 0: is a text, it must be an object"),
    ],
)
def test_broken_and_empty_manifests(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        load_manifest(save(tmp_path, content))


def test_unreadable_manifest(tmp_path: Path) -> None:
    for call in (load_manifest, manifest_hash):
        with pytest.raises(ManifestError, match=r"absent\.json: cannot be read \(No such file"):
            call(tmp_path / "absent.json")
        with pytest.raises(ManifestError, match="cannot be read"):
            call(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(ManifestError, match="UTF-8"):
        load_manifest(tmp_path / "latin.json")
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        load_manifest(tmp_path / "absent.json", on_error="ignore")  # type: ignore[arg-type]


def test_required_splits(tmp_path: Path, dataset: dict[str, Any]) -> None:
    only_test = {"testing": dataset["testing"]}
    with pytest.raises(ManifestError, match="split 'training' is empty"):
        load_manifest(save(tmp_path, only_test))
    assert len(load_manifest(save(tmp_path, only_test), required=["testing"])["testing"]) == 3


@pytest.mark.parametrize("split", ["training", "calibration"])
def test_abnormal_items_stay_out(tmp_path: Path, dataset: dict[str, Any], split: str) -> None:
    dataset[split][0]["label"] = 1
    with pytest.raises(ManifestError, match=f"1 abnormal items(?s:.*){split} {split}0.png"):
        load_manifest(save(tmp_path, dataset), on_error="skip")


def test_leaks(tmp_path: Path, dataset: dict[str, Any]) -> None:
    def load(split: str, **change: str) -> None:
        content = json.loads(json.dumps(dataset))
        content[split][0] |= change
        load_manifest(save(tmp_path, content), on_error="skip")

    with pytest.raises(ManifestError, match="group 'training1': training training1.png, testing testing0.png"):
        load("testing", group="training1")
    with pytest.raises(ManifestError, match=r"testing \./training1.png, already listed as training training1.png"):
        load("testing", image="./training1.png")
    with pytest.raises(ManifestError, match="listed twice"):
        load("training", image="training1.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "training1.png")
    with pytest.raises(ManifestError, match="listed twice"):
        load("calibration", image="link.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "training1.png").read_bytes())
    with pytest.raises(ManifestError, match="equal content in two splits(?s:.*)training1.png, validation copy.png"):
        load("validation", image="copy.png")
    load("training", image="copy.png", group="other")  # a copy inside one split is no leak
    load("testing", group="testing1")


def test_leaks_are_found_before_files_are_skipped(tmp_path: Path, dataset: dict[str, Any]) -> None:
    (tmp_path / "testing0.png").unlink()
    dataset["testing"][0]["group"] = "training0"
    with pytest.raises(ManifestError, match="groups in more than one split"):
        load_manifest(save(tmp_path, dataset), on_error="skip")


def written(folder: Path, suffix: str, write_dicom: Callable[..., Path]) -> Path:
    path = folder / f"x{suffix}"
    if suffix.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(RNG.normal(size=(12, 11, 10)).astype(np.float32), np.eye(4)), path)
    elif suffix == ".dcm":
        write_dicom(path, RNG.integers(0, 4096, (20, 30)).astype(np.uint16))
    else:
        picture(path, (60, 50, 3))
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".nii", ".nii.gz", ".dcm"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, suffix: str, keep: float, write_dicom: Callable[..., Path]) -> None:
    path = written(tmp_path, suffix, write_dicom)
    manifest = save(tmp_path, {"training": [{"image": path.name, "label": 0}]})
    load_manifest(manifest)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ManifestError, match=rf"training {path.name}: cannot be decoded .*Replace"):
        load_manifest(manifest)


def test_other_broken_files(tmp_path: Path, dataset: dict[str, Any]) -> None:
    (tmp_path / "training0.png").write_text("not a picture")
    (tmp_path / "notes.txt").write_text("not a picture")
    dataset["training"][1]["image"] = "notes.txt"
    dataset["training"][2]["image"] = "absent.png"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2)), np.eye(4)), tmp_path / "four.nii")
    dataset["testing"][0]["image"] = "four.nii"
    (tmp_path / "empty").mkdir()
    dataset["testing"][1]["image"] = "empty"
    with pytest.raises(ManifestError) as caught:
        load_manifest(save(tmp_path, dataset))
    for text in ("training0.png: cannot be decoded", "notes.txt: not a supported", "absent.png: there is no such file"):
        assert text in str(caught.value)
    assert "more than three dimensions" in str(caught.value) and "holds no DICOM file" in str(caught.value)


def test_masks(tmp_path: Path, dataset: dict[str, Any]) -> None:
    item = dataset["testing"][2]
    picture(tmp_path / "small.png", (24, 31))
    picture(tmp_path / "turned.png", (32, 24))
    picture(tmp_path / "lossy.jpg")
    for mask, message in {
        "small.png": r"has size \(24, 31\), the image \(24, 32\)",
        "turned.png": r"has size \(32, 24\), the image \(24, 32\)",
        "lossy.jpg": "is a JPEG",
        "absent.png": "its mask .*no such file",
        "manifest.json": "its mask .*not a supported",
    }.items():
        item["mask"] = mask
        with pytest.raises(ManifestError, match=f"testing testing2.png: .*{message}"):
            load_manifest(save(tmp_path, dataset))


def test_nifti_mask_in_another_axis_order(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(RNG.normal(size=(6, 7, 8)).astype(np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 6, 7, 1), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    picture(tmp_path / "normal.png")
    content = {
        "training": [{"image": "normal.png", "label": 0}],
        "testing": [{"image": "image.nii.gz", "mask": "mask.nii.gz", "label": 1}],
    }
    load_manifest(save(tmp_path, content))
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 6, 6), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    with pytest.raises(ManifestError, match="has size"):
        load_manifest(save(tmp_path, content))


def test_skip(tmp_path: Path, dataset: dict[str, Any]) -> None:
    (tmp_path / "training0.png").unlink()
    (tmp_path / "mask.png").unlink()
    manifest = save(tmp_path, dataset)
    with pytest.warns(UserWarning, match="skipped") as caught:
        splits = load_manifest(manifest, on_error="skip")
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 3
    assert "skipped training training0.png" in messages[0] and "skipped testing testing2.png" in messages[1]
    assert "2 broken items were skipped, 6 are left" in messages[2]
    assert [item["name"] for item in splits["training"]] == ["training1.png", "training2.png"]
    for i in (1, 2):
        (tmp_path / f"training{i}.png").unlink()
    with (
        pytest.warns(UserWarning, match="4 broken items were skipped"),
        pytest.raises(ManifestError, match="split 'training' is empty"),
    ):
        load_manifest(manifest, on_error="skip")


def test_a_thousand_pictures_in_three_seconds(tmp_path: Path) -> None:
    noise = RNG.integers(0, 256, (1000, 64, 64), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", compress_level=0)  # equal sizes: each one is hashed
    items = [{"image": f"{i}.png", "label": 0, "split": "train" if i % 2 else "test"} for i in range(1000)]
    start = time.perf_counter()
    load_manifest(save(tmp_path, items))
    assert time.perf_counter() - start < 3


def test_manifest_hash(tmp_path: Path) -> None:
    path = save(tmp_path, "[1]")
    assert manifest_hash(path) == hashlib.sha256(b"[1]").hexdigest()


def test_list_inputs(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    pixels = RNG.integers(0, 255, (6, 8), dtype=np.uint8)
    for folder, position in (("series", True), ("views", False)):
        (tmp_path / folder).mkdir()
        for i in range(3):
            write_dicom(tmp_path / folder / f"{i}", pixels, position=(0, 0, i) if position else None, number=i)
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.jpeg")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    assert list_inputs(tmp_path / "b.png") == [{"image": str(tmp_path / "b.png"), "name": "b.png"}]
    assert list_inputs(tmp_path / "series") == [{"image": str(tmp_path / "series"), "name": "series"}]
    assert [item["name"] for item in list_inputs(tmp_path / "views")] == ["0", "1", "2"]
    assert [item["name"] for item in list_inputs(tmp_path)] == ["a.jpeg", "b.png", "series"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no image in this folder"):
        list_inputs(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no such file"):
        list_inputs(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="not a supported image file"):
        list_inputs(tmp_path / "notes.txt")


@given(
    sizes=st.lists(st.integers(1, 9), min_size=12, max_size=40),
    sick=st.lists(st.booleans(), min_size=40, max_size=40),
    seed=st.integers(0, 5),
)
def test_split_by_group(sizes: list[int], sick: list[bool], seed: int) -> None:
    pairs = [(g, i) for g, n in enumerate(sizes) for i in range(n)]
    items: list[dict[str, Any]] = [
        {"image": f"{g}-{i}", "group": f"g{g}", "label": int(sick[g] and i == 0)} for g, i in pairs
    ]
    fractions = {"training": 0.5, "validation": 0.25, "testing": 0.25}
    normal = [n for g, n in enumerate(sizes) if not sick[g]]
    if len(normal) < 3:
        return
    result = split_by_group(items, fractions, seed)
    assert sorted(item["image"] for part in result.values() for item in part) == sorted(i["image"] for i in items)
    groups = {split: {item["group"] for item in part} for split, part in result.items()}
    assert sum(map(len, groups.values())) == len(sizes)
    assert not any(item["label"] for item in result["training"])
    # Dealing to the split that lacks most misses a target by less than the largest group.
    assert abs(len(result["training"]) - sum(normal) / 2) <= max(sizes)
    shuffled = split_by_group(items[::-1], fractions, seed)
    assert {split: {item["group"] for item in part} for split, part in shuffled.items()} == groups


def test_split_by_group_depends_on_the_seed_and_refuses_nonsense() -> None:
    items: list[dict[str, Any]] = [{"image": str(i), "label": 0} for i in range(30)]
    halves = {"training": 0.5, "testing": 0.5}
    a, b = (split_by_group(items, halves, seed)["training"] for seed in (0, 1))
    assert len(a) == len(b) == 15 and a != b
    for wrong in ({}, {"training": 0.5}, {"training": 1.5, "testing": -0.5}):
        with pytest.raises(ValueError, match="add up to 1"):
            split_by_group(items, wrong)
    with pytest.raises(ValueError, match="leave 'testing' without items"):
        split_by_group(items[:1], halves)
    items[0]["label"] = 1
    with pytest.raises(ValueError, match="give a fraction to 'validation' or 'testing'"):
        split_by_group(items, {"training": 1.0})


def test_data_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("manifest.json").write_bytes(b"[]")
    digest = hashlib.sha256(b"[]").hexdigest()
    expected = {"manifest": f"{tmp_path}/manifest.json", "dataset_dir": f"{tmp_path}/data", "manifest_sha256": digest}
    assert data_record("manifest.json", "data") == expected
    assert data_record("manifest.json", "data", {"knee": "manifest.json"}) == expected | {"tasks": {"knee": digest}}
    with pytest.raises(ManifestError, match="lost.json: cannot be read"):
        data_record("manifest.json", "data", {"knee": "lost.json"})


def test_import_is_light() -> None:
    code = "import sys, monai_rdad.data; print(sorted({'torch', 'monai', 'scipy', 'numpy', 'PIL'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_real_manifests(real_data: Path) -> None:
    manifests = [path for path in sorted(real_data.glob("*/manifest.json")) if path.parent.name != "volumes"]
    assert manifests
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for manifest in manifests:
            splits = load_manifest(manifest)
            assert splits["training"] and {item["label"] for item in splits["testing"]} == {0, 1}
