# SPDX-License-Identifier: Apache-2.0
"""From a trained bundle to files that run without this package, and the proof that they compute the same."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from torch import nn

from monai_rdad.apps.export_files import FORMATS, Array, Runner
from monai_rdad.apps.trained_bundle import Expected, TrainedBundle, largest_difference, plain
from monai_rdad.data import list_inputs, load_manifest, manifest_hash, phantom_dataset
from monai_rdad.handlers import load_data_record
from monai_rdad.inferers import Detector
from monai_rdad.utils import atomic_path, file_sha256

__all__ = ["Images", "export_detector"]

BATCH = 4
SLICES = 8  # of a volume per run


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
        ckpt_dir: Path,
        images: Sequence[Path] | None = None,
        manifest: Path | None = None,
        dataset_dir: Path | None = None,
        number: int = 16,
    ) -> Images:
        """Images that were named, or testing images: of a manifest, of the training's, or phantoms.

        Args:
            ckpt_dir: folder of model.pt and of the record which data it was trained on.
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
            record = load_data_record(ckpt_dir)
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


def export_detector(
    method: str,
    ckpt_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    images: Images,
    formats: Sequence[str] = tuple(FORMATS),
    support: str | os.PathLike[str] | None = None,
    tolerance: float = 1e-4,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a trained detector, verified against the inference of its bundle, each file complete or not at all.

    Args:
        method: name of the bundle, or its folder.
        ckpt_dir: folder of model.pt.
        out: folder of the files, :data:`~monai_rdad.apps.export_files.FORMATS` and verification.json.
        images: to verify with.
        formats: of :data:`~monai_rdad.apps.export_files.FORMATS`.
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
        bundle = TrainedBundle(method, images.items, Path(temporary), ckpt_dir, support)
        detector = bundle.detector()
        paths = {name: stack.enter_context(atomic_path(folder / FORMATS[name].file)) for name in dict.fromkeys(formats)}
        summary = stack.enter_context(atomic_path(folder / "verification.json"))
        rows: list[dict[str, Any]] = []
        for name, path in paths.items():
            FORMATS[name].write(detector, bundle.channels, path)
            rows += _verify(name, path, bundle, detector, report)
        verification = _summary(rows, images, tolerance)
        if bundle.low_precision is not None:
            largest = bundle.low_precision
            verification["bfloat16"] = largest
            report(f"for information: the bundle at its default precision, bfloat16 here, differs by {_pair(largest)}")
        worst = float(np.max([[row["map"], row["score"]] for row in rows]))
        if not worst <= tolerance:  # NaN is no success
            raise ValueError(
                f"The exported files differ from the bundle by up to {worst:.3g}, the tolerance is {tolerance:g}: "
                "nothing was kept. Raise --tolerance if this is acceptable for map values of this size."
            )
        metadata = bundle.metadata() | {"verification": verification}
        for name, path in paths.items():
            FORMATS[name].add_metadata(path, metadata)
            if FORMATS[name].read_metadata(path) != metadata:
                raise ValueError(f"{FORMATS[name].file}: its metadata cannot be read back. Report this as a bug.")
        files = {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in paths.values()}
        result = verification | {"files": files}
        summary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _pair(row: Mapping[str, float]) -> str:
    return f"map {row['map']:.1e}, score {row['score']:.1e}"


def _verify(
    name: str, path: Path, bundle: TrainedBundle, detector: Detector, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Compare a file with the bundle: on each image as it is, and on batches at other sizes."""
    run = FORMATS[name].runner(path)
    rows = []

    def add(what: str, maps: list[float], scores: list[float]) -> None:
        row: dict[str, Any] = {"format": name, "what": what, "map": float(np.max(maps)), "score": float(np.max(scores))}
        rows.append(row)
        report(f"{name:<12} {what:<44} {_pair(row)}")

    maps, scores = [], []
    for entry in bundle.expected:
        found, score = _apply(run, entry.image, bundle)
        maps.append(largest_difference(found, entry.anomaly_map))
        scores.append(abs(score - entry.score))
    sizes = {tuple(entry.image.shape[1:3]) for entry in bundle.expected}
    add(f"{len(maps)} files of {len(sizes)} sizes, one by one", maps, scores)
    pictures = _pictures(bundle.expected)
    for height, width in _sizes(pictures[0], bundle.size):
        batch = torch.cat([nn.functional.interpolate(picture[None], size=(height, width)) for picture in pictures])
        expected = [bundle.reference(image) for image in batch]
        together, found_scores, _ = run(batch.numpy())
        maps = [largest_difference(a, b) for a, (b, _) in zip(together, expected, strict=True)]
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


def _apply(run: Runner, image: MetaTensor, bundle: TrainedBundle) -> tuple[Array, float]:
    """Map in the order of the file, and score, of an image or slice by slice of a volume."""
    values = plain(image).numpy()
    if values.ndim == 3:
        found, score, _ = run(np.ascontiguousarray(values[None]))
        return bundle.as_file(found[0], image), float(score[0])
    slices = np.moveaxis(values, -1, 0)
    parts = [run(np.ascontiguousarray(slices[i : i + SLICES])) for i in range(0, len(slices), SLICES)]
    maps, model_maps = (np.moveaxis(np.concatenate([part[k] for part in parts]), 0, -1) for k in (0, 2))
    return bundle.as_file(maps, image), float(bundle.reduction(torch.from_numpy(model_maps)[None]))


def _pictures(expected: Sequence[Expected]) -> list[torch.Tensor]:
    """A few images (C, H, W), at least two, of a volume its middle slice."""
    images = [plain(entry.image) for entry in expected[:BATCH]]
    pictures = [image if image.ndim == 3 else image[..., image.shape[-1] // 2] for image in images]
    return pictures if len(pictures) > 1 else [*pictures, pictures[0].flip(2)]


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
    summary = {
        "images": len(images.items),
        "source": images.source,
        "tolerance": tolerance,
        "largest": largest,
        "rows": rows,
    }
    return dict(json.loads(json.dumps(summary)))  # as it comes back from a file
