# SPDX-License-Identifier: Apache-2.0
"""``monai-rdad export``: a trained detector as TorchScript and ONNX, compared with its bundle before it is kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from monai_rdad.apps.bundle import default_root, find_bundle
from monai_rdad.apps.command import add_command
from monai_rdad.apps.options import add_method, add_out_option

__all__ = ["add_parser"]

FORMATS = ("onnx", "torchscript")


def add_parser(groups: Any) -> None:
    """Add the command."""
    parser = add_command(
        groups,
        "export",
        _export,
        "write a trained detector as ONNX and TorchScript",
        "Writes model.onnx and model.ts: image in, anomaly map and score out, for any batch and image size, with the "
        "calibration and all else that is needed to use them inside. Before they get their names they run on real "
        "images and are compared with the bundle's own inference in float32; the figures go to verification.json. "
        "Above the tolerance nothing is left, and the exit code is 1.",
        """
        monai-rdad export scrd --out runs/mine
        monai-rdad export d24fad --support /data/normal_wrists --out runs/organs --results wrist --format onnx
        """,
    )
    add_method(parser)
    add_out_option(parser, "OUT/export")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: both")
    parser.add_argument("--support", type=Path, help="d24fad: support file, or folder with 2 to 8 normal images")
    parser.add_argument(
        "--images", nargs="+", type=Path, metavar="PATH", help="files or folders to verify with; default: a manifest's"
    )
    parser.add_argument("--manifest", type=Path, help="whose testing images verify; default: that of the training")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="that the manifest's paths are relative to")
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

    root = arguments.out or default_root(find_bundle(arguments.method))
    results = arguments.results or root / "export"
    images = Images.find(
        root / "models",
        arguments.images,
        arguments.manifest,
        arguments.data,
        arguments.number,
    )
    print(f"verified with {images.description}")
    result = export_detector(
        arguments.method,
        root / "models",
        results,
        images,
        arguments.format,
        arguments.support,
        arguments.tolerance,
        report=print,
    )
    print(f"{results / 'verification.json'}: {json.dumps(result['largest'])}")
