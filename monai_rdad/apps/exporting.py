# SPDX-License-Identifier: Apache-2.0
"""From a trained bundle to files that run without this package, and the proof that they compute the same."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import nn

import monai_rdad
from monai_rdad.apps.bundle import find_bundle, open_bundle
from monai_rdad.data import list_inputs, load_manifest, manifest_hash, phantom_dataset
from monai_rdad.handlers import SupportSet, TrainedCheckpointLoader, load_data_record, load_settings
from monai_rdad.handlers.mlflow import git_commit
from monai_rdad.handlers.trained import CALIBRATION, WEIGHTS
from monai_rdad.inferers import Detector
from monai_rdad.networks.precision import supports_bfloat16
from monai_rdad.networks.support import load_support
from monai_rdad.transforms import ResizeInPlaned
from monai_rdad.utils import atomic_path, file_sha256

__all__ = ["FILES", "Images", "check_dependencies", "export_detector"]

FORMAT = "monai_rdad export 1"
FILES = {"onnx": "model.onnx", "torchscript": "model.ts"}
OPSET = 18
OUTPUTS = {
    "map": "anomaly map, float32 (batch, 1, height, width), of the size of the image",
    "score": "anomaly score, float32 (batch,)",
    "model_map": "map as the network made it, float32 (batch, 1, size, size): score, area and p-value belong to it",
}
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torchscript": ()}
BATCH = 4
SLICES = 8  # of a volume per run

Array = NDArray[np.float32]
Runner = Callable[[Array], tuple[Array, Array, Array]]


class Images(NamedTuple):
    """Images to verify with.

    Attributes:
        items: with "image" (path) and "name".
        description: where they come from, in words.
        source: the same for the metadata: name and SHA-256 of a manifest, no paths.
    """

    items: list[dict[str, Any]]
    description: str
    source: dict[str, Any]

    @classmethod
    def find(
        cls,
        method: str,
        ckpt_dir: Path | None = None,
        images: Sequence[Path] | None = None,
        manifest: Path | None = None,
        dataset_dir: Path | None = None,
        number: int = 16,
    ) -> Images:
        """Images that were named, or testing images: of a manifest, of the training's, or phantoms.

        Args:
            method: name of the bundle or its folder.
            ckpt_dir: folder of model.pt and of the record which data it was trained on; None for the bundle's.
            images: files and folders.
            manifest: JSON file; None for that of the training.
            dataset_dir: that its paths are relative to; None for its own folder.
            number: of images to take from a manifest, spread over it.

        Raises:
            FileNotFoundError, ValueError: what was named cannot be read.
        """
        if images:
            items = [item for path in images for item in list_inputs(path)]
            return cls(items, f"{len(items)} images: {', '.join(map(str, images))}", {"images": "files"})
        if number < 1:
            raise ValueError(f"--number is {number}: at least 1 image is needed.")
        if manifest is None:
            record = load_data_record(ckpt_dir or _default_ckpt_dir(method))
            recorded = record.get("manifest")
            if recorded and Path(recorded).is_file():
                manifest, dataset_dir = Path(recorded), dataset_dir or Path(record["dataset_dir"])
        what = "testing images"
        if manifest is None:
            dataset_dir = Path(phantom_dataset())
            manifest, what = dataset_dir / "manifest.json", "phantoms, because the manifest of the training is not here"
        items = load_manifest(manifest, dataset_dir, required=("testing",))["testing"]
        chosen = [
            items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int))
        ]
        digest = manifest_hash(manifest)
        source = {"images": what, "manifest": manifest.name, "manifest_sha256": digest}
        return cls(chosen, f"{len(chosen)} {what}, {manifest} (SHA-256 {digest[:12]})", source)


def check_dependencies(formats: Sequence[str]) -> None:
    """Raise if a library that a format needs is missing.

    Raises:
        ImportError: with the command that installs it.
    """
    missing = [name for format_ in formats for name in NEEDED[format_] if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(NEEDED['onnx'])}")


def export_detector(
    method: str,
    out: str | os.PathLike[str],
    images: Images,
    formats: Sequence[str] = tuple(FILES),
    ckpt_dir: str | os.PathLike[str] | None = None,
    support: str | os.PathLike[str] | None = None,
    tolerance: float = 1e-4,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a trained detector, verified against the inference of its bundle, each file complete or not at all.

    Args:
        method: name of the bundle, or its folder.
        out: folder of the files, :data:`FILES` and verification.json.
        images: to verify with.
        formats: of :data:`FILES`.
        ckpt_dir: folder of model.pt; None for the bundle's.
        support: of a few-shot network: support file, or folder of images; None for the file beside the weights.
        tolerance: largest absolute difference of map values and scores.
        report: gets the lines of a table.

    Returns:
        the content of verification.json.

    Raises:
        ValueError: the files compute something else than the bundle; none is left.
    """
    if not tolerance > 0:
        raise ValueError(f"The tolerance is {tolerance}, it must be above 0.")
    folder = Path(out).expanduser()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        bundle = _Bundle(method, images.items, Path(temporary), ckpt_dir, support)
        detector = bundle.detector()
        paths = {name: stack.enter_context(atomic_path(folder / FILES[name])) for name in formats}
        summary = stack.enter_context(atomic_path(folder / "verification.json"))
        rows: list[dict[str, Any]] = []
        for name, path in paths.items():
            with _quiet():
                _WRITE[name](detector, bundle.channels, path)
            rows += _verify(name, path, bundle, detector, report)
        verification = _summary(rows, images, tolerance)
        if bundle.low_precision is not None:
            largest = bundle.low_precision
            verification["bfloat16"] = largest
            report(f"for information: the bundle at its default precision, bfloat16 here, differs by {_pair(largest)}")
        worst = max(max(row["map"], row["score"]) for row in rows)
        if not worst <= tolerance:  # NaN is no success
            raise ValueError(
                f"The exported files differ from the bundle by up to {worst:.3g}, the tolerance is {tolerance:g}: "
                "nothing was kept. Raise --tolerance if this is acceptable for map values of this size."
            )
        metadata = bundle.metadata() | {"verification": verification}
        for name, path in paths.items():
            _SET_METADATA[name](path, metadata)
            if _READ_METADATA[name](path) != metadata:
                raise ValueError(f"{FILES[name]}: its metadata cannot be read back. Report this as a bug.")
        files = {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in paths.values()}
        result = verification | {"files": files}
        summary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


class _Expected(NamedTuple):
    """What a bundle makes of a file: input of the exported graph, and the results to compare with."""

    name: str
    image: MetaTensor  # (C, H, W[, D]) in [0, 1], as it was read
    anomaly_map: Array  # (1, H, W[, D]) in the order of the file
    score: float


class _Bundle:
    """A trained bundle after its inference, in float32 on the CPU, on some images."""

    def __init__(
        self,
        method: str,
        items: list[dict[str, Any]],
        temporary: Path,
        ckpt_dir: str | os.PathLike[str] | None,
        support: str | os.PathLike[str] | None,
    ) -> None:
        overrides: dict[str, Any] = {
            "precision": "fp32",
            "device": "$torch.device('cpu')",
            "batch_size": 1,
            "output_dir": str(temporary),
            "dataset#data": [{"image": item["image"], "name": item["name"]} for item in items],
        }
        overrides |= {} if ckpt_dir is None else {"ckpt_dir": os.fspath(ckpt_dir)}
        overrides |= {} if support is None else {"support": os.fspath(support)}
        workflow = open_bundle(method, "infer", overrides)
        self.parser = workflow.parser
        # what gives the network its weights and supports; nothing is to be written
        keep = {f"monai_rdad.handlers.{kind.__name__}" for kind in (TrainedCheckpointLoader, SupportSet)}
        self.parser["handlers"] = [entry for entry in self.parser.get()["handlers"] if entry["_target_"] in keep]
        workflow.initialize()
        self.ckpt_dir = Path(self.get("ckpt_dir"))
        self.settings = load_settings(self.ckpt_dir)
        self.channels, self.size = int(self.get("channels")), int(self.get("image_size"))
        transforms = list(self.get("preprocessing").transforms)
        cut = next(i for i, transform in enumerate(transforms) if isinstance(transform, ResizeInPlaned))
        self.read, self.prepare = Compose(transforms[:cut]), Compose(transforms[cut:])
        self.resizer = transforms[cut]
        self.reduction = monai_rdad.transforms.ScoreReduction(self.get("score_mode"), float(self.get("score_fraction")))
        self.expected = self._infer(items)
        self.network: nn.Module = self.get("network").eval()
        self.support = self._support_record(temporary)
        workflow.finalize()
        self.low_precision = self._low_precision()

    def get(self, name: str) -> Any:
        return self.parser.get_parsed_content(name)

    def detector(self) -> Detector:
        """The module to export."""
        return Detector(self.network, self.size, self.reduction.mode, self.reduction.fraction).eval()

    def _infer(self, items: list[dict[str, Any]]) -> list[_Expected]:
        """Run the bundle's own evaluator and keep what it makes."""
        from ignite.engine import Events
        from monai.engines.utils import IterationEvents

        scores: list[float] = []
        maps: list[Array] = []
        evaluator = self.get("evaluator")
        evaluator.add_event_handler(
            IterationEvents.FORWARD_COMPLETED,
            lambda engine: scores.extend(self.reduction(_plain(engine.state.output["pred"])).tolist()),
        )
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: maps.extend(_plain(output["pred"]).numpy() for output in engine.state.output),
        )
        self.get("run")
        return [
            _Expected(item["name"], self.read({"image": item["image"]})["image"], anomaly_map, score)
            for item, anomaly_map, score in zip(items, maps, scores, strict=True)
        ]

    def reference(self, image: torch.Tensor) -> tuple[Array, float]:
        """Map (1, H, W) and score of one image (C, H, W) by the transforms of the bundle."""
        prepared = self.prepare({"image": MetaTensor(image)})["image"]
        with torch.no_grad():
            model_map = self.network(_plain(prepared)[None])
        turned = self.resizer.inverse({"image": MetaTensor(model_map[0]).copy_meta_from(prepared)})["image"]
        return _plain(turned).numpy(), float(self.reduction(model_map))

    def as_file(self, anomaly_map: Array, image: MetaTensor) -> Array:
        """A map in the order of the file that the image was read from."""
        carrier = MetaTensor(torch.from_numpy(anomaly_map)).copy_meta_from(image)
        return _plain(self.read.transforms[0].inverse({"image": carrier})["image"]).numpy()

    def _low_precision(self) -> dict[str, float] | None:
        """Difference that bfloat16 makes, the default where the hardware has it; None where it has not."""
        inner: Any = self.network.network
        if not supports_bfloat16("cpu"):
            return None
        pictures = [entry for entry in self.expected if entry.image.ndim == 3][:BATCH]
        inner.precision = "bf16"
        found = [self.reference(_plain(entry.image)) for entry in pictures]
        inner.precision = "fp32"
        exact = [self.reference(_plain(entry.image)) for entry in pictures]
        if not pictures:
            return None
        return {
            "map": max(_difference(a[0], b[0]) for a, b in zip(found, exact, strict=True)),
            "score": max(abs(a[1] - b[1]) for a, b in zip(found, exact, strict=True)),
        }

    def _support_record(self, temporary: Path) -> dict[str, Any] | None:
        """Of a few-shot network: names and hashes of the supports that its map compares with."""
        network: Any = self.network.network
        if not hasattr(network, "set_support"):
            return None
        given = Path(self.get("support")).expanduser()
        return load_support(given if given.is_file() else temporary / "support.safetensors", network)

    def metadata(self) -> dict[str, Any]:
        """What somebody needs who has nothing but the file; of JSON types."""
        calibration = None
        # known to the configuration, and checked there against weights and settings
        if "calibration" in self.parser and self.get("calibration") is not None:
            calibration = json.loads((self.ckpt_dir / CALIBRATION).read_text(encoding="utf-8"))
        record = load_data_record(self.ckpt_dir)
        names = {"manifest": Path(record["manifest"]).name} if record else {}
        return _json(
            {
                "format": FORMAT,
                "method": self.settings["method"],
                "settings": self.settings,
                "version": monai_rdad.__version__,
                "commit": git_commit(),
                "torch": str(torch.__version__),
                "model_sha256": file_sha256(self.ckpt_dir / WEIGHTS),
                "data": {**names, **{k: v for k, v in record.items() if k in ("manifest_sha256", "tasks")}},
                "input": {
                    "name": "image",
                    "layout": "float32 (batch, channels, height, width), rows first, any height and width",
                    "channels": self.channels,
                    "colour": "1 channel: 0.299 R + 0.587 G + 0.114 B, of 8-bit images rounded; 3: RGB, grey repeated",
                    "range": [0.0, 1.0],
                    "intensity": self.get("intensity"),
                    "window": self.get("window"),
                    "percentiles": [
                        monai_rdad.transforms.intensity.array.LOW,
                        monai_rdad.transforms.intensity.array.HIGH,
                    ],
                    "presets": {
                        "8bit": "value / 255",
                        "percentile": "range between the percentiles of all values above the image's minimum to "
                        "[0, 1]; of a volume over all of its slices together",
                        "ct": "window (level, width) in Hounsfield units to [0, 1]",
                        "auto": "8bit for unsigned bytes, else percentile",
                    },
                    "clip": True,
                },
                "outputs": OUTPUTS,
                "size": self.size,
                "score": {"mode": self.reduction.mode, "fraction": self.reduction.fraction},
                "max_value": float(self.get("max_value")),
                "calibration": calibration,
                "support": self.support,
                "licence": "Apache-2.0",
                "intended_use": "Research only. Not for clinical use: this is no medical device.",
            }
        )


def _json(value: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    return dict(json.loads(json.dumps(value)))


def _plain(image: Any) -> torch.Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _default_ckpt_dir(method: str) -> Path:
    return Path(open_bundle(find_bundle(method), "infer").parser.get_parsed_content("ckpt_dir"))


def _difference(a: Array, b: Array) -> float:
    if a.shape != b.shape:
        raise ValueError(f"The exported map has shape {a.shape}, that of the bundle {b.shape}.")
    return float(np.abs(a - b).max())


def _pair(row: Mapping[str, float]) -> str:
    return f"map {row['map']:.1e}, score {row['score']:.1e}"


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
    with torch.no_grad():
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
    torch.jit.script(detector).save(path)


def _set_onnx_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    model.producer_name, model.producer_version = "monai_rdad", monai_rdad.__version__
    model.doc_string = str(metadata["intended_use"])
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)


def _set_torchscript_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
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


_WRITE: dict[str, Callable[[Detector, int, Path], None]] = {"onnx": _write_onnx, "torchscript": _write_torchscript}
_SET_METADATA = {"onnx": _set_onnx_metadata, "torchscript": _set_torchscript_metadata}
_READ_METADATA = {"onnx": _read_onnx_metadata, "torchscript": _read_torchscript_metadata}
_RUNNERS = {"onnx": _onnx_runner, "torchscript": _torchscript_runner}


def _verify(
    name: str, path: Path, bundle: _Bundle, detector: Detector, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Compare a file with the bundle: on each image as it is, and on batches at other sizes."""
    run = _RUNNERS[name](path)
    rows = []

    def add(what: str, maps: list[float], scores: list[float]) -> None:
        row: dict[str, Any] = {"format": name, "what": what, "map": max(maps), "score": max(scores)}
        rows.append(row)
        report(f"{name:<12} {what:<44} {_pair(row)}")

    maps, scores = [], []
    for entry in bundle.expected:
        found, score = _apply(run, entry.image, bundle)
        maps.append(_difference(found, entry.anomaly_map))
        scores.append(abs(score - entry.score))
    sizes = {tuple(entry.image.shape[1:3]) for entry in bundle.expected}
    add(f"{len(maps)} files of {len(sizes)} sizes, one by one", maps, scores)
    pictures = _pictures(bundle.expected)
    for height, width in _sizes(pictures[0], bundle.size):
        batch = torch.cat([nn.functional.interpolate(picture[None], size=(height, width)) for picture in pictures])
        expected = [bundle.reference(image) for image in batch]
        together, found_scores, _ = run(batch.numpy())
        maps = [_difference(a, b) for a, (b, _) in zip(together, expected, strict=True)]
        add(
            f"batch of {len(batch)}, {height} x {width}",
            maps,
            [abs(float(s) - e[1]) for s, e in zip(found_scores, expected, strict=True)],
        )
    image = pictures[0][None].contiguous()
    ours, its = _seconds(lambda: detector(image)), _seconds(lambda: run(image.numpy()))
    rows[0]["time_ratio"] = its / ours
    report(f"{name:<12} time of one image: {its / ours:.2f} of eager; {path.stat().st_size / 1e6:.1f} MB")
    return rows


def _apply(run: Runner, image: MetaTensor, bundle: _Bundle) -> tuple[Array, float]:
    """Map in the order of the file, and score, of an image or slice by slice of a volume."""
    values = _plain(image).numpy()
    if values.ndim == 3:
        found, score, _ = run(np.ascontiguousarray(values[None]))
        return bundle.as_file(found[0], image), float(score[0])
    slices = np.moveaxis(values, -1, 0)
    parts = [run(np.ascontiguousarray(slices[i : i + SLICES])) for i in range(0, len(slices), SLICES)]
    maps, model_maps = (np.moveaxis(np.concatenate([part[k] for part in parts]), 0, -1) for k in (0, 2))
    return bundle.as_file(maps, image), float(bundle.reduction(torch.from_numpy(model_maps)[None]))


def _pictures(expected: Sequence[_Expected]) -> list[torch.Tensor]:
    """A few images (C, H, W), of a volume its middle slice."""
    images = [_plain(entry.image) for entry in expected[:BATCH]]
    return [image if image.ndim == 3 else image[..., image.shape[-1] // 2] for image in images]


def _sizes(picture: torch.Tensor, size: int) -> list[tuple[int, int]]:
    """Sizes to test: smaller, larger and not square, and that of the training."""
    height, width = picture.shape[1:]
    return [(max(height * 3 // 4, 8), max(width // 2, 8)), (height + 7, width * 3 // 2), (size, size)]


def _seconds(step: Callable[[], Any], repeats: int = 5) -> float:
    """Shortest of a few runs, after one that does not count."""
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    return min(times[1:])


def _summary(rows: list[dict[str, Any]], images: Images, tolerance: float) -> dict[str, Any]:
    largest = {
        name: {key: max(row[key] for row in rows if row["format"] == name) for key in ("map", "score")}
        for name in dict.fromkeys(row["format"] for row in rows)
    }
    return _json(
        {"images": len(images.items), "source": images.source, "tolerance": tolerance, "largest": largest, "rows": rows}
    )
