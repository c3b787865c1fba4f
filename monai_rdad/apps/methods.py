# SPDX-License-Identifier: Apache-2.0
"""``monai-rdad train``, ``calibrate``, ``evaluate`` and ``predict``: the stages of a method's bundle."""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_rdad.apps.bundle import find_bundle, find_configs, open_bundle, run_bundle
from monai_rdad.apps.command import add_command
from monai_rdad.apps.options import (
    add_data_options,
    add_further_options,
    add_machine_options,
    add_method,
    add_out_option,
    add_training_options,
    positive,
    rate,
    settings_of,
)
from monai_rdad.utils import shell_words

__all__ = ["add_parser"]

_RUN_IDS = {"train": "training", "evaluate": "evaluating", "calibrate": "calibrating", "infer": "inference"}
_FIGURES = ("image_auroc", "image_ap", "pixel_auroc", "aupro_0.3")
_DECIDED = ("false_positive_rate_at_", "sensitivity_at_", "normal_area_at_", "dice_at_area_")
_SHOWN = 10  # inputs of a prediction

_DETAILS = """

train, calibrate, evaluate and predict with the same --out belong together: each finds what the one before it left.
"""


def add_parser(groups: Any) -> None:
    """Add the commands."""
    train = add_command(
        groups,
        "train",
        _train,
        "train a method on normal images",
        "Writes OUT/models/model.pt and model.json, which the other commands read, and checkpoint.pt to resume from."
        + _DETAILS,
        """
        monai-rdad train scrd --data /data/mine --weights imagenet --out runs/mine
        monai-rdad train rd4ad --data /data/mine --config paper.yaml --set score_mode=mean --out runs/paper
        monai-rdad train scrd --data /data/mine --weights imagenet --out runs/mine --epochs 40 --resume
        monai-rdad train d24fad --manifests /data/ct/manifest.json knee=/data/mr/manifest.json --holdout knee
        """,
    )
    add_method(train)
    add_data_options(train)
    add_out_option(train)
    add_training_options(train)
    add_machine_options(train, batch_size=False)
    add_further_options(train, tracking=True)

    calibrate = add_command(
        groups,
        "calibrate",
        _calibrate,
        "thresholds for a trained method from normal images",
        "Writes OUT/models/calibration.json from the manifest's 'calibration' list: normal images that took no part "
        "in training. From then on evaluate and predict say what is abnormal at a false-positive rate of your choice."
        + _DETAILS,
        "monai-rdad calibrate scrd --data /data/mine --out runs/mine",
    )
    add_method(calibrate)
    add_data_options(calibrate)
    add_out_option(calibrate)
    add_machine_options(calibrate)
    add_further_options(calibrate)

    evaluate = add_command(
        groups,
        "evaluate",
        _evaluate,
        "figures of a trained method on labelled images",
        "Writes report.html, metrics.json, scores.csv and sheet.png. Shown are the main figures with their 95 % "
        "intervals, bootstrapped by patient." + _DETAILS,
        """
        monai-rdad evaluate scrd --data /data/mine --out runs/mine
        monai-rdad evaluate scrd --data /data/other --out runs/mine --results runs/mine/other
        """,
    )
    add_method(evaluate)
    add_data_options(evaluate)
    add_out_option(evaluate, "OUT/eval")
    group = evaluate.add_argument_group("evaluation")
    group.add_argument("--split", choices=("testing", "validation"), help="list of the manifest; default: testing")
    group.add_argument("--bootstrap", type=int, metavar="N", help="resamples of the intervals; 0: none; default: 1000")
    group.add_argument("--alpha", type=rate, metavar="X", help="false-positive rate of the decisions; default: 0.05")
    group.add_argument("--shots", type=positive, metavar="N", help="few-shot methods: supports to draw; default: 4")
    add_machine_options(evaluate)
    add_further_options(evaluate, tracking=True)

    predict = add_command(
        groups,
        "predict",
        _predict,
        "anomaly maps, scores and decisions for new images",
        "INPUT is an image file, a volume, a folder with a DICOM series, or a folder of these. Per input there is a "
        "map in its geometry, a picture of it over the image, and a row in scores.csv." + _DETAILS,
        """
        monai-rdad predict scrd /data/new --out runs/mine
        monai-rdad predict scrd scan.nii.gz --out runs/mine --results maps --alpha 0.01
        monai-rdad predict d24fad /data/new --support /data/normal_wrists --out runs/organs
        """,
    )
    add_method(predict)
    predict.add_argument("input", type=Path, metavar="INPUT", help="image, volume, series or folder of them")
    add_out_option(predict, "OUT/eval/predictions")
    group = predict.add_argument_group("prediction")
    group.add_argument("--alpha", type=rate, metavar="X", help="false-positive rate of the decisions; default: 0.05")
    group.add_argument("--area-alpha", type=rate, metavar="X", help="outlined area of a normal image; default: 0.01")
    group.add_argument(
        "--stratum", metavar="NAME", help="scanner or site of the inputs, where the calibration has such"
    )
    group.add_argument("--support", type=Path, metavar="FOLDER", help="few-shot methods: 2 to 8 normal images")
    group.add_argument("--on-error", choices=("raise", "skip"), help="what to do with broken files; default: raise")
    add_machine_options(predict)
    add_further_options(predict)


def _train(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments)
    if arguments.dry_run:
        return _dry_run(arguments, "train", settings)
    workflow = open_bundle(arguments.method, "train", settings, arguments.config)
    weights = Path(workflow.parser.get_parsed_content("ckpt_dir")) / "model.pt"
    if weights.is_file() and not workflow.parser.get_parsed_content("resume"):
        print(f"note: {weights} is replaced when the training is complete", file=sys.stderr)
    start = time.monotonic()
    run = run_bundle(arguments.method, "train", settings, arguments.config)
    state = run.get("train#trainer").state
    images = len(run.get("train#dataset"))
    epochs = f"{state.epoch} epoch{'s' if state.epoch > 1 else ''}"
    print(f"{run.name}: {epochs} of {images} images in {duration(time.monotonic() - start)}")
    if "image_auroc" in run.metrics:
        print(f"last validation ({_counts(run.metrics)})")
        _print_figures(run.metrics)
    _print_files(Path(run.get("ckpt_dir")), "model.pt", "model.json", "checkpoint.pt", "support.safetensors")
    return None


def _calibrate(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments)
    if arguments.dry_run:
        return _dry_run(arguments, "calibrate", settings)
    run = run_bundle(arguments.method, "calibrate", settings, arguments.config)
    from monai_rdad.handlers import load_calibration
    from monai_rdad.metrics import false_positive_band

    folder = Path(run.get("ckpt_dir"))
    calibration = load_calibration(folder, required=True)
    assert calibration is not None
    print(f"{run.name}: calibrated on {len(run.get('validate#dataset'))} normal images")
    for stratum, scores in sorted(calibration.scores.items()):
        print(f"{stratum or 'all'}: {scores.n_groups} groups")
        for alpha in (0.05, 0.1):
            threshold = scores.threshold(alpha)
            if math.isfinite(threshold):
                low, high = false_positive_band(scores.n_groups, alpha)
                text = f"score above {threshold:.4g}; realised rate {low:.3f} to {high:.3f} with 95 % probability"
            else:
                text = f"never: needs at least {math.ceil(1 / alpha - 1)} groups"
            print(f"  abnormal at a false-positive rate of {alpha:g}: {text}")
    _print_files(folder, "calibration.json")
    return None


def _evaluate(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments)
    if arguments.dry_run:
        return _dry_run(arguments, "evaluate", settings)
    run = run_bundle(arguments.method, "evaluate", settings, arguments.config)
    print(f"{run.name}: {run.get('split')} of {run.get('manifest')} ({_counts(run.metrics)})")
    _print_figures(run.metrics)
    _print_files(
        Path(run.get("output_dir")), "report.html", "metrics.json", "scores.csv", "sheet.png", "prototypes.png"
    )
    return None


def _predict(arguments: argparse.Namespace) -> None:
    settings = settings_of(arguments)
    if arguments.dry_run:
        return _dry_run(arguments, "infer", settings)
    run = run_bundle(arguments.method, "infer", settings, arguments.config)
    folder = Path(run.get("output_dir"))
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["score"]))
    decided = [row for row in rows if row["abnormal"]]
    print(f"{run.name}: {len(rows)} {'input' if len(rows) == 1 else 'inputs'}")
    if decided:
        called = sum(row["abnormal"] == "1" for row in decided)
        print(f"abnormal at a false-positive rate of {run.get('alpha'):g}: {called} of {len(decided)}")
    width = max((len(row["name"]) for row in rows[:_SHOWN]), default=0)
    for row in rows[:_SHOWN]:
        decision = f"  p {float(row['p_value']):.3f}" if row["p_value"] else ""
        verdict = "  abnormal" if row["abnormal"] == "1" else ""
        print(f"  {row['name']:<{width}}  score {float(row['score']):.4f}{decision}{verdict}")
    if len(rows) > _SHOWN:
        print(f"  and {len(rows) - _SHOWN} with lower scores")
    print(f"maps (*_map.*), overlays (*_overlay.png) and scores.csv in {folder}")
    return None


def duration(seconds: float) -> str:
    """For people: "40 ms", "4.2 s", "3 min", "2.5 h"."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counts(metrics: Mapping[str, float]) -> str:
    text = f"{metrics['n_images']:.0f} images, {metrics['n_abnormal']:.0f} abnormal, {metrics['n_groups']:.0f} groups"
    return text + (f"; masks of {metrics['n_pixel_images']:.0f}" if "n_pixel_images" in metrics else "")


def _print_figures(metrics: Mapping[str, float]) -> None:
    from monai_rdad.visualize.page import figure_label

    names = [name for name in _FIGURES if name in metrics]
    names += [n for n in metrics if n.startswith(_DECIDED) and "_ci_" not in n and not n.endswith("specificity")]
    width = max(len(figure_label(name)) for name in names)
    for name in names:
        low, high = metrics.get(f"{name}_ci_low"), metrics.get(f"{name}_ci_high")
        interval = "" if low is None or high is None else f"  [{low:.3f}, {high:.3f}]"
        value = f"{metrics[name]:.3f}" if math.isfinite(metrics[name]) else "not defined"
        print(f"  {figure_label(name):<{width}}  {value}{interval}")


def _print_files(folder: Path, *names: str) -> None:
    print(f"{', '.join(name for name in names if (folder / name).is_file())} in {folder}")


def _dry_run(arguments: argparse.Namespace, stage: str, settings: Mapping[str, Any]) -> None:
    """What would run; everything that can be told without making anything."""
    parser = open_bundle(arguments.method, stage, settings, arguments.config).parser
    bundle = find_bundle(arguments.method)
    own, further = find_configs(bundle, stage, arguments.config)
    files = [*own, *further]
    print(f"{bundle.resolve().name}, stage '{stage}'; nothing was run")
    print("configuration files, later ones win:", *files, sep="\n  ")
    print("settings:")
    shown = {"bundle_root": parser.get("bundle_root"), **settings}
    for key, value in shown.items():
        print(f"  {key}: {value}")
    names = {"train": ("ckpt_dir", "output_dir"), "calibrate": ("ckpt_dir",)}.get(stage, ("output_dir",))
    print("would write to:", *(parser.get_parsed_content(name) for name in names), sep="\n  ")
    config = str(files[0]) if len(files) == 1 else "[" + ",".join(f"'{file}'" for file in files) + "]"
    words = ["python", "-m", "monai.bundle", "run", _RUN_IDS[stage], "--config_file", config]
    for key, value in shown.items():
        words += [f"--{key}", value if isinstance(value, str) else repr(value)]
    print(f"as a command of MONAI:\n  {shell_words(words)}")
