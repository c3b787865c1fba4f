# SPDX-License-Identifier: Apache-2.0
"""From the records of a download to a manifest: what all data sets have in common.

In this order: make what has to be made (masks, slices); leave out broken files; compare the counts with those
expected; leave out equal images; put images that look the same into one group; split; write the manifest, last and
at once. What was left out and why is in the report and in the manifest itself.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from monai_rdad.data.duplicates import connected, exact_duplicates, near_duplicates
from monai_rdad.data.manifest import NORMAL_ONLY, SPLITS, ManifestError, file_problem
from monai_rdad.data.measure import Measures, in_threads, measure
from monai_rdad.data.sets.cards import card
from monai_rdad.data.sets.divide import apart, drawn, group_of, moved, place_of
from monai_rdad.data.sets.pixels import read_mask
from monai_rdad.data.sets.report import BuildReport
from monai_rdad.data.sets.source import Record, Source, builder_options, find_builder
from monai_rdad.formats import file_kind
from monai_rdad.utils import atomic_path

__all__ = ["build_manifest"]

_BATCH = 64  # records whose files are made at a time
_SHOWN = 5


def build_manifest(
    name: str,
    raw: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    copy: bool = False,
    counts: Literal["strict", "warn"] = "strict",
    on_error: Literal["raise", "skip"] = "raise",
    split: Literal["published", "drawn"] | None = None,
    keep_duplicates: bool = False,
    validation: float = 0.0,
    calibration: float = 0.0,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> BuildReport:
    """Make the manifest of a public data set from its download.

    Args:
        name: of the data set, see :func:`monai_rdad.data.sets.set_names`.
        raw: folder of the unpacked download; nothing is written to it.
        out: folder that gets ``manifest.json`` and what has to be made: ``images/`` and ``masks/``, PNG. The manifest
            names images by their path relative to this folder.
        copy: copy the images and masks of the download to ``out`` as well, which can then be moved.
        counts: "strict": another number of images of a class than the description tells is an error; "warn".
        on_error: "raise", or "skip" to leave out missing and broken files.
        split: "published": the authors' split; "drawn": at random, by group, of the sizes that the description tells;
            None: what the description says.
        keep_duplicates: keep equal images within a split, and do not group those that look the same. Equal images in
            two splits are always left out of training.
        validation: fraction of the training images, by group, to move to validation.
        calibration: fraction of the training images, by group, to move to calibration.
        seed: of the random split.
        progress: show progress bars in a terminal.
        options: of the data set, see :func:`monai_rdad.data.sets.builder_options`.

    Raises:
        ManifestError: not the expected download, broken files, other counts; names the remedy.
        ValueError: an option is unknown, or a fraction is not in [0, 1).
    """
    builder, about = find_builder(name), card(name)
    known = builder_options(name)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"'{name}' has no option {', '.join(unknown)}. It has: {', '.join(known) or 'none'}.")
    if min(validation, calibration) < 0 or validation + calibration >= 1:
        raise ValueError(
            f"validation {validation} and calibration {calibration} must not be negative, nor add up to 1."
        )
    folder, target = Path(raw).expanduser().resolve(), Path(out).expanduser().resolve()
    if not folder.is_dir():
        raise ManifestError(f"{raw}: there is no such folder. Give the folder that the download was unpacked to.")
    if target == folder or folder in target.parents:
        raise ManifestError(
            f"{out} lies in the raw folder {raw}. Choose a folder outside of it: nothing is written there."
        )

    source, report = Source(folder), BuildReport(target / "manifest.json")
    report.manifest.unlink(missing_ok=True)  # its presence says that the files beside it are complete and its own
    records = _made(builder(source, **options), target, source, progress)
    _not_twice(records)
    records, measures = _sound(records, source, progress)
    report.notes += source.notes
    if source.problems and on_error == "raise":
        shown = "".join(f"\n  - {problem}" for problem in source.problems[:_SHOWN])
        raise ManifestError(
            f"{folder}: {len(source.problems)} missing or broken files:{shown}\n"
            "Unpack the download again, or leave these items out with --on-error skip."
        )
    report.drop("missing or broken", source.problems)
    usual = all(known[key] == value for key, value in options.items())
    _check_counts(records, about, report, strict=counts == "strict" and usual and not source.problems)

    published = (split or about["split"].get("default", "drawn")) == "published"
    if not published:
        records = [replace(record, split="") for record in records]
    elif not all(record.split for record in records):
        raise ManifestError(f"'{name}' has no published split. Leave out --split published.")
    if published:
        unused = [r.name for r in records if r.label and r.split in NORMAL_ONLY]
        report.drop(
            "abnormal images of the published training split, which a training on normals leaves unused", unused
        )
        chosen = [i for i, r in enumerate(records) if not (r.label and r.split in NORMAL_ONLY)]
        records, measures = [records[i] for i in chosen], [measures[i] for i in chosen]
    records, measures = _without_copies(records, measures, report, keep_duplicates)
    if published and not keep_duplicates:
        records, measures = _without_lookalikes(records, measures, report)
    if published and validation + calibration > 0:
        # what is set aside from a published training split must not be a copy of what stays in it
        training = [i for i, record in enumerate(records) if record.split == "training"]
        grouped = _grouped_lookalikes([records[i] for i in training], [measures[i] for i in training], report)
        for i, record in zip(training, grouped, strict=True):
            records[i] = record
    if not published and not keep_duplicates:
        records = _grouped_lookalikes(records, measures, report)
    records = apart(records, report) if published else drawn(records, about["split"], seed, report)
    records = moved(records, {"validation": validation, "calibration": calibration}, seed)
    if copy:
        records = [_copied(record, folder, target) for record in records]
    settings = {"split": "published" if published else "drawn", "seed": seed, "validation": validation}
    settings |= {"calibration": calibration, "keep_duplicates": keep_duplicates, **(known | options)}
    _write(records, about, settings, report)
    return report


def _made(found: Iterator[Record], target: Path, source: Source, progress: bool) -> list[Record]:
    """All records, with their files written; the pixels of some volumes at most are held at a time."""
    from tqdm import tqdm

    records: list[Record] = []
    with tqdm(desc="listing and making", disable=not (progress and sys.stderr.isatty()), leave=False) as bar:
        while batch := list(islice(found, _BATCH)):
            for record, problem in in_threads(lambda record: _make(record, target), batch, "", progress=False):
                if problem:
                    source.broken(record.image or record.name, problem)
                else:
                    records.append(record)
                bar.update()
    return records


def _make(record: Record, target: Path) -> tuple[Record, str]:
    try:
        changes: dict[str, Any] = {"pixels": None, "mask_pixels": None}
        for key, pixels, place in (("image", record.pixels, "images"), ("mask", record.mask_pixels, "masks")):
            if pixels is not None:
                changes[key] = _write_picture(pixels() if callable(pixels) else pixels, target / place, record.name)
    except (OSError, ValueError) as error:
        return record, str(error)
    return replace(record, **changes), ""


def _write_picture(pixels: Any, folder: Path, name: str) -> Path:
    from PIL import Image

    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _not_twice(records: Sequence[Record]) -> None:
    twice = [name for name, count in Counter(record.name for record in records).items() if count > 1]
    if twice:
        raise ManifestError(f"{len(twice)} names occur twice, for instance {twice[0]}. Correct the download's tables.")


def _sound(records: list[Record], source: Source, progress: bool) -> tuple[list[Record], list[Measures]]:
    """The records whose files are whole, with their figures."""

    def look(record: Record) -> Measures | str:
        problem = file_problem({"image": str(record.image)} | ({"mask": str(record.mask)} if record.mask else {}))
        if problem is not None:
            return problem
        try:
            if (
                record.label
                and record.mask
                and file_kind(record.mask) == "picture"
                and not read_mask(record.mask).any()
            ):
                return f"its mask {record.mask.name} is empty, though the image is abnormal"
            return measure(str(record.image))
        except (OSError, ValueError) as error:
            return str(error)

    kept, measures = [], []
    for record, result in zip(records, in_threads(look, records, "reading", progress), strict=True):
        if isinstance(result, str):
            source.broken(record.name, result)
        else:
            kept.append(record)
            measures.append(result)
    if not kept:
        problems = f" First problem: {source.problems[0]}" if source.problems else ""
        raise ManifestError(f"{source.raw}: no usable image.{problems} Is it the unpacked download?")
    return kept, measures


def _check_counts(records: Sequence[Record], about: Mapping[str, Any], report: BuildReport, strict: bool) -> None:
    """Images of each class against the description."""
    expected: dict[str, int] = about["counts"].get("classes") or {}
    found = Counter(record.kind for record in records)
    strict = strict and bool(about["counts"].get("verified"))
    wrong = [f"{kind} {found[kind]} instead of {number}" for kind, number in expected.items() if found[kind] != number]
    if wrong and strict:
        raise ManifestError(
            f"The download holds other numbers of images than expected: {', '.join(wrong)}. "
            "Complete it, or go on with --counts warn."
        )
    if wrong:
        report.warnings.append(f"other numbers of images than expected: {', '.join(wrong)}")
    if not expected:
        report.warnings.append("the numbers of images are not known for certain and were not checked")


def _without_copies(
    records: list[Record], measures: list[Measures], report: BuildReport, keep: bool
) -> tuple[list[Record], list[Measures]]:
    """One of each set of equal images: that in the split last in SPLITS, so that a published test set stays whole."""
    paths, sizes = [str(record.image) for record in records], [m.file_bytes for m in measures]
    conflicts: set[int] = set()
    copies: set[int] = set()
    for members in exact_duplicates(paths, sizes):
        if len({records[i].label for i in members}) > 1:
            conflicts.update(members)
            continue
        # Drawn splits have no places yet, so all copies but one go; else two of them could part ways.
        best = max(members, key=lambda i: (place_of(records[i]), -i))
        copies.update(
            i for i in members if i != best and not (keep and place_of(records[i]) == place_of(records[best]) >= 0)
        )
    report.drop("equal images with different labels", [records[i].name for i in sorted(conflicts)])
    report.drop("equal to another image", [records[i].name for i in sorted(copies)])
    left = [i for i in range(len(records)) if i not in conflicts | copies]
    return [records[i] for i in left], [measures[i] for i in left]


def _without_lookalikes(
    records: list[Record], measures: list[Measures], report: BuildReport
) -> tuple[list[Record], list[Measures]]:
    """A published split without the images that look like one in a later split.

    Image by image: joining whole patients here could, link by link, take a large part of the training split along.
    """
    lost = set()
    for a, b in near_duplicates(measures).tolist():
        if place_of(records[a]) != place_of(records[b]):
            lost.add(min(a, b, key=lambda i: place_of(records[i])))
    report.drop("that look the same as an image of a later split", [records[i].name for i in sorted(lost)])
    left = [i for i in range(len(records)) if i not in lost]
    return [records[i] for i in left], [measures[i] for i in left]


def _grouped_lookalikes(records: list[Record], measures: list[Measures], report: BuildReport) -> list[Record]:
    """Joins the groups of images that look the same, before a split is drawn."""
    import numpy as np

    names = {name: i for i, name in enumerate(dict.fromkeys(group_of(record) for record in records))}
    group = np.array([names[group_of(record)] for record in records], np.intp)
    pairs = group[near_duplicates(measures)]
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not pairs.size:
        return records
    component = connected(pairs, len(names))
    first: dict[int, str] = {}
    for name, number in names.items():
        first.setdefault(int(component[number]), name)
    joined, images = np.bincount(component), np.bincount(component[group])
    report.notes.append(
        f"{len(np.unique(pairs, axis=0))} pairs of groups look the same; {int(joined[joined > 1].sum())} groups were "
        f"joined to {int((joined > 1).sum())}"
    )
    largest = int(images[joined > 1].max())
    if largest > max(20, len(records) / 10):
        report.warnings.append(
            f"{largest} images look the same link by link and count as one group; --keep-duplicates leaves them apart"
        )
    return [replace(record, group=first[int(component[names[group_of(record)]])]) for record in records]


def _copied(record: Record, raw: Path, target: Path) -> Record:
    changes: dict[str, Any] = {}
    for key, place, path in (("image", "images", record.image), ("mask", "masks", record.mask)):
        if path is not None and raw in path.parents:
            changes[key] = target / place / path.relative_to(raw)
            changes[key].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, changes[key])
    return replace(record, **changes)


def _write(records: Sequence[Record], about: Mapping[str, Any], settings: dict[str, Any], report: BuildReport) -> None:
    folder = report.manifest.parent

    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, folder)).as_posix()

    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    for record in sorted(records, key=lambda r: r.name):
        assert record.image is not None
        item: dict[str, Any] = {"image": relative(record.image), "label": record.label, "group": group_of(record)}
        if record.mask is not None and record.label:
            item["mask"] = relative(record.mask)
        splits[record.split].append(item | {"class": record.kind})
    report.counts = {name: dict(Counter(item["class"] for item in items)) for name, items in splits.items() if items}
    if not splits["training"]:
        report.warnings.append("no normal image: this set serves for testing only, together with another's normals")
    head = {key: about[key] for key in ("name", "title", "source", "licence", "citation")}
    head["settings"] = settings
    head["left_out"] = report.dropped
    with atomic_path(report.manifest) as temporary:
        temporary.write_text(json.dumps(head | splits, indent=1) + "\n", encoding="utf-8")
