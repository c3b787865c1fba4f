# SPDX-License-Identifier: Apache-2.0
"""What inference leaves behind: maps, pictures, and a table of scores."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import Orientation
from monai.utils.type_conversion import convert_to_tensor
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from monai_rdad.formats import DICOM_SUFFIXES, NIFTI_SUFFIXES, PICTURE_SUFFIXES, file_kind
from monai_rdad.handlers.calibration import Calibration
from monai_rdad.metrics import is_abnormal
from monai_rdad.transforms.io.array import SLICE_AXCODES, VIEW_AXCODES
from monai_rdad.transforms.slices.array import through_slices
from monai_rdad.utils import atomic_path, write_csv
from monai_rdad.visualize.dicom import require_highdicom, write_dicom_map, write_dicom_segmentation
from monai_rdad.visualize.maps import read_map, write_map
from monai_rdad.visualize.overlay import overlay
from monai_rdad.visualize.reduce import color_scale, fit_map, fit_picture
from monai_rdad.visualize.volume import LesionRow, SliceRow, lesion_rows, slice_indices, volume_record, write_nifti

__all__ = ["PredictionWriter", "ScoreRow", "file_stem", "read_map"]

logger = logging.getLogger(__name__)

EDGE = 768  # longest edge of an overlay picture in pixels
SLICES, COLUMNS = 9, 3  # of a volume's overlay picture
HOLD = 32  # overlays that wait for the colour scale, where none is given


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
        slice: most anomalous slice of a volume, as index into the input's own array; empty for a picture.
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


class _Result(NamedTuple):
    """What is known of an input before its map is resampled."""

    score: float
    p_value: float | str
    abnormal: int | str
    area: float | str
    slices: list[float | str]  # scores of a volume's slices, in the order of the view


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
      the input, and with the codes of its sform and qform.
    - ``<name>_volume.json`` for a volume: its score and decision, the scores of its slices, its lesions.
    - with ``dicom``, for DICOM in a frame of reference, ``<name>_map.dcm``, a parametric map, and ``<name>_seg.dcm``, a
      segmentation of what lies above the threshold, if anything does.
    - ``<name>_overlay.png``: the map over the image, at most 768 px, with a calibration the outline of what lies above
      its threshold. Of a volume the nine slices with the highest scores, each with its index in the input.
    - ``scores.csv``, when the run is complete: a :class:`ScoreRow` per input, in the order of the inputs. If there were
      volumes, also ``slices.csv``, a :class:`SliceRow` per slice, and ``lesions.csv``, a :class:`LesionRow` per lesion.

    The threshold of outlines, lesions and segmentations is ``threshold``, or that of the calibration; with neither
    there are none. Nothing that the headers of an input say about the patient gets into these files, but for the DICOM
    objects, which belong to the patient's study; ``name`` is the name of the input's file or folder.

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
        axis: of the body across the slices of volumes, as in ``ReadImage``.
        threshold: map value above which lesions are outlined and listed; None for that of ``area_alpha``.
        dicom: whether to write DICOM objects for DICOM inputs.

    Raises:
        ImportError: ``dicom`` without highdicom.
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
        axis: int = 2,
        threshold: float | None = None,
        dicom: bool = False,
    ) -> None:
        if dicom:
            require_highdicom()
        self.axis = axis
        self.threshold = threshold
        self.dicom = dicom
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
        self._slices: list[SliceRow] = []
        self._lesions: list[LesionRow] = []
        self._stems: set[str] = set()
        self._waiting: list[_Picture] = []
        self._scale = self.scale
        # an infinite threshold, for want of calibration images, outlines nothing
        self._outlined = math.inf if self.threshold is None else self.threshold
        if self.threshold is None and self.calibration is not None:
            self._outlined = self.calibration.area_threshold(self.area_alpha, self.stratum)

    def _forward_completed(self, engine: Engine) -> None:
        # Before postprocessing resamples the map, so that scores and thresholds are those of the evaluation.
        maps = convert_to_tensor(engine.state.output["pred"], dtype=torch.float32, track_meta=False)
        scores = self.reduction(maps).reshape(-1).tolist()
        self._results = [self._result(score, m) for score, m in zip(scores, maps, strict=True)]

    def _result(self, score: float, anomaly_map: torch.Tensor) -> _Result:
        """Decision, empty without a calibration for this kind of input, and scores of the slices of a volume."""
        slices: list[float | str] = []
        if anomaly_map.ndim == 4:
            planes = through_slices(anomaly_map[None])
            seen = planes.flatten(1).any(1).tolist()
            slices = [s if there else "" for s, there in zip(self.reduction(planes).tolist(), seen, strict=True)]
        if self.calibration is None or not self.calibration.fits(anomaly_map.ndim == 4) or not math.isfinite(score):
            return _Result(score, "", "", "", slices)
        p_value = self.calibration.p_value(score, self.stratum)
        area = self.calibration.area(anomaly_map.cpu().numpy(), self.area_alpha, self.stratum)
        return _Result(score, p_value, int(is_abnormal(p_value, self.alpha)), area, slices)

    def _iteration_completed(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        if not isinstance(batch, list) or not isinstance(output, list):
            raise ValueError("PredictionWriter reads single items: give the evaluator decollate=True.")
        for item, tensors, result in zip(batch, output, self._results, strict=True):
            if "name" not in item:
                raise ValueError('An input has no "name". Make the inputs with monai_rdad.data.list_inputs.')
            self._write(str(item["name"]), tensors["image"], tensors["pred"], result)

    def _completed(self, engine: Engine) -> None:
        self._draw_waiting()
        write_csv(self.output_dir / "scores.csv", ScoreRow._fields, self._rows)
        if self._slices:
            write_csv(self.output_dir / "slices.csv", SliceRow._fields, self._slices)
            write_csv(self.output_dir / "lesions.csv", LesionRow._fields, self._lesions)
        logger.info("%d inputs, scores in %s", len(self._rows), self.output_dir / "scores.csv")

    def _write(self, name: str, image: torch.Tensor, pred: torch.Tensor, result: _Result) -> None:
        values = convert_to_tensor(pred, dtype=torch.float32, device="cpu", track_meta=False)[0].numpy()
        if not (np.isfinite(values).all() and math.isfinite(result.score)):
            raise ValueError(f"{name}: the anomaly map is not finite. Check the network's weights and precision.")
        stem = file_stem(name, self._stems)
        overlay_path = self.output_dir / f"{stem}_overlay.png"
        source = str(pred.meta.get("filename_or_obj", "")) if isinstance(pred, MetaTensor) else ""
        outlined = self._outlined if self.threshold is not None or result.p_value != "" else math.inf
        top: int | str = ""
        scale: float | str = ""
        if values.ndim == 2:
            path = self.output_dir / f"{stem}_map.png"
            self._write_png(path, values, name)
            (height, width), depth, scale = values.shape, 1, self.max_value
            tiles = [_Tile(fit_picture(image, EDGE), fit_map(pred[0], EDGE), "")]
        elif isinstance(pred, MetaTensor):
            path = self.output_dir / f"{stem}_map.nii.gz"
            write_nifti(path, values, np.asarray(pred.affine), source)
            width, height, depth = values.shape
            tiles = self._tiles(image, pred, result.slices)
            if result.slices:
                top = self._list_volume(stem, name, values, np.asarray(pred.affine), result, outlined)
        else:
            raise ValueError(f"{name}: its map has lost the affine. Put Invertd into the evaluator's postprocessing.")
        if self.dicom and source and file_kind(source) == "dicom":
            if not write_dicom_map(self.output_dir / f"{stem}_map.dcm", source, values):
                logger.warning("%s: no frame of reference, so no DICOM object; its map is %s", name, path.name)
            write_dicom_segmentation(self.output_dir / f"{stem}_seg.dcm", source, values, outlined)
        largest, mean = float(values.max()), float(values.mean())
        decision = (result.p_value, result.abnormal, result.area)
        size, files = (width, height, depth), (path.name, overlay_path.name)
        self._rows.append(ScoreRow(name, result.score, largest, mean, *size, *decision, top, scale, *files))
        self._waiting.append(_Picture(overlay_path, tiles, outlined))
        if self._scale is not None or len(self._waiting) == HOLD:
            self._draw_waiting()

    def _list_volume(
        self,
        stem: str,
        name: str,
        values: NDArray[np.float32],
        affine: NDArray[np.float64],
        result: _Result,
        threshold: float,
    ) -> int | str:
        """Slices and lesions of a volume, for the tables and as JSON; the slice with the highest score."""
        index = slice_indices(affine, self.axis, len(result.slices))
        slices = sorted(SliceRow(name, k, score) for k, score in zip(index, result.slices, strict=True))
        lesions = lesion_rows(name, values, affine, self.axis, threshold)
        self._slices += slices
        self._lesions += lesions
        content = volume_record(slices, lesions, self.axis, threshold)
        content |= {"name": name, "score": result.score}
        decision = {"p_value": result.p_value, "abnormal": result.abnormal, "area": result.area}
        content |= {key: None if value == "" else value for key, value in decision.items()}
        with atomic_path(self.output_dir / f"{stem}_volume.json") as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        scored = [(float(row.score), row.slice) for row in slices if row.score != ""]
        return max(scored, key=lambda pair: pair[0])[1] if scored else ""

    def _write_png(self, path: Path, values: NDArray[np.float32], name: str) -> None:
        if values.max() > self.max_value:
            logger.warning("%s: its map reaches %.3g; the PNG cuts values above %g", name, values.max(), self.max_value)
        write_map(path, values, self.max_value)

    def _tiles(self, image: torch.Tensor, pred: MetaTensor, scores: Sequence[float | str]) -> list[_Tile]:
        """Tiles of the slices with the highest scores in the order of the volume, or of a volume one voxel thick."""
        affine = np.asarray(pred.affine)
        thin = [axis for axis, size in enumerate(pred.shape[1:]) if size == 1]
        flat = not scores
        turn = Orientation(
            SLICE_AXCODES[aff2axcodes(affine)[thin[0]]] if flat else VIEW_AXCODES[self.axis], labels=None
        )
        turned: MetaTensor = turn(pred)  # type: ignore[assignment]
        spacing = [float(step) for step in turned.pixdim[:2]]
        planes = convert_to_tensor(turned, dtype=torch.float32, track_meta=False)[0]
        pictures = convert_to_tensor(turn(image), dtype=torch.float32, track_meta=False)
        index = slice_indices(affine, self.axis, planes.shape[-1])
        known = [-math.inf if score == "" else float(score) for score in scores] or [0.0]
        best = sorted(sorted(range(len(known)), key=lambda k: -known[k])[:SLICES])
        edge = EDGE // COLUMNS if len(best) > 1 else EDGE
        return [
            _Tile(
                fit_picture(pictures[..., k], edge, spacing),
                fit_map(planes[..., k], edge, spacing),
                "" if flat else f"slice {index[k]}",
            )
            for k in best
        ]

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
