# SPDX-License-Identifier: Apache-2.0
"""``monai-rdad export``: a trained detector as TorchScript and ONNX, compared with its bundle before it is kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from monai_rdad.apps.command import add_command

__all__ = ["add_parser"]

FORMATS = ("onnx", "torchscript")


def add_parser(groups: Any) -> None:
    """Add the command."""
    parser = add_command(groups, "export", _export, "write a trained detector as ONNX and TorchScript")
    parser.description = (
        "Writes FOLDER/model.onnx and FOLDER/model.ts: image in, anomaly map and score out, for any batch and image "
        "size, with the calibration and all else that is needed to use them inside. Before they get their names they "
        "run on real images and are compared with the bundle's own inference in float32; the figures go to "
        "FOLDER/verification.json. Above the tolerance nothing is left, and the exit code is 1."
    )
    parser.add_argument("method", help="name of the method, or folder of its bundle")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to write to")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: both")
    parser.add_argument("--ckpt-dir", "--ckpt_dir", type=Path, help="folder of model.pt; default: the bundle's")
    parser.add_argument("--support", type=Path, help="d24fad: support file, or folder with 2 to 8 normal images")
    parser.add_argument(
        "--images", nargs="+", type=Path, metavar="PATH", help="files or folders to verify with; default: a manifest's"
    )
    parser.add_argument("--manifest", type=Path, help="whose testing images verify; default: that of the training")
    parser.add_argument("--dataset-dir", "--dataset_dir", type=Path, help="that the manifest's paths are relative to")
    parser.add_argument("--number", type=int, default=16, help="of images taken from a manifest (default: %(default)s)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest absolute difference of map values and scores (default: %(default)s)",
    )


def _export(arguments: argparse.Namespace) -> None:
    from monai_rdad.apps.export_files import check_dependencies

    check_dependencies(arguments.format)
    from monai_rdad.apps.exporting import Images, export_detector

    images = Images.find(
        arguments.method,
        arguments.ckpt_dir,
        arguments.images,
        arguments.manifest,
        arguments.dataset_dir,
        arguments.number,
    )
    print(f"verified with {images.description}")
    result = export_detector(
        arguments.method,
        arguments.out,
        images,
        arguments.format,
        arguments.ckpt_dir,
        arguments.support,
        arguments.tolerance,
        report=print,
    )
    print(f"{arguments.out / 'verification.json'}: {json.dumps(result['largest'])}")
