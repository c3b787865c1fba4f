# SPDX-License-Identifier: Apache-2.0
"""What inference leaves behind: maps, pictures, and a table of scores."""

from __future__ import annotations

import csv
import logging
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import Orientation
from monai.utils.type_conversion import convert_to_tensor
from nibabel.orientations import aff2axcodes, io_orientation
from numpy.typing import NDArray

from monai_rdad.formats import DICOM_SUFFIXES, NIFTI_SUFFIXES, PICTURE_SUFFIXES
from monai_rdad.handlers.calibration import Calibration
from monai_rdad.metrics import is_abnormal
from monai_rdad.transforms.io.array import SLICE_AXCODES, VOLUME_AXCODES
from monai_rdad.utils import atomic_path
from monai_rdad.visualize.overlay import overlay
from monai_rdad.visualize.reduce import color_scale, fit_map, fit_picture

__all__ = ["PredictionWriter", "ScoreRow", "file_stem", "read_map", "slice_order", "write_map", "write_volume"]

logger = logging.getLogger(__name__)

EDGE = 768  # longest edge of an overlay picture in pixels
SLICES, COLUMNS = 9, 3  # of a volume's overlay picture
HOLD = 32  # overlays that wait for the colour scale, where none is given
TEXT_KEY = "monai_rdad max_value"


class ScoreRow(NamedTuple):
    """One row of scores.csv.

    Attributes:
        name: of the input.
        score: anomaly score, reduced from the map as the network made it (as evaluation does).
        max: largest value of the written map.
        mean: mean value of the written map.
        width: size of the input: columns of a picture, first axis of a volume.
        height: rows of a picture, second axis of a volume.
        depth: 1 of a picture, third axis of a volume.
        p_value: conformal p-value of the score, empty without calibration, as are the next two.
        abnormal: 1 if the p-value is at most alpha, else 0.
        area: fraction of the map above the map value that promises at most ``area_alpha`` on a normal image.
        slice: most anomalous axial slice of a volume, as index into the input's own array; empty for a picture.
        max_value: map value of pixel 65535 of a PNG; empty for a NIfTI file, which holds the values themselves.
        map: file name of the map.
        overlay: file name of the overlay.
    """

    name: str
    score: float
    max: float
    mean: float
    width: int
    height: int
    depth: int
    p_value: float | str
    abnormal: int | str
    area: float | str
    slice: int | str
    max_value: float | str
    map: str
    overlay: str


class _Tile(NamedTuple):
    image: NDArray[np.uint8]  # (C, H, W)
    anomaly_map: NDArray[np.float32]  # (H, W)
    caption: str


class _Picture(NamedTuple):
    path: Path
    tiles: list[_Tile]
    outlined: float  # map value whose outline is drawn


class PredictionWriter:
    """Ignite handler that writes, per input, the anomaly map in the input's geometry, an overlay, and a score.

    For the ``SupervisedEvaluator`` of inference, one process, with decollated items. It reads "name" of each item of
    the batch, and "image" (in [0, 1]) and "pred" of the output after the evaluator's postprocessing, which has to
    invert both to the input's geometry (``Invertd(keys=["pred", "image"], nearest_interp=False)``). In ``output_dir``
    it leaves, each file complete or not at all:

    - ``<name>_map.png`` for a picture: 16-bit grey, map value = pixel / 65535 * ``max_value``, on a scale that is the
      same for every picture; ``max_value`` also stands in the file (text chunk "monai_rdad max_value") and in
      scores.csv. :func:`read_map` reads it.
    - ``<name>_map.nii.gz`` for a volume (also one slice thick): float32, the values themselves, shape and affine of
      the input.
    - ``<name>_overlay.png``: the map over the image, at most 768 px, with a calibration the outline of what lies above
      its threshold. Of a volume the nine slices with the highest
      scores, in axial view, each with its index in the input.
    - ``scores.csv``, when the run is complete: a :class:`ScoreRow` per input, in the order of the inputs.

    ``<name>`` is the input's relative path without suffix, folders joined by "__"; a second input of the same name gets
    "_2". Overlays share one fixed colour scale, so that a normal image looks calm beside an abnormal one. Without
    ``scale`` it goes from the median to the 99.9th percentile over the first 32 maps of the run: then pictures of
    different runs cannot be compared, and a normal image on its own shows its own highest values.

    Args:
        output_dir: folder of the files; made if there is none.
        reduction: from maps (B, 1, H, W[, D]) to scores (B,), as in training and evaluation.
        max_value: largest value of a map that a PNG can hold: 2 per scale of the network.
        scale: map values that overlays show as transparent and as brightest, or None.
        calibration: of the network, or None for no decisions; not used, with a warning, where it is of volumes and the
            input is an image, or the other way round.
        alpha: false-positive rate at which an input is called abnormal.
        area_alpha: fraction of a normal image that may lie above the outlined map value.
        stratum: scanner or site of the inputs, if the calibration has such.

    Raises:
        ValueError: (during the run) an item without a name, or a map that is not finite; the message names the input.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        reduction: Callable[[torch.Tensor], torch.Tensor],
        max_value: float = 6.0,
        scale: tuple[float, float] | None = None,
        calibration: Calibration | None = None,
        alpha: float = 0.05,
        area_alpha: float = 0.01,
        stratum: str | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.reduction = reduction
        self.max_value = float(max_value)
        self.scale = scale
        self.calibration = calibration
        self.alpha = alpha
        self.area_alpha = area_alpha
        self.stratum = stratum

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI evaluator."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._forward_completed)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Engine) -> None:
        self._rows: list[ScoreRow] = []
        self._stems: set[str] = set()
        self._waiting: list[_Picture] = []
        self._scale = self.scale
        # an infinite threshold, for want of calibration images, outlines nothing
        self._outlined = (
            self.calibration.area_threshold(self.area_alpha, self.stratum) if self.calibration else math.inf
        )

    def _forward_completed(self, engine: Engine) -> None:
        # Before postprocessing resamples the map, so that scores and thresholds are those of the evaluation.
        maps = convert_to_tensor(engine.state.output["pred"], dtype=torch.float32, track_meta=False)
        self._scores = self.reduction(maps).reshape(-1).tolist()
        self._decisions = [self._decide(s, m) for s, m in zip(self._scores, maps[:, 0], strict=True)]

    def _decide(self, score: float, anomaly_map: torch.Tensor) -> tuple[float | str, int | str, float | str]:
        """(p-value, 1 if abnormal, area above the threshold), empty without a calibration for this kind of input."""
        if self.calibration is None or not self.calibration.fits(anomaly_map.ndim == 3) or not math.isfinite(score):
            return "", "", ""
        p_value = self.calibration.p_value(score, self.stratum)
        area = self.calibration.area(anomaly_map.cpu().numpy(), self.area_alpha, self.stratum)
        return p_value, int(is_abnormal(p_value, self.alpha)), area

    def _iteration_completed(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        if not isinstance(batch, list) or not isinstance(output, list):
            raise ValueError("PredictionWriter reads single items: give the evaluator decollate=True.")
        for item, result, score, decision in zip(batch, output, self._scores, self._decisions, strict=True):
            if "name" not in item:
                raise ValueError('An input has no "name". Make the inputs with monai_rdad.data.list_inputs.')
            self._write(str(item["name"]), result["image"], result["pred"], score, decision)

    def _completed(self, engine: Engine) -> None:
        self._draw_waiting()
        with (
            atomic_path(self.output_dir / "scores.csv") as path,
            open(path, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(ScoreRow._fields)
            writer.writerows(self._rows)
        logger.info("%d inputs, scores in %s", len(self._rows), self.output_dir / "scores.csv")

    def _write(
        self,
        name: str,
        image: torch.Tensor,
        pred: torch.Tensor,
        score: float,
        decision: tuple[float | str, int | str, float | str],
    ) -> None:
        values = convert_to_tensor(pred, dtype=torch.float32, device="cpu", track_meta=False)[0].numpy()
        if not (np.isfinite(values).all() and math.isfinite(score)):
            raise ValueError(f"{name}: the anomaly map is not finite. Check the network's weights and precision.")
        stem = file_stem(name, self._stems)
        overlay_path = self.output_dir / f"{stem}_overlay.png"
        top: int | str = ""
        scale: float | str = ""
        if values.ndim == 2:
            path = self.output_dir / f"{stem}_map.png"
            if values.max() > self.max_value:
                largest = values.max()
                logger.warning("%s: its map reaches %.3g; the PNG cuts values above %g", name, largest, self.max_value)
            write_map(path, values, self.max_value)
            (height, width), depth, scale = values.shape, 1, self.max_value
            tiles = [_Tile(fit_picture(image, EDGE), fit_map(pred[0], EDGE), "")]
        elif isinstance(pred, MetaTensor):
            path = self.output_dir / f"{stem}_map.nii.gz"
            write_volume(path, values, np.asarray(pred.affine))
            width, height, depth = values.shape
            tiles, top = self._slices(image, pred)
        else:
            raise ValueError(f"{name}: its map has lost the affine. Put Invertd into the evaluator's postprocessing.")
        largest, mean = float(values.max()), float(values.mean())
        files = (path.name, overlay_path.name)
        self._rows.append(ScoreRow(name, score, largest, mean, width, height, depth, *decision, top, scale, *files))
        outlined = math.inf if decision[0] == "" else self._outlined
        self._waiting.append(_Picture(overlay_path, tiles, outlined))
        if self._scale is not None or len(self._waiting) == HOLD:
            self._draw_waiting()

    def _slices(self, image: torch.Tensor, pred: MetaTensor) -> tuple[list[_Tile], int | str]:
        """Tiles of the highest slices in the order of the volume, and the highest one's index in the input."""
        affine = np.asarray(pred.affine)
        thin = [axis for axis, size in enumerate(pred.shape[1:]) if size == 1]
        flat = len(thin) == 1
        turn = Orientation(SLICE_AXCODES[aff2axcodes(affine)[thin[0]]] if flat else VOLUME_AXCODES, labels=None)
        turned: MetaTensor = turn(pred)  # type: ignore[assignment]
        spacing = [float(step) for step in turned.pixdim[:2]]
        planes = convert_to_tensor(turned, dtype=torch.float32, track_meta=False).permute(3, 0, 1, 2)
        pictures = convert_to_tensor(turn(image), dtype=torch.float32, track_meta=False)
        scores = self.reduction(planes).reshape(-1)
        best = torch.sort(scores.topk(min(SLICES, len(scores))).indices).values.tolist()
        index = slice_order(affine, len(planes))[1]
        edge = EDGE // COLUMNS if len(best) > 1 else EDGE
        tiles = [
            _Tile(
                fit_picture(pictures[..., k], edge, spacing),
                fit_map(planes[k, 0], edge, spacing),
                "" if flat else f"slice {index[k]}",
            )
            for k in best
        ]
        return tiles, "" if flat else index[int(scores.argmax())]

    def _draw_waiting(self) -> None:
        if not self._waiting:
            return
        if self._scale is None:
            self._scale = color_scale([tile.anomaly_map for picture in self._waiting for tile in picture.tiles])
        for picture in self._waiting:
            _draw(picture, *self._scale)
        self._waiting = []


def file_stem(name: str, taken: set[str]) -> str:
    """Name for an input's files: no suffix, no folders, no characters that a file system refuses, unlike all others.

    Args:
        name: relative path of the input.
        taken: names that are in use, in lower case; the result is added.
    """
    stem = "__".join(part for part in re.split(r"[/\\]+", name) if part not in ("", ".", ".."))
    known = [s for s in PICTURE_SUFFIXES + NIFTI_SUFFIXES + DICOM_SUFFIXES if stem.lower().endswith(s)]
    stem = stem[: len(stem) - max(map(len, known), default=0)]
    # 255 bytes is the usual limit, and the endings come on top.
    stem = re.sub(r'[<>:"|?*\x00-\x1f]', "_", stem).encode()[-200:].decode(errors="ignore") or "image"
    unique, count = stem, 1
    while unique.casefold() in taken:
        count += 1
        unique = f"{stem}_{count}"
    taken.add(unique.casefold())
    return unique


def read_map(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """The anomaly map (H, W) of a ``<name>_map.png``, in the unit of the map.

    Raises:
        ValueError: the file was not written by :class:`PredictionWriter`.
    """
    from PIL import Image

    with Image.open(path) as image:
        if TEXT_KEY not in image.info:
            raise ValueError(f"{path}: no '{TEXT_KEY}' in it, so it is no map of PredictionWriter.")
        return np.asarray(image, dtype=np.float32) * (float(image.info[TEXT_KEY]) / 65535)


def write_map(path: str | os.PathLike[str], values: NDArray[np.float32], max_value: float) -> None:
    """Write an anomaly map (H, W) as 16-bit PNG for :func:`read_map`, complete or not at all.

    Args:
        path: of the PNG file.
        values: of the map; what lies above ``max_value`` is cut to it.
        max_value: map value of pixel 65535.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    pixels = np.rint(np.clip(values / max_value, 0, 1) * 65535).astype(np.uint16)
    info = PngInfo()
    info.add_text(TEXT_KEY, repr(max_value))
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info)


def write_volume(path: str | os.PathLike[str], values: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write an array (X, Y, Z) as NIfTI of the same type with an affine in mm (RAS+), complete or not at all."""
    import nibabel

    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)


def slice_order(affine: NDArray[np.float64], count: int) -> tuple[int, list[int]]:
    """Where the axial slices of a volume that was read for display lie in the array of its file.

    Args:
        affine: of the file's array, RAS+.
        count: number of slices.

    Returns:
        The array's axis across the slices, and for each slice of the display, from inferior to superior, its index on
        that axis, which may count down.
    """
    axis, direction = next((i, d) for i, (world, d) in enumerate(io_orientation(affine)) if world == 2)
    return axis, [k if direction > 0 else count - 1 - k for k in range(count)]


def _draw(picture: _Picture, vmin: float, vmax: float) -> None:
    from PIL import Image, ImageDraw

    tiles = []
    for image, anomaly_map, caption in picture.tiles:
        found = (anomaly_map >= picture.outlined).astype(np.uint8)
        tile = Image.fromarray(overlay(image, anomaly_map, vmin, vmax, mask=found))
        if caption:
            draw = ImageDraw.Draw(tile)
            draw.text((4, 2), caption, fill="white", stroke_width=1, stroke_fill="black", font_size=14)
        tiles.append(tile)
    columns = min(COLUMNS, len(tiles))
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    with atomic_path(picture.path) as temporary:
        sheet.save(temporary, format="PNG")
