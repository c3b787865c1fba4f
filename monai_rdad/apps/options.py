# SPDX-License-Identifier: Apache-2.0
"""Options that the commands over a bundle share, and the settings that they stand for; light to import."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from monai_rdad.apps.bundle import method_names

__all__ = [
    "add_data_options",
    "add_further_options",
    "add_machine_options",
    "add_method",
    "add_out_option",
    "add_training_options",
    "positive",
    "rate",
    "settings_of",
]

# option's name in the namespace: id in the configuration
_IDS = {
    "holdout": "holdout",
    "on_error": "on_error",
    "out": "bundle_root",
    "results": "output_dir",
    "weights": "weights",
    "encoder": "encoder",
    "channels": "channels",
    "image_size": "image_size",
    "epochs": "max_epochs",
    "batch_size": "batch_size",
    "lr": "lr",
    "seed": "seed",
    "workers": "num_workers",
    "tracking": "tracking_uri",
    "split": "split",
    "bootstrap": "bootstrap",
    "alpha": "alpha",
    "area_alpha": "area_alpha",
    "stratum": "stratum",
    "shots": "shots",
    "support": "support",
    "input": "input",
}


def add_method(parser: argparse.ArgumentParser) -> None:
    """The positional METHOD."""
    names = ", ".join(method_names())
    parser.add_argument("method", metavar="METHOD", help=f"{names}; or the folder of a bundle")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Which images: a data set of one's own, or the tasks of a few-shot method."""
    group = parser.add_argument_group("data (default: phantoms, made on first use)")
    group.add_argument("--data", type=Path, metavar="FOLDER", help="folder of the images; default: the manifest's")
    group.add_argument("--manifest", type=Path, metavar="FILE", help="which image is what; default: DATA/manifest.json")
    group.add_argument(
        "--manifests", nargs="+", metavar="FILE", help="few-shot methods: manifests of all tasks, FILE or NAME=FILE"
    )
    group.add_argument("--holdout", metavar="NAME", help="few-shot methods: task to leave out of the training, or none")
    _add_on_error(group)


def _add_on_error(group: Any) -> None:
    group.add_argument(
        "--on-error", choices=("raise", "skip"), help="what to do with missing and broken files; default: raise"
    )


def add_out_option(parser: argparse.ArgumentParser, results: str = "") -> None:
    """Where the run lives.

    Args:
        parser: of the command.
        results: default of ``--results`` as its help says it; "" for a command without that option.
    """
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of the run: models/ and eval/ lie in it; default: the bundle's own below the current folder, else "
        "./METHOD",
    )
    if results:
        group.add_argument("--results", type=Path, metavar="FOLDER", help=f"for the results; default: {results}")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What a training depends on."""
    group = parser.add_argument_group("training (defaults: the bundle's configuration)")
    group.add_argument(
        "--weights", metavar="WEIGHTS", help="of the teacher: embedded, imagenet, dinov2 (dnp), none or a file"
    )
    group.add_argument("--encoder", metavar="NAME", help="the teacher, for instance resnet18 or wide_resnet50_2")
    group.add_argument("--channels", type=int, choices=(1, 3), help="grey or colour")
    group.add_argument("--image-size", type=positive, metavar="N", help="edge in pixels that images are resized to")
    group.add_argument("--epochs", type=positive, metavar="N", help="passes over the training images")
    group.add_argument("--batch-size", type=positive, metavar="N", help="images per step")
    group.add_argument("--lr", type=float, metavar="X", help="learning rate")
    group.add_argument("--seed", type=int, metavar="N", help="of everything random")
    group.add_argument("--resume", action="store_true", help="go on from OUT/models/checkpoint.pt")


def add_machine_options(parser: argparse.ArgumentParser, batch_size: bool = True) -> None:
    """What results do not depend on."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; default: cuda:0 where there is one")
    group.add_argument("--workers", type=int, metavar="N", help="processes that load data; default: 0, none besides")
    if batch_size:
        group.add_argument("--batch-size", type=positive, metavar="N", help="images at a time")


def add_further_options(parser: argparse.ArgumentParser, tracking: bool = False, dry_run: bool = True) -> None:
    """Everything else that a configuration holds."""
    group = parser.add_argument_group("anything else")
    if tracking:
        group.add_argument(
            "--tracking", metavar="URI", help="of MLflow; none: no tracking; default: OUT/eval/mlruns.db"
        )
    group.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML or JSON file of settings, or one of the bundle's such as paper.yaml; again for more, later ones win",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting of the configuration, the value as in YAML, nested as train#dataloader#drop_last; again for "
        "more; wins over everything",
    )
    if dry_run:
        group.add_argument("--dry-run", action="store_true", help="show what would run and where it writes, and stop")


def positive(text: str) -> int:
    """Type of an option: a whole number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def rate(text: str) -> float:
    """Type of an option: a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1")
    return value


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings by id that the options stand for; ``--set`` wins.

    Raises:
        ValueError: an option whose value cannot be meant.
    """
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    settings = {id_: _plain(given[name]) for name, id_ in _IDS.items() if name in given}
    settings |= _data(given)
    if given.get("resume"):
        settings["resume"] = True
    if "device" in given:
        settings["device"] = f"$torch.device({_device(given['device'])!r})"
    for pair in given.get("set", []):
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise ValueError(f"--set {pair}: write KEY=VALUE.")
        settings[key] = _value(pair, value)
    return settings


def _plain(value: Any) -> Any:
    return str(value.expanduser()) if isinstance(value, Path) else value


def _data(given: dict[str, Any]) -> dict[str, Any]:
    """Folder and manifest; each says where the other is."""
    settings: dict[str, Any] = {}
    if "data" in given or "manifest" in given:
        if "manifest" in given:
            manifest = given["manifest"].expanduser()
            folder = given.get("data", manifest.parent).expanduser()
        else:
            folder = given["data"].expanduser()
            manifest = folder / "manifest.json"
        if not folder.is_dir():
            raise FileNotFoundError(f"--data {folder}: there is no such folder.")
        if not manifest.is_file():
            raise FileNotFoundError(
                f"There is no manifest {manifest}. Name one with --manifest; docs/data.md says what it holds, "
                "'monai-rdad manifest build' makes that of a public data set."
            )
        settings |= {"dataset_dir": str(folder), "manifest": str(manifest)}
    if "manifests" in given:
        settings["manifests"] = list(given["manifests"])
    return settings


def _device(name: str) -> str:
    if not re.fullmatch(r"[a-z]+(:\d+)?", name):
        raise ValueError(f"--device {name}: it is cpu, cuda or cuda:N.")
    if name.startswith("cuda"):
        import torch

        count, index = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
        if index >= count:
            raise ValueError(f"--device {name}: torch sees {count} CUDA devices here. Choose another, or cpu.")
        return f"cuda:{index}"
    return name


def _value(pair: str, text: str) -> Any:
    """As in YAML, but references and expressions need no quotes, and 1e-3 is a number."""
    import yaml

    if text[:1] in ("$", "@", "%"):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {pair}: the value is not YAML ({' '.join(str(error).split())}). Quote it.") from error
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value
