# SPDX-License-Identifier: Apache-2.0
"""``monai-rdad manifest``: make, check and describe manifests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from monai_rdad.apps.command import add_command, add_group

__all__ = ["add_parser"]


def add_parser(groups: Any) -> None:
    """Add the commands of this group."""
    commands = add_group(groups, "manifest", "make, check and describe manifests of data sets")
    build = add_command(commands, "build", _build, "make the manifest of a public data set from its download")
    build.add_argument("name", help="of the data set, see 'monai-rdad manifest list'")
    build.add_argument("--raw", required=True, type=Path, help="folder of the unpacked download; it is only read")
    build.add_argument("--out", type=Path, help="folder for the manifest and all files that are made; default: ./NAME")
    build.add_argument("--copy", action="store_true", help="copy the images as well, so that the folder can be moved")
    build.add_argument("--counts", choices=("strict", "warn"), default="strict", help="if the number of images differs")
    build.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="if a file is missing or broken")
    build.add_argument("--split", choices=("published", "drawn"), help="default: as the data set's description says")
    build.add_argument("--keep-duplicates", action="store_true", help="keep equal images that are in one split")
    build.add_argument("--validation", type=float, default=0.0, help="fraction of the training images to set aside")
    build.add_argument("--calibration", type=float, default=0.0, help="fraction of the training images for thresholds")
    build.add_argument("--seed", type=int, default=0, help="of a drawn split")
    build.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the data set")
    build.add_argument("--no-describe", action="store_true", help="leave out the page of figures and pictures")

    verify = add_command(commands, "verify", _verify, "run all checks on a manifest and its files")
    describe = add_command(commands, "describe", _describe, "figures and pictures of a data set, and leak warnings")
    describe.add_argument("--out", type=Path, help="folder for description.png and .json; default: the manifest's")
    describe.add_argument("--resamples", type=int, default=1000, help="of the bootstrap intervals")
    for parser in (verify, describe):
        parser.add_argument("manifest", type=Path)
        parser.add_argument(
            "--dataset-dir", type=Path, help="folder that paths are relative to; default: the manifest's"
        )
        parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="if a file is broken")

    shown = add_command(commands, "list", _list, "the data sets that 'build' knows, or all about one of them")
    shown.add_argument("name", nargs="?")


def _build(arguments: argparse.Namespace) -> None:
    from monai_rdad.data.sets import build_manifest

    out = arguments.out or Path(arguments.name)
    keys = ("copy", "counts", "on_error", "split", "keep_duplicates", "validation", "calibration", "seed")
    common = {key: getattr(arguments, key) for key in keys}
    report = build_manifest(arguments.name, arguments.raw, out, **common, **_options(arguments.name, arguments.set))
    print(f"{report.manifest}")
    for split, classes in report.counts.items():
        shown = sorted(classes.items(), key=lambda entry: -entry[1])
        more = f", and {len(shown) - 8} classes more" if len(shown) > 8 else ""
        print(f"  {split}: {sum(classes.values())} ({', '.join(f'{k} {n}' for k, n in shown[:8])}{more})")
    for reason, number in report.dropped.items():
        print(f"  left out: {number} {reason}, for instance {report.examples[reason][0]}")
    for note in report.notes:
        print(f"  note: {note}")
    for warning in report.warnings:
        print(f"  warning: {warning}")
    if not arguments.no_describe:
        _report(report.manifest, None, out, "raise", 1000)


_TYPES = {int: "whole number", float: "number"}


def _options(name: str, pairs: list[str]) -> dict[str, Any]:
    """Options as the data set's builder wants them: of the type of their default."""
    from monai_rdad.data.sets import builder_options

    known, options = builder_options(name), {}
    for pair in pairs:
        key, given, value = pair.partition("=")
        if not given or key not in known:
            listed = ", ".join(f"{k}={v}" for k, v in known.items()) or "none"
            raise ValueError(f"--set {pair}: '{name}' has no such option. It has, with their defaults: {listed}.")
        default = known[key]
        if isinstance(default, bool):
            if value.lower() not in ("true", "false"):
                raise ValueError(f"--set {pair}: the value must be true or false.")
            options[key] = value.lower() == "true"
        else:
            try:
                options[key] = type(default)(value)
            except ValueError:
                raise ValueError(f"--set {pair}: the value must be a {_TYPES[type(default)]}.") from None
    return options


def _verify(arguments: argparse.Namespace) -> None:
    from monai_rdad.data import load_manifest, manifest_hash

    splits = load_manifest(arguments.manifest, arguments.dataset_dir, arguments.on_error, required=())
    for name, items in splits.items():
        abnormal, groups = sum(item["label"] for item in items), len({item["group"] for item in items})
        masks = sum("mask" in item for item in items)
        print(f"{name}: {len(items)} images, {abnormal} abnormal, {masks} masks, {groups} groups")
    print(f"SHA-256 {manifest_hash(arguments.manifest)}")


def _describe(arguments: argparse.Namespace) -> None:
    out = arguments.out or arguments.manifest.expanduser().absolute().parent
    _report(arguments.manifest, arguments.dataset_dir, out, arguments.on_error, arguments.resamples)


def _report(manifest: Path, dataset_dir: Path | None, out: Path, on_error: str, resamples: int) -> None:
    from monai_rdad.apps.describe import describe_manifest

    description = describe_manifest(manifest, out, dataset_dir, on_error, resamples)
    for figures in description["trivial_scores"].values():
        interval = f"[{figures['low']:.2f}, {figures['high']:.2f}]"
        print(f"  {figures['meaning']:<58} AUROC {figures['auroc']:.2f} {interval} {_MARKS[figures['level']]}".rstrip())
    for warning in description["warnings"]:
        print(f"  warning: {warning}")
    print(f"  {out / 'description.png'}")


_MARKS = {"none": "", "doubt": "(!)", "leak": "(!!)"}


def _list(arguments: argparse.Namespace) -> None:
    from monai_rdad.data.sets import builder_options, card, set_names

    if arguments.name:
        print(json.dumps(card(arguments.name) | {"options": builder_options(arguments.name)}, indent=1))
        return
    names = set_names()
    for name in names:
        print(f"{name:<{max(map(len, names))}}  {card(name)['title']}")
