# SPDX-License-Identifier: Apache-2.0
r"""Volumes through training and inference: geometry of what is written, and voxel figures on lesion masks.

The folder of the data holds

- ``ms_patient07`` and ``ms_patient19`` (FLAIR ``flair.nii.gz``, ``lesion_mask.nii.gz``; open_ms_data, Lesjak et al.
  2018): training on the slices of the first without lesion, test on the second;
- ``lgg_TCGA_HT_8106_19970727`` and ``lgg_TCGA_HT_8114_19981030`` (``flair.nii.gz``, ``tumor_mask.nii.gz``; stacks of
  the LGG slices of Buda et al. 2019): the same;
- ``healthy/chris_t1.nii.gz`` and ``dicom_t1_sag``: training on the T1 of a healthy adult, sagittal, inference on a
  DICOM series, with DICOM output.

    python scripts/study_volumes.py --data PATH --out results/volumes --weights imagenet

Voxel figures are those of the written map, in the input's voxels, once of all voxels and once of those with an
intensity above the smallest; beside them those of the intensity itself, which needs no learning.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LGG = ("lgg_TCGA_HT_8106_19970727", "lgg_TCGA_HT_8114_19981030")
TASKS: dict[str, dict[str, Any]] = {
    "ms": {
        "train": {"image": "ms_patient07/flair.nii.gz", "exclude": "ms_patient07/lesion_mask.nii.gz"},
        "test": {"image": "ms_patient19/flair.nii.gz", "mask": "ms_patient19/lesion_mask.nii.gz"},
        "axis": 2,
        "epochs": 50,
    },
    "lgg": {
        "train": {"image": f"{LGG[0]}/flair.nii.gz", "exclude": f"{LGG[0]}/tumor_mask.nii.gz"},
        "test": {"image": f"{LGG[1]}/flair.nii.gz", "mask": f"{LGG[1]}/tumor_mask.nii.gz"},
        "axis": 2,
        "epochs": 40,
    },
    "t1": {"train": {"image": "healthy/chris_t1.nii.gz"}, "test": {"image": "dicom_t1_sag"}, "axis": 0, "epochs": 5},
}


def run_bundle(method: str, names: tuple[str, ...], overrides: dict[str, Any]) -> Any:
    """One run of a bundle in this process, as ``python -m monai.bundle run`` does it."""
    from monai.bundle import ConfigWorkflow

    configs = ROOT / "bundles" / method / "configs"
    workflow = ConfigWorkflow(
        workflow_type="infer" if names == ("inference",) else "train",
        config_file=[str(configs / f"{name}.yaml") for name in names],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def geometry(source: Path, result: Path) -> dict[str, bool]:
    """Whether a map lies where its input lies, as nibabel, SimpleITK and pydicom see both."""
    import nibabel
    import pydicom
    import SimpleITK

    image: Any = nibabel.load(result / f"{stem(source)}_map.nii.gz")
    written = SimpleITK.ReadImage(str(result / f"{stem(source)}_map.nii.gz"))
    found = {}
    if source.is_dir():
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source)))
        original = reader.Execute()
        parts = pydicom.dcmread(result / f"{stem(source)}_map.dcm")
        headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(source.iterdir())]
        places = {tuple(map(float, h.ImagePositionPatient)) for h in headers}
        frames = parts.PerFrameFunctionalGroupsSequence
        mine = {tuple(map(float, f.PlanePositionSequence[0].ImagePositionPatient)) for f in frames}
        found["pydicom"] = (
            np.allclose(sorted(places), sorted(mine), atol=1e-3)
            and (parts.Rows, parts.Columns) == (headers[0].Rows, headers[0].Columns)
            and parts.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
            and parts.StudyInstanceUID == headers[0].StudyInstanceUID
        )
    else:
        original = SimpleITK.ReadImage(str(source))
        input_image: Any = nibabel.load(source)
        found["nibabel"] = image.shape == input_image.shape and np.array_equal(image.affine, input_image.affine)
    found["SimpleITK"] = original.GetSize() == written.GetSize() and all(
        np.allclose(getattr(original, f"Get{part}")(), getattr(written, f"Get{part}")(), atol=1e-3)
        for part in ("Origin", "Spacing", "Direction")
    )
    return found


def stem(source: Path) -> str:
    """Name of an input without its suffix, as the files of its map begin."""
    return source.name.removesuffix(".nii.gz")


def voxel_figures(values: Any, mask: Any, head: Any) -> dict[str, dict[str, float]]:
    """Metrics of all voxels, and of those of the head alone."""
    from monai_rdad.metrics import PixelAccumulator

    figures = {}
    for name, truth in (("all", mask), ("head", np.where(head, mask, 255).astype(np.uint8))):
        pixels = PixelAccumulator(by_group=False)
        pixels.update(np.asarray(values, np.float32), truth)
        figures[name] = {k: round(v, 4) for k, v in pixels.compute().items()}
    return figures


def slice_auroc(result: Path, mask: Any, axis: int) -> dict[str, float]:
    """AUROC of the slices' scores, a slice being abnormal if its mask is; slices left out count if abnormal."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    with open(result / "slices.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    abnormal = mask.any(tuple(a for a in range(3) if a != axis))
    used = [r for r in rows if r["score"] or abnormal[int(r["slice"])]]
    labels = [int(abnormal[int(r["slice"])]) for r in used]
    scores = [float(r["score"] or 0) for r in used]
    figures = {"slices": len(used), "abnormal": sum(labels)}
    if 0 < sum(labels) < len(labels):
        figures |= {"auroc": roc_auc_score(labels, scores), "ap": average_precision_score(labels, scores)}
    return figures


def main() -> None:
    import nibabel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the volumes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, outside the repository")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--method", default="rd4ad")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--epochs", type=int, help="instead of the tasks' own, for a trial")
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    data = args.data.resolve()
    for name in args.tasks:
        task, place = TASKS[name], args.out / name
        place.mkdir(parents=True, exist_ok=True)
        train, test = task["train"] | {"label": 0, "group": "train"}, task["test"] | {"group": "test"}
        test["label"] = int("mask" in test)
        (place / "manifest.json").write_text(json.dumps({"training": [train], "testing": [test]}, indent=1))
        epochs = args.epochs or task["epochs"]
        settings = {
            "bundle_root": str(place),
            "dataset_dir": str(data),
            "manifest": str(place / "manifest.json"),
            "weights": args.weights,
            "image_size": args.size,
            "max_epochs": epochs,
            "val_interval": epochs,
            "axes": [task["axis"]],
            "tracking_uri": "none",
        }
        start = time.perf_counter()
        workflow = run_bundle(args.method, ("train",), settings)
        seconds = time.perf_counter() - start
        source, result = data / test["image"], place / "predictions"
        inference = {"bundle_root": str(place), "dataset_dir": ".", "input": str(source), "output_dir": str(result)}
        start = time.perf_counter()
        run_bundle(args.method, ("inference",), inference | {"dicom": source.is_dir()})
        row: dict[str, Any] = {
            "task": name,
            "training_slices": len(workflow.parser.get_parsed_content("train#dataset")),
            "train_seconds": round(seconds, 1),
            "inference_seconds": round(time.perf_counter() - start, 1),
            "geometry": {k: bool(v) for k, v in geometry(source, result).items()},
        }
        if "mask" in test:
            values: Any = nibabel.load(result / f"{stem(source)}_map.nii.gz")
            image, mask = (np.asarray(nibabel.load(data / test[k]).dataobj) for k in ("image", "mask"))
            marked, head = (mask != 0).astype(np.uint8), image > image.min()
            row["map"] = voxel_figures(values.get_fdata(), marked, head)
            row["intensity"] = voxel_figures(image - image.min(), marked, head)
            row["voxels"] = {"all": mask.size, "head": int(head.sum()), "abnormal": int(marked.sum())}
            row["slices"] = slice_auroc(result, marked, task["axis"])
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
