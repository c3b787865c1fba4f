# SPDX-License-Identifier: Apache-2.0
"""The two kinds of files that a detector is exported to: how they are written, described, read and run."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import monai_rdad
from monai_rdad.inferers import Detector

__all__ = ["FORMATS", "OUTPUTS", "Array", "FileFormat", "Runner", "check_dependencies"]

OPSET = 18
OUTPUTS = {
    "map": "anomaly map, float32 (batch, 1, height, width), of the size of the image",
    "score": "anomaly score, float32 (batch,)",
    "model_map": "map as the network made it, float32 (batch, 1, size, size): score, area and p-value belong to it",
}
"""Outputs of an exported graph, in this order."""

Array = NDArray[np.float32]
Runner = Callable[[Array], tuple[Array, Array, Array]]
"""From images (B, C, H, W) to the outputs."""


class FileFormat(NamedTuple):
    """A kind of file.

    Attributes:
        file: its name.
        needs: libraries beyond those of the package.
        write: detector and number of channels to a file.
        add_metadata: JSON values by name into a file; checks the file where its library can.
        read_metadata: the same back.
        runner: the file as a function.
    """

    file: str
    needs: tuple[str, ...]
    write: Callable[[Detector, int, Path], None]
    add_metadata: Callable[[Path, Mapping[str, Any]], None]
    read_metadata: Callable[[Path], dict[str, Any]]
    runner: Callable[[Path], Runner]


def check_dependencies(formats: Sequence[str]) -> None:
    """Raise if a library that a format needs is missing.

    Raises:
        ImportError: with the command that installs it.
    """
    missing = [name for format_ in formats for name in FORMATS[format_].needs if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(FORMATS['onnx'].needs)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say on every start and nobody can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write_onnx(detector: Detector, channels: int, path: Path) -> None:
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    # no size of the example may be 0, 1, the size of the training or equal to another: the exporter would take it for
    # a constant
    example = torch.zeros(2, channels, detector.size + 3, detector.size + 5)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            detector,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(dims,),
            input_names=["image"],
            output_names=list(OUTPUTS),
            external_data=False,
            verbose=False,
        )
    assert program is not None  # with dynamo=True and no file
    program.save(path, external_data=False)


def _write_torchscript(detector: Detector, channels: int, path: Path) -> None:
    with _quiet():
        torch.jit.script(detector).save(path)


def _add_onnx_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    model.producer_name, model.producer_version = "monai_rdad", monai_rdad.__version__
    model.doc_string = str(metadata["intended_use"])
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)


def _add_torchscript_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    from monai.data import save_net_with_metadata

    save_net_with_metadata(torch.jit.load(path), str(path), include_config_vals=False, meta_values=dict(metadata))


def _read_onnx_metadata(path: Path) -> dict[str, Any]:
    properties = _session(path).get_modelmeta().custom_metadata_map
    return {key: json.loads(value) for key, value in properties.items()}


def _read_torchscript_metadata(path: Path) -> dict[str, Any]:
    from monai.data import load_net_with_metadata

    return dict(load_net_with_metadata(str(path))[1])


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as it is compared with
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _onnx_runner(path: Path) -> Runner:
    session = _session(path)
    return lambda image: tuple(session.run(list(OUTPUTS), {"image": image}))


def _torchscript_runner(path: Path) -> Runner:
    module = torch.jit.load(path, map_location="cpu")

    def run(image: Array) -> tuple[Array, Array, Array]:
        with torch.no_grad():
            first, second, third = module(torch.from_numpy(image))
        return first.numpy(), second.numpy(), third.numpy()

    return run


FORMATS = {
    "onnx": FileFormat(
        "model.onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        _write_onnx,
        _add_onnx_metadata,
        _read_onnx_metadata,
        _onnx_runner,
    ),
    "torchscript": FileFormat(
        "model.ts", (), _write_torchscript, _add_torchscript_metadata, _read_torchscript_metadata, _torchscript_runner
    ),
}
