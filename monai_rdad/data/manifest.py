# SPDX-License-Identifier: Apache-2.0
"""Manifests: which images belong to which split, and every check that is due before a training starts.

A manifest is a JSON file of one of two forms:

1. MONAI's decathlon form, ``{"training": [item, ...], "validation": [...], "calibration": [...], "testing": [...]}``;
2. a flat list ``[record, ...]`` whose records are items with a "split".

An item has "image" (path relative to the data set's folder), "label" (0 normal, 1 abnormal) and optionally "mask"
(path or null), "group" (patient, scan or slide) and "stratum" (scanner or site); a volume for training may have
"exclude" (path of a mask whose slices do not train). Other keys are passed over.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from monai_rdad.data.probe import content_digest, content_size, probe, same_size

__all__ = [
    "SPLITS",
    "ManifestError",
    "check_files",
    "data_record",
    "load_manifest",
    "manifest_hash",
    "manifest_title",
    "split_by_group",
]

Item = dict[str, Any]
PathLike = str | os.PathLike[str]

SPLITS = ("training", "validation", "calibration", "testing")
NORMAL_ONLY = ("training", "calibration")
_SPLIT_NAMES = {name: name for name in SPLITS} | {"train": "training", "val": "validation", "test": "testing"}
_SHOWN = 5  # items that an error message lists


class ManifestError(ValueError):
    """A manifest, or a file that it names, cannot be used; the message names the items and the remedy."""


def load_manifest(
    manifest: PathLike,
    dataset_dir: PathLike | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    required: Sequence[str] = ("training",),
) -> dict[str, list[Item]]:
    """Reads a manifest and checks everything that can be checked before training.

    Args:
        manifest: JSON file in one of the two forms.
        dataset_dir: folder that the paths in the manifest are relative to. Default: the manifest's own.
        on_error: "raise", or "skip" to leave out items with a missing, broken or mismatching file, with one warning
            each and one with their number. Errors of the data set as a whole (wrong types, an image or group in two
            splits, an abnormal item where only normals belong) are raised in any case.
        required: splits that must not be empty.

    Returns:
        The four splits (missing ones are empty), each a list of items: "image" absolute path, "label" 0 or 1, "mask"
        absolute path (left out where there is none, and for training and calibration, which are normal throughout),
        "exclude" likewise, "group" (default: the name), "stratum" (default: empty) and "name" (the manifest's path).

    Raises:
        ManifestError: see there.
        ValueError: ``on_error`` is neither "raise" nor "skip".
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is '{on_error}', it must be 'raise' or 'skip'.")
    source = Path(manifest).expanduser()
    folder = Path(dataset_dir).expanduser() if dataset_dir is not None else source.parent
    splits = _parse(_read_json(source), source, folder.absolute())
    _check_labels(splits, source)
    _check_groups(splits, source)
    _check_paths(splits, source)
    check_files(splits, source, skip=on_error == "skip")
    _check_contents(splits, source)
    for split in required:
        if not splits[split]:
            raise ManifestError(f"{source}: the split '{split}' is empty. Add items to it.")
    for split in NORMAL_ONLY:
        for item in splits[split]:
            item.pop("mask", None)
    return splits


def manifest_hash(manifest: PathLike) -> str:
    """SHA-256 of a manifest file, in hexadecimal: the name of a data set in results and in MLflow."""
    try:
        return hashlib.sha256(Path(manifest).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise ManifestError(f"{manifest}: cannot be read ({error.strerror}). Check the path.") from error


def manifest_title(manifest: PathLike) -> str:
    """What the data set is called: the manifest's "title", or else the name of the folder that it lies in.

    Raises:
        ManifestError: the manifest cannot be read.
    """
    path = Path(manifest).expanduser().absolute()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{manifest}: cannot be read ({error}). Check the path.") from error
    title = content.get("title") if isinstance(content, dict) else None
    return title if isinstance(title, str) else path.parent.name


def data_record(manifest: PathLike, dataset_dir: PathLike, tasks: Mapping[str, PathLike] | None = None) -> Item:
    """What a training has to say of its data: where they lie, and the hash by which they are known elsewhere.

    Args:
        manifest: of the data set.
        dataset_dir: folder that its paths are relative to.
        tasks: name and manifest of each task of a few-shot training.

    Returns:
        "manifest" and "dataset_dir" (absolute), "manifest_sha256", and "tasks", name -> SHA-256, if there are any.

    Raises:
        ManifestError: a manifest cannot be read.
    """
    record: Item = {
        "manifest": str(Path(manifest).expanduser().absolute()),
        "dataset_dir": str(Path(dataset_dir).expanduser().absolute()),
        "manifest_sha256": manifest_hash(manifest),
    }
    if tasks:
        record["tasks"] = {name: manifest_hash(path) for name, path in tasks.items()}
    return record


def split_by_group(items: Sequence[Item], fractions: Mapping[str, float], seed: int = 0) -> dict[str, list[Item]]:
    """Divides items at random so that no group falls into two splits.

    Groups without an abnormal item are dealt out by ``fractions``. Groups with one cannot go to "training" or
    "calibration"; they are dealt out among the other splits, in proportion to the fractions of these. Each group goes
    to the split that lacks most items, large groups first, so the fractions of items come out as close as the groups
    allow. The result depends on the items and the seed, not on the items' order; within a split that order is kept.

    Args:
        items: with "image" and optionally "label" and "group" (an item without one is its own group).
        fractions: split name -> fraction of the items, positive, with sum 1.
        seed: of the random order of groups of one size.

    Raises:
        ValueError: wrong fractions, abnormal items without a split for them, or too few groups to fill every split.
    """
    if not fractions or min(fractions.values()) <= 0 or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise ValueError(f"fractions are {dict(fractions)}: they must be positive and add up to 1.")
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(str(item.get("group") or item["image"]), []).append(index)
    abnormal = {name for name, members in groups.items() if any(items[i].get("label") == 1 for i in members)}
    open_to_abnormal = {name: part for name, part in fractions.items() if name not in NORMAL_ONLY}
    if abnormal and not open_to_abnormal:
        raise ValueError("some items are abnormal: give a fraction to 'validation' or 'testing' for them.")
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda name: -len(groups[name]))  # stable: random among equals
    chosen: dict[int, str] = {}
    for names, shares in (
        ([name for name in order if name not in abnormal], fractions),
        ([name for name in order if name in abnormal], open_to_abnormal),
    ):
        total = sum(len(groups[name]) for name in names)
        lacking = {split: total * part / sum(shares.values()) for split, part in shares.items()}
        for name in names:
            split = max(lacking, key=lacking.__getitem__)
            lacking[split] -= len(groups[name])
            chosen.update(dict.fromkeys(groups[name], split))
    result = {split: [item for i, item in enumerate(items) if chosen[i] == split] for split in fractions}
    if empty := [split for split, members in result.items() if not members]:
        raise ValueError(f"{len(groups)} groups leave '{empty[0]}' without items. Use fewer splits or other fractions.")
    return result


def _read_json(source: Path) -> Any:
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(f"{source}: cannot be read ({error.strerror}). Give the manifest's path.") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{source}: not a text file in UTF-8. Give the path of a JSON manifest.") from error
    except json.JSONDecodeError as error:
        raise ManifestError(f"{source}: no valid JSON, {error}. Correct the file there.") from error


def _records(content: Any, source: Path) -> Iterator[tuple[str, str | None, Any]]:
    """(where, split name, record) of either form; the split is None where it is not one of those known."""
    if isinstance(content, list):
        for number, record in enumerate(content):
            name = record.get("split") if isinstance(record, dict) else None
            yield f"record {number}", _SPLIT_NAMES.get(name) if isinstance(name, str) else None, record
        return
    if not isinstance(content, dict):
        raise ManifestError(f"{source}: it holds a {_json_type(content)}, expected an object of splits or a list.")
    for key, records in content.items():
        if key not in _SPLIT_NAMES:
            continue
        if not isinstance(records, list):
            raise ManifestError(f"{source}: '{key}' is a {_json_type(records)}, it must be a list of items.")
        for number, record in enumerate(records):
            yield f"{key} item {number}", _SPLIT_NAMES[key], record


def _parse(content: Any, source: Path, folder: Path) -> dict[str, list[Item]]:
    """Either form as four lists of complete items; every problem of a type or value is collected."""
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    problems = []
    for where, split, record in _records(content, source):
        if isinstance(record, dict) and isinstance(record.get("image"), str):
            where = f"{where} ({record['image']})"
        problem = _schema_problem(record, split)
        if problem or split is None:
            problems.append(f"{where}: {problem}")
            continue
        name, group = record["image"], record.get("group")
        item: Item = {"image": str(folder / name), "label": record["label"], "name": name}
        item["group"] = name if group is None else str(group)
        item["stratum"] = str(record.get("stratum") or "")
        for key in ("mask", "exclude"):
            if record.get(key) is not None:
                item[key] = str(folder / record[key])
        splits[split].append(item)
    _raise_if(problems, source, "wrong items", "Correct the manifest; docs/data.md shows both forms.")
    if not any(splits.values()):
        raise ManifestError(f"{source}: it names no image. Expected a list, or one of the keys {', '.join(SPLITS)}.")
    return splits


def _schema_problem(record: Any, split: str | None) -> str | None:
    if not isinstance(record, dict):
        return f"is a {_json_type(record)}, it must be an object with 'image' and 'label'"
    image, label, group, stratum = (record.get(key) for key in ("image", "label", "group", "stratum"))
    if not isinstance(image, str) or not image:
        return f"'image' is {image!r}, it must be a path"
    if isinstance(label, bool) or label not in (0, 1) or not isinstance(label, int):
        return f"'label' is {label!r}, it must be 0 (normal) or 1 (abnormal)"
    for key in ("mask", "exclude"):
        if record.get(key) is not None and (not isinstance(record[key], str) or not record[key]):
            return f"'{key}' is {record[key]!r}, it must be a path, null or absent"
    if group is not None and (isinstance(group, bool) or not isinstance(group, (str, int))):
        return f"'group' is {group!r}, it must be a text or a whole number"
    if stratum is not None and not isinstance(stratum, str):
        return f"'stratum' is {stratum!r}, it must be a text"
    if split is None:
        return f"'split' is {record.get('split')!r}, it must be one of {', '.join(_SPLIT_NAMES)}"
    stray = record.get("exclude") is not None and split != "training"
    return "'exclude' takes slices of a volume out of the training; other splits take volumes whole" if stray else None


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _raise_if(problems: Sequence[str], source: Path, what: str, remedy: str) -> None:
    """One error for all problems of a kind: their number and the first five."""
    if problems:
        shown = "".join(f"\n  - {problem}" for problem in problems[:_SHOWN])
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ManifestError(f"{source}: {len(problems)} {what}:{shown}{more}\n{remedy}")


def _all(splits: Mapping[str, list[Item]]) -> Iterator[tuple[str, Item]]:
    return ((split, item) for split, items in splits.items() for item in items)


def _check_labels(splits: Mapping[str, list[Item]], source: Path) -> None:
    problems = [f"{split} {i['name']}" for split, i in _all(splits) if i["label"] == 1 and split in NORMAL_ONLY]
    remedy = "Move them to validation or testing: training and calibration hold normal images only."
    _raise_if(problems, source, "abnormal items where only normal ones belong", remedy)


def _check_groups(splits: Mapping[str, list[Item]], source: Path) -> None:
    homes: dict[str, dict[str, str]] = {}
    for split, item in _all(splits):
        homes.setdefault(item["group"], {}).setdefault(split, item["name"])
    problems = [
        f"group '{group}': " + ", ".join(f"{split} {name}" for split, name in places.items())
        for group, places in homes.items()
        if len(places) > 1
    ]
    remedy = "Keep each group (patient, scan, slide) in one split; monai_rdad.data.split_by_group does so."
    _raise_if(problems, source, "groups in more than one split", remedy)


def _check_paths(splits: Mapping[str, list[Item]], source: Path) -> None:
    first: dict[str, str] = {}
    problems = []
    for split, item in _all(splits):
        place = f"{split} {item['name']}"
        earlier = first.setdefault(os.path.realpath(item["image"]), place)
        if earlier is not place:
            problems.append(f"{place}, already listed as {earlier}")
    _raise_if(problems, source, "images listed twice", "List each image once, in one split.")


def check_files(splits: dict[str, list[Item]], source: Path, skip: bool) -> None:
    """Files exist, decode and match; broken items are taken out of ``splits`` where ``skip`` says so."""
    problems = []
    for split, items in splits.items():
        sound = []
        for item in items:
            problem = file_problem(item)
            if problem is None:
                sound.append(item)
            else:
                problems.append(f"{split} {item['name']}: {problem}")
        splits[split] = sound
    if not skip:
        remedy = "Correct the files or the manifest, or leave these items out with --on_error skip."
        _raise_if(problems, source, "broken items", remedy)
        return
    for problem in problems:
        warnings.warn(f"{source}: skipped {problem}", stacklevel=3)
    if problems:
        left = sum(len(items) for items in splits.values())
        warnings.warn(f"{source}: {len(problems)} broken items were skipped, {left} are left.", stacklevel=3)


def file_problem(item: Item) -> str | None:
    """What is wrong with the files of an item, None if they are whole and the masks fit the image."""
    image = item["image"]
    try:
        size = probe(image)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    masks = [item[key] for key in ("mask", "exclude") if item.get(key) is not None]
    return next((problem for mask in masks if (problem := _mask_problem(image, size, mask))), None)


def _mask_problem(image: str, size: tuple[int, ...], mask: str) -> str | None:
    if mask.lower().endswith((".jpg", ".jpeg")):
        return f"its mask {mask} is a JPEG, whose compression blurs the border. Save it as PNG."
    try:
        mask_size = probe(mask)
    except (FileNotFoundError, ValueError) as error:
        return f"its mask {mask}: {error}"
    if not same_size(size, mask_size, image, mask):
        return f"its mask {mask} has size {mask_size}, the image {size}. Make the mask from this very image."
    return None


def _check_contents(splits: Mapping[str, list[Item]], source: Path) -> None:
    """No content in two splits. Only files of one size can be equal, so few need to be read."""
    by_size = _grouped((content_size(item["image"]), (split, item)) for split, item in _all(splits))
    suspects = [place for places in by_size if len({split for split, _ in places}) > 1 for place in places]
    by_content = _grouped((content_digest(item["image"]), (split, item)) for split, item in suspects)
    problems = [
        ", ".join(f"{split} {item['name']}" for split, item in places)
        for places in by_content
        if len({split for split, _ in places}) > 1
    ]
    _raise_if(problems, source, "images with equal content in two splits", "Keep one copy of each image.")


def _grouped(pairs: Iterable[tuple[Any, tuple[str, Item]]]) -> list[list[tuple[str, Item]]]:
    groups: dict[Any, list[tuple[str, Item]]] = {}
    for key, place in pairs:
        groups.setdefault(key, []).append(place)
    return list(groups.values())
