# SPDX-License-Identifier: Apache-2.0
"""``monai-rdad label``: a MONAI Label server for trained bundles. Standard library only until it starts.

- ``detector``: a trained bundle that stays in memory and is applied to one image after the other
- ``results``: files and JSON that a viewer gets
- ``reading``: what readers said about images, and which image comes next
- ``training``: new versions of the weights from images that readers call normal
- ``server``: the classes that MONAI Label asks for, the only module that imports it
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from monai_rdad.apps.command import add_command, add_group
from monai_rdad.formats import DICOM_SUFFIXES, NIFTI_SUFFIXES, PICTURE_SUFFIXES

__all__ = ["add_parser"]

MAIN = "from monai_rdad.apps.label.server import AnomalyLabelApp  # noqa: F401\n"


def add_parser(groups: Any) -> None:
    """Add the commands of this group."""
    commands = add_group(groups, "label", "serve trained bundles to 3D Slicer, OHIF and REST clients by MONAI Label")
    start = add_command(commands, "start", _start, "start the server; it needs no network")
    start.add_argument("--studies", required=True, help="folder of images, or the URL of a DICOMweb server")
    start.add_argument(
        "--models", required=True, nargs="+", metavar="[NAME=]FOLDER",
        help="folders with a trained network (ckpt_dir of the training); NAME is what clients see, default: the method",
    )  # fmt: skip
    start.add_argument("--host", default="127.0.0.1", help="address to listen on; there are no passwords")
    start.add_argument("--port", type=int, default=8000)
    start.add_argument("--device", help="for instance cpu or cuda:1; default: the first GPU if there is one")
    start.add_argument("--alpha", type=float, default=0.05, help="false-positive rate of calibrated decisions")
    start.add_argument("--area-alpha", type=float, default=0.01, help="false-positive area of calibrated label maps")
    start.add_argument("--stratum", default="", help="scanner or site of the images, if the calibration has such")
    start.add_argument("--work", type=Path, help="folder for MONAI Label's logs; default: label in the cache folder")


def _start(arguments: argparse.Namespace) -> None:
    from monai_rdad.apps.label.detector import Versions

    models: dict[str, str] = {}
    for text in arguments.models:
        name, given, folder = text.rpartition("=")
        path = Path(folder).expanduser().absolute()
        name = name if given else Versions(path).method
        if name in models:
            raise ValueError(f"Two models are named '{name}': give each a name of its own, as NAME=FOLDER.")
        if not name.isidentifier():
            raise ValueError(f"'{name}' does not do as a name of a model: letters, digits and _ only.")
        Versions(path).bundle  # noqa: B018 - fails now and not with the first image
        models[name] = str(path)
    # MONAI Label reads these when it is imported.
    suffixes = sorted({*PICTURE_SUFFIXES, *NIFTI_SUFFIXES, *DICOM_SUFFIXES, ".nrrd", ".mha"}, key=lambda s: -len(s))
    os.environ.setdefault("MONAI_LABEL_DATASTORE_FILE_EXT", json.dumps([f"*{suffix}" for suffix in suffixes]))
    try:
        from monailabel.main import Main
    except ImportError as error:
        raise ImportError(
            f"MONAI Label cannot be imported ({error}). It needs an environment of its own: "
            "scripts/install_label.sh FOLDER makes it."
        ) from error
    cache = Path(os.environ.get("MONAI_RDAD_CACHE") or Path.home() / ".cache" / "monai_rdad")
    work = (arguments.work or cache / "label").expanduser().absolute()
    work.mkdir(parents=True, exist_ok=True)
    (work / "main.py").write_text(MAIN, encoding="utf-8")
    conf = {key: getattr(arguments, key) for key in ("device", "alpha", "area_alpha", "stratum")}
    conf = {key: str(value) for key, value in conf.items() if value is not None} | {"models": json.dumps(models)}
    line = ["start_server", "--app", str(work), "--studies", arguments.studies]
    line += ["--host", arguments.host, "--port", str(arguments.port)]
    for key, value in conf.items():
        line += ["--conf", key, value]
    server = Main()
    server.action_start_server(server.args_parser().parse_args(line))
