# SPDX-License-Identifier: Apache-2.0
"""Miniatures of downloads in their official layout and formats, with the traps that each set is known for."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

Array = np.ndarray[Any, Any]


class Expected(NamedTuple):
    """What must come of a miniature: usable normal and abnormal images, broken items, and masks."""

    normal: int
    abnormal: int
    problems: int = 0
    masks: int = 0


def texture(seed: int | Sequence[int], size: tuple[int, int] = (48, 56), color: bool = False) -> Array:
    """A picture unlike those of other seeds, bytes."""
    noise = np.random.default_rng(seed).normal(size=(*size, 3) if color else size)
    smooth = gaussian_filter(noise, (4, 4, 0) if color else 4)
    return np.uint8(np.clip(128 + 60 * (smooth - smooth.mean()) / smooth.std(), 0, 255))


def save(path: Path, pixels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def blob() -> Array:
    return np.pad(np.full((10, 18), 255, np.uint8), ((10, 28), (12, 26)))


def write_table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


Writer = Callable[[Path, Callable[..., Path]], Expected]
WRITERS: dict[str, Writer] = {}


def writer(name: str) -> Callable[[Writer], Writer]:
    return lambda function: WRITERS.setdefault(name, function)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory, write_dicom: Callable[..., Path]) -> Callable[[str], Any]:
    """(folder, expected) of a data set's miniature; a test must not change the folder."""
    made: dict[str, tuple[Path, Expected]] = {}

    def make(name: str) -> tuple[Path, Expected]:
        if name not in made:
            folder = tmp_path_factory.mktemp(f"raw_{name}")
            made[name] = folder, WRITERS[name](folder, write_dicom)
        return made[name]

    return make


@writer("rsna_pneumonia")
def _rsna(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    kinds = {f"n{i}": "Normal" for i in range(8)} | {f"o{i}": "Lung Opacity" for i in range(4)}
    kinds |= {"x0": "No Lung Opacity / Not Normal", "cut": "Normal"}
    folder = raw / "stage_2_train_images"
    folder.mkdir()
    for i, name in enumerate(kinds):
        write_dicom(folder / f"{name}.dcm", texture([1, i]))
    (folder / "cut.dcm").write_bytes((folder / "cut.dcm").read_bytes()[:900])
    rows = [["patientId", "class"], *kinds.items(), ["o1", "Lung Opacity"]]  # two boxes, two rows
    write_table(raw / "stage_2_detailed_class_info.csv", rows)
    # n6 is of the patient that o0 is of
    entries = [{"subset_img_id": n, "img_id": f"{'o0' if n == 'n6' else n}_000.png"} for n in kinds]
    (raw / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(entries))
    return Expected(8, 4, problems=1)


@writer("siim_pneumothorax")
def _siim(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    rows = [["ImageId", " EncodedPixels"]]
    for i in range(9):
        folder = raw / "dicom-images-train" / f"study{i}" / f"series{i}"
        folder.mkdir(parents=True)
        write_dicom(folder / f"im{i}.dcm", texture([2, i]))
        if i < 4:
            rows.append([f"im{i}", " -1"])
        elif i < 8:
            rows += [[f"im{i}", "100 5 43 5"], [f"im{i}", "1000 3"]]  # two objects
    rows.append(["lost", "-1"])  # im8 has no row, "lost" no file
    write_table(raw / "train-rle.csv", rows)
    return Expected(4, 4, problems=1, masks=4)


@writer("nih_chestxray14")
def _nih(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    rows = [["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position"]]
    test = []
    for i in range(8):
        for k in range(2):
            name = f"{i:08d}_{k:03d}.png"
            pixels = texture([3, i, k])
            # a few of the real files are RGBA
            save(raw / f"images_{1 + i % 2:03d}" / "images" / name, np.stack([pixels] * 4, -1) if i == 0 else pixels)
            sick = i >= 6 or (i == 5 and k == 1)
            rows.append([name, "Mass|Pneumonia" if sick else "No Finding", k, i, "PA"])
            if i >= 4:
                test.append(name)
    rows.append(["00000099_000.png", "No Finding", 0, 99, "PA"])
    write_table(raw / "Data_Entry_2017_v2020.csv", rows)
    (raw / "test_list.txt").write_text("\n".join(test))
    return Expected(11, 5, problems=1)


@writer("kermany_chest_xray")
def _kermany(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    for root in (raw / "chest_xray", raw / "chest_xray" / "chest_xray"):  # the archive holds itself
        for place, n in (("train", 4), ("val", 1), ("test", 2)):
            for i in range(n):
                seed = [4, len(place), i]
                save(root / place / "NORMAL" / f"IM-{len(place)}{i:03d}-0001.jpeg", texture([*seed, 0]))
                save(root / place / "PNEUMONIA" / f"person{i}_virus_{i}.jpeg", texture([*seed, 1]))
    (raw / "chest_xray" / "train" / "NORMAL" / "._IM-0001-0001.jpeg").write_bytes(b"Mac OS X")
    return Expected(7, 3)  # the abnormal images of train/ stay unused


@writer("brain_tumor_mri")
def _brain_tumor(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    for i, place in enumerate(("Training", "Testing")):
        for j, kind in enumerate(("notumor", "glioma", "meningioma", "pituitary")):
            for k in range(3):
                save(raw / place / kind / f"{kind[:2]}_{k:04d}.jpg", texture([5, i, j, k], (48 + j, 48)))
    return Expected(6, 12)


@writer("br35h")
def _br35h(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    for number in (0, 1, 999, 1000, 1001):
        save(raw / "no" / f"no{number}.jpg", texture([6, number]))
        save(raw / "yes" / f"y{number}.jpg", texture([7, number]))
    save(raw / "pred" / "pred0.jpg", texture([8]))
    return Expected(5, 5)


@writer("brats2021")
def _brats(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    import nibabel

    for i in range(5):
        case = raw / "BraTS2021_Training_Data" / f"BraTS2021_{i:05d}"
        case.mkdir(parents=True)
        image = np.stack([texture([9, i, k], (40, 44)) for k in range(8)], -1).astype(np.int16) * 7
        labels = np.zeros_like(image)
        labels[10:20, 12:20, 5:] = 4
        labels[10, 10, 4] = 1  # too little to count
        for name, values in (("flair", image), ("seg", labels)):
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 1, 1])), case / f"{case.name}_{name}.nii.gz")
    (case / f"{case.name}_seg.nii.gz").unlink()
    cut = raw / "BraTS2021_Training_Data" / "BraTS2021_00003" / "BraTS2021_00003_flair.nii.gz"
    cut.write_bytes(cut.read_bytes()[:900])
    return Expected(12, 3, problems=2, masks=3)  # of 3 patients: 2 train, with 4 normal slices each


@writer("lgg_segmentation")
def _lgg(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    for i in range(5):
        name = f"TCGA_XX_{i:04d}_19990101"
        for k in range(1, 11):  # 10 comes before 2 in the order of names
            picture = texture([10, i, k], color=True)
            mask = blob() if 4 <= k <= 6 else np.zeros((48, 56), np.uint8)
            save(raw / "kaggle_3m" / name / f"{name}_{k}.tif", picture if k > 1 else picture * 0)
            save(raw / "kaggle_3m" / name / f"{name}_{k}_mask.tif", mask)
    (raw / "kaggle_3m" / name / f"{name}_10_mask.tif").unlink()
    shutil.copytree(raw / "kaggle_3m", raw / "lgg-mri-segmentation" / "kaggle_3m")
    return Expected(29, 6, problems=1, masks=6)  # of 5 patients, 3 train with 6 normal slices each; 1 is black


@writer("head_ct_hemorrhage")
def _head_ct(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    for i in range(12):
        pixels = texture([11, i], color=True)
        rgba = np.dstack([pixels, np.full((48, 56), 255, np.uint8)])
        save(raw / "head_ct" / "head_ct" / f"{i:03d}.png", rgba if i > 9 else pixels)
    write_table(raw / "labels.csv", [["id", " hemorrhage"], *([i, int(i < 6)] for i in range(12)), [99, 0]])
    return Expected(6, 6, problems=1)


@writer("aptos2019")
def _aptos(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    rows: list[list[Any]] = [["id_code", "diagnosis"]]
    yy, xx = np.mgrid[:120, :200]
    disc = (yy - 60) ** 2 + (xx - 105) ** 2 < 55**2
    for i in range(9):
        picture = (60 + texture([12, i], (120, 200), color=True) // 2) * disc[..., None].astype(np.uint8)
        save(raw / "train_images" / f"eye{i}.png", picture)
        rows.append([f"eye{i}", max(0, i - 4)])
    save(raw / "train_images" / "black.png", np.zeros((50, 50, 3), np.uint8))
    write_table(raw / "train.csv", [*rows, ["black", 0], ["lost", 2]])
    return Expected(5, 4, problems=2)


@writer("lag")
def _lag(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    for j, kind in enumerate(("non_glaucoma", "suspicious_glaucoma")):
        for i in range(4):
            save(raw / f"part_{i % 2}" / kind / "image" / f"{i // 2:04d}.jpg", texture([13, j, i], color=True))
            save(raw / "part_1" / kind / "attention_map" / f"{i:04d}.jpg", texture([14, j, i]))
    return Expected(4, 4)


@writer("odir5k")
def _odir(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    eyes = [
        ("normal fundus", "normal fundus"),
        ("normal fundus", "lens dust，normal fundus"),
        ("normal fundus", "moderate non proliferative retinopathy"),  # healthy eye of a sick patient
        ("cataract，lens dust", "low image quality"),  # the right eye is unusable
        ("normal fundus", "normal fundus"),
    ]
    keywords = ["Left-Diagnostic Keywords", "Right-Diagnostic Keywords"]
    rows: list[list[Any]] = [["ID", "Left-Fundus", "Right-Fundus", *keywords]]
    for i, (left, right) in enumerate(eyes):
        row = [i, f"{i}_left.jpg", f"{i}_right.jpg", left, right]
        rows += [row, row]  # full_df.csv has a row for each eye
        for k, name in enumerate(row[1:3]):
            save(raw / "ODIR-5K" / "Training Images" / name, texture([15, i, k], color=True))
            save(raw / "preprocessed_images" / name, texture([15, i, k], (32, 32), color=True))
    (raw / "ODIR-5K" / "Training Images" / "4_right.jpg").unlink()
    (raw / "preprocessed_images" / "4_right.jpg").unlink()
    write_table(raw / "full_df.csv", rows)
    return Expected(6, 2, problems=1)


@writer("oct2017")
def _oct2017(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    root = raw / "OCT2017 "  # with a blank, as in Kaggle's archive
    for place, patients in (("train", range(6)), ("val", range(20, 21)), ("test", range(5, 8))):
        for j, kind in enumerate(("CNV", "DME", "DRUSEN", "NORMAL")):
            for patient in patients:
                number = patient + 100 * j
                name = f"{kind}-{number}-{len(place)}.jpeg"
                save(root / place / kind / name, texture([16, len(place), j, patient]))
    return Expected(9, 12)  # patient 305 of train/NORMAL is in test/ as well


@writer("duke_dme")
def _duke(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    from scipy.io import savemat

    for i in range(1, 5):
        images = np.stack([texture([17, i, k]) for k in range(6)], -1).astype(np.float64)
        fluid = np.full((48, 56, 6), np.nan)
        fluid[..., 1:5] = 0  # four of six B-scans are annotated
        second = fluid.copy()
        fluid[5:15, 8:20, 1] = 3
        second[5:15, 8:20, 2] = 1
        savemat(raw / f"Subject_{i:02d}.mat", {"images": images, "manualFluid1": fluid, "manualFluid2": second})
    (raw / "Subject_09.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut off")
    return Expected(8, 4, problems=1, masks=4)  # of 4 subjects, 2 train


@writer("retouch")
def _retouch(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    import SimpleITK

    for i, device in enumerate(("Cirrus", "Spectralis", "Topcon")):
        for k in range(2):
            folder = raw / f"RETOUCH-TrainingSet-{device}" / f"TRAIN{i}{k}"
            folder.mkdir(parents=True)
            volume = np.stack([texture([18, i, k, z]) for z in range(4)])
            volume = volume.astype(np.uint16) * 200 if device == "Spectralis" else volume
            labels = np.zeros(volume.shape, np.uint8)
            labels[2:, 10:20, 12:30] = 1 + k
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume), str(folder / "oct.mhd"))
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), str(folder / "reference.mhd"))
    (folder / "oct.raw").unlink()
    return Expected(10, 4, problems=1, masks=4)  # of 5 volumes, 3 train


@writer("isic2018_task3")
@writer("medianomaly_isic2018")
def _isic(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    header = ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    groups = [["image", "lesion_id", "diagnosis_confirm_type"]]
    for j, (part, n) in enumerate((("Training", 7), ("Validation", 2), ("Test", 4))):
        rows: list[list[Any]] = [header]
        for i in range(n):
            name = f"ISIC_{j}{i:03d}"
            kind = 1 if i % 3 < 2 else 0  # NV, NV, MEL, ...
            rows.append([name, *(float(k == kind) for k in range(7))])
            save(raw / f"ISIC2018_Task3_{part}_Input" / f"{name}.jpg", texture([19, j, i], color=True))
            if part == "Training":
                groups.append([name, f"HAM_{i // 2}", "histopathology"])
        write_table(raw / f"ISIC2018_Task3_{part}_GroundTruth" / f"ISIC2018_Task3_{part}_GroundTruth.csv", rows)
    write_table(raw / "ISIC2018_Task3_Training_LesionGroupings.csv", groups)
    return Expected(5 + 3, 1)


@writer("ham10000")
def _ham(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    rows = [["lesion_id", "image_id", "dx", "dx_type"]]
    for i in range(10):
        name = f"ISIC_00{i:02d}"
        rows.append([f"HAM_{i // 2}", name, "nv" if i < 6 else "mel", "histo"])
        save(raw / f"HAM10000_images_part_{1 + i % 2}" / f"{name}.jpg", texture([20, i], color=True))
        if i != 9:
            save(raw / "HAM10000_segmentations_lesion_tschandl" / f"{name}_segmentation.png", blob())
    write_table(raw / "HAM10000_metadata", [*rows, ["HAM_9", "ISIC_0099", "nv", "histo"]])
    return Expected(6, 4, problems=1, masks=3)


@writer("busi")
def _busi(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    root = raw / "Dataset_BUSI_with_GT"
    for j, kind in enumerate(("benign", "malignant", "normal")):
        for i in range(1, 5):
            save(root / kind / f"{kind} ({i}).png", texture([21, j, i], color=True))
            if (kind, i) != ("malignant", 4):
                save(root / kind / f"{kind} ({i})_mask.png", blob() if kind != "normal" else 0 * blob())
    save(root / "benign" / "benign (1)_mask_1.png", blob()[::-1].copy())
    return Expected(4, 7, problems=1, masks=7)


@writer("cvc_clinicdb")
def _cvc(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    for kind in ("TIF", "PNG"):
        for i in range(4):
            suffix = "tif" if kind == "TIF" else "png"
            save(raw / kind / "Original" / f"{i}.{suffix}", texture([22, i], color=True))
            if i < 3:
                save(raw / kind / "Ground Truth" / f"{i}.{suffix}", np.stack([blob()] * 3, -1))
    rows = [["frame_id", "sequence_id"], *([i, i // 2] for i in range(4))]
    write_table(raw / "metadata.csv", rows)
    return Expected(0, 3, problems=1, masks=3)


def _good_and_bad(raw: Path, nested: bool, seed: int, names: Callable[[int], str]) -> Expected:
    for j, (place, kind, n) in enumerate(
        (("train", "good", 4), ("valid", "good", 1), ("valid", "Ungood", 1), ("test", "good", 2), ("test", "Ungood", 3))
    ):
        for i in range(n):
            folder = raw / place / kind / ("img" if nested else "")
            save(folder / f"{names(10 * j + i)}.png", texture([seed, j, i], color=True))
            if nested and kind == "Ungood":
                empty = (place, i) == ("test", 2)
                save(raw / place / kind / "label" / f"{names(10 * j + i)}.png", blob() * (not empty))
    return Expected(7, 3, problems=1, masks=3) if nested else Expected(7, 4)


for _name, _nested, _seed, _names in (
    ("bmad_brain", True, 30, lambda i: f"{i:05d}_60"),
    ("bmad_liver", True, 31, lambda i: f"liver_{i}_17"),
    ("bmad_resc", True, 32, lambda i: f"{i}_{i + 1}"),
    ("bmad_oct2017", False, 33, lambda i: f"NORMAL-{i}-1"),
    ("bmad_chest", False, 34, lambda i: f"{i:04x}"),
    ("bmad_histopathology", False, 35, str),
    ("camelyon16_patches", False, 36, str),
):
    WRITERS[_name] = lambda raw, _, nested=_nested, seed=_seed, names=_names: _good_and_bad(raw, nested, seed, names)


@writer("medianomaly_camelyon16")
@writer("medianomaly_brats2021")
def _medianomaly_all(raw: Path, write_dicom: Callable[..., Path]) -> Expected:
    """Both in one folder, as the archives unpack, with the same names of folders inside."""
    _good_and_bad(raw / "Camelyon16", False, 40, str)
    for j, (place, n) in enumerate((("train", 4), ("test/normal", 3), ("test/tumor", 4))):
        for i in range(n):
            name = f"BraTS2021_{j}{i:04d}_flair_70.png"
            save(raw / "BraTS2021" / place / name, texture([41, j, i]))
            if place == "test/tumor":
                save(raw / "BraTS2021" / "test" / "annotation" / name.replace("flair", "seg"), blob())
    return Expected(7, 4, masks=4 if "brats" in raw.name else 0)


def _data_json(raw: Path, folder: str, seed: int) -> Expected:
    names = [f"{i}.png" for i in range(9)]
    for i, name in enumerate(names):
        save(raw / folder / "images" / name, texture([seed, i]))
    lists = {"train": {"0": names[:4], "1": []}, "test": {"0": names[4:6], "1": [*names[6:], "lost.png"]}}
    (raw / folder / "data.json").write_text(json.dumps(lists))
    return Expected(6, 3, problems=1)


for _seed, _folder in enumerate(("RSNA", "VinCXR", "BrainTumor", "LAG")):
    WRITERS[f"medianomaly_{_folder.lower()}"] = lambda raw, _, folder=_folder, seed=_seed: _data_json(
        raw, folder, 50 + seed
    )
