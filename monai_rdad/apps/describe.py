# SPDX-License-Identifier: Apache-2.0
"""What a user should know of a data set before training on it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_rdad.data import load_manifest, manifest_hash, manifest_title
from monai_rdad.data.duplicates import exact_duplicates, near_duplicates
from monai_rdad.data.measure import Measures, grey_picture, in_threads, measure
from monai_rdad.data.sets.pixels import read_mask
from monai_rdad.metrics.leaks import MIN_GROUPS, TRIVIAL_SCORES, leak_figures, trivial_scores
from monai_rdad.utils import atomic_path
from monai_rdad.visualize.description import Example, Part, description_page

__all__ = ["describe_manifest"]

_EXAMPLES = 8  # pictures of each part of the page
_EDGE = 192
_PARTS = (
    ("training, normal", "training", 0),
    ("testing, normal", "testing", 0),
    ("testing, abnormal", "testing", 1),
)


def describe_manifest(
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dataset_dir: str | os.PathLike[str] | None = None,
    on_error: str = "raise",
    resamples: int = 1000,
) -> dict[str, Any]:
    """Counts, sizes, intensities, groups, duplicates and the AUROC of trivial scores of a data set.

    Writes ``description.json``, what is returned, and ``description.png``, one page. Each image is decoded once.

    Args:
        manifest: JSON file, see docs/data.md.
        out: folder to write to.
        dataset_dir: folder that the paths in the manifest are relative to; default: the manifest's own.
        on_error: "raise", or "skip" to leave out broken items.
        resamples: of the bootstrap intervals.

    Returns:
        the description, of JSON types.

    Raises:
        ManifestError: the manifest does not pass its checks.
    """
    mode: Literal["raise", "skip"] = "skip" if on_error == "skip" else "raise"
    splits = load_manifest(manifest, dataset_dir, mode, required=())
    items = [item | {"split": split} for split, members in splits.items() for item in members]
    measures = list(in_threads(_measure, items, "reading"))
    scored = _scored(items)
    training = [m for m, item in zip(measures, items, strict=True) if item["split"] == "training"]
    scores = trivial_scores([measures[i] for i in scored], training)
    labels, groups = [items[i]["label"] for i in scored], [items[i]["group"] for i in scored]
    leaks = leak_figures(scores, labels, groups, resamples)
    for name, figures in leaks.items():
        figures["meaning"] = TRIVIAL_SCORES[name]
    description: dict[str, Any] = {
        "manifest": Path(manifest).name,
        "manifest_sha256": manifest_hash(manifest),
        "title": manifest_title(manifest),
        "splits": {name: _split(name, items, measures) for name in splits if splits[name]},
        "duplicates": _duplicates(items, measures),
        "trivial_scores": leaks,
    }
    description["warnings"] = _warnings(description, items)
    folder = Path(out).expanduser()
    parts = _parts(items, measures)
    with atomic_path(folder / "description.json") as temporary:
        temporary.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    description_page(description, parts, _examples(items), folder / "description.png")
    return description


def _measure(item: dict[str, Any]) -> Measures:
    try:
        return measure(item["image"])
    except ValueError as error:
        raise ValueError(f"{item['name']}: {error}") from error


def _scored(items: list[dict[str, Any]]) -> list[int]:
    """Images that the trivial scores are measured on: the testing split, or what has both classes."""
    testing = [i for i, item in enumerate(items) if item["split"] == "testing"]
    if len({items[i]["label"] for i in testing}) == 2:
        return testing
    return [i for i, item in enumerate(items) if item["split"] in ("validation", "testing")]


def _split(name: str, items: list[dict[str, Any]], measures: list[Measures]) -> dict[str, Any]:
    chosen = [(item, m) for item, m in zip(items, measures, strict=True) if item["split"] == name]
    members = Counter(item["group"] for item, _ in chosen)
    labels: dict[str, set[int]] = {}
    for item, _ in chosen:
        labels.setdefault(item["group"], set()).add(item["label"])
    sizes = Counter((m.rows, m.columns) for _, m in chosen)
    per_group = sorted(members.values())
    return {
        "images": len(chosen),
        "abnormal": sum(item["label"] for item, _ in chosen),
        "masks": sum("mask" in item for item, _ in chosen),
        "groups": len(members),
        "groups_with_both_classes": sum(len(found) == 2 for found in labels.values()),
        "images_per_group": [per_group[0], float(np.median(per_group)), per_group[-1]],
        "sizes": len(sizes),
        "commonest_size": [*sizes.most_common(1)[0][0], sizes.most_common(1)[0][1]],
        "channels": {str(k): n for k, n in sorted(Counter(m.channels for _, m in chosen).items())},
        "file_types": dict(sorted(Counter(Path(item["image"]).suffix.lower() for item, _ in chosen).items())),
        "mean_intensity": {
            kind: float(np.mean([m.mean for item, m in chosen if item["label"] == label]))
            for label, kind in enumerate(("normal", "abnormal"))
            if any(item["label"] == label for item, _ in chosen)
        },
    }


def _duplicates(items: list[dict[str, Any]], measures: list[Measures]) -> dict[str, Any]:
    exact = exact_duplicates([item["image"] for item in items], [m.file_bytes for m in measures])
    pairs = near_duplicates(measures)
    keys = np.array([f"{item['split']} {item['label']}" for item in items])
    names = {group: i for i, group in enumerate({item["group"] for item in items})}
    group = np.array([names[item["group"]] for item in items], np.intp)
    apart = pairs[keys[pairs[:, 0]] != keys[pairs[:, 1]]] if len(pairs) else pairs
    other = int((group[pairs[:, 0]] != group[pairs[:, 1]]).sum()) if len(pairs) else 0
    return {
        "equal_files": sum(len(members) - 1 for members in exact),
        "alike_in_different_groups": other,
        "alike_across_splits_or_labels": len(apart),
        "examples": [[items[a]["name"], items[b]["name"]] for a, b in apart[:5].tolist()],
    }


def _warnings(description: dict[str, Any], items: list[dict[str, Any]]) -> list[str]:
    found = []
    for figures in description["trivial_scores"].values():
        if figures["level"] != "none":
            what = "tells normal from abnormal" if figures["level"] == "leak" else "may tell normal from abnormal"
            interval = f"[{figures['low']:.2f}, {figures['high']:.2f}]"
            found.append(f"{figures['meaning']} {what}: AUROC {figures['auroc']:.2f} {interval}")
    groups = len({items[i]["group"] for i in _scored(items)})
    if not description["trivial_scores"]:
        found.append("no split has both normal and abnormal images: leaks cannot be measured")
    elif groups < MIN_GROUPS:
        found.append(f"only {groups} groups in the testing split: too few to warn of leaks")
    if not any(item["split"] == "training" for item in items):
        found.append("no training images")
    copies = description["duplicates"]
    if copies["alike_across_splits_or_labels"]:
        found.append(f"{copies['alike_across_splits_or_labels']} pairs look the same across splits or labels")
    if items and all(item["group"] == item["name"] for item in items):
        found.append("no groups: whether images of one patient are in two splits is unknown")
    return found


def _parts(items: list[dict[str, Any]], measures: list[Measures]) -> list[Part]:
    parts = []
    for name, split, label in _PARTS:
        chosen = [
            (item, m)
            for item, m in zip(items, measures, strict=True)
            if (item["split"], item["label"]) == (split, label)
        ]
        if not chosen:
            continue
        histogram = np.sum([m.histogram for _, m in chosen], axis=0, dtype=np.float64)
        parts.append(
            Part(
                name,
                np.array([(m.rows, m.columns) for _, m in chosen]),
                histogram / histogram.sum(),
                np.array(list(Counter(item["group"] for item, _ in chosen).values())),
                np.array([(m.mean, m.deviation) for _, m in chosen]),
            )
        )
    return parts


def _examples(items: list[dict[str, Any]]) -> list[Example]:
    """A few images of each part, from as many groups as there are, always the same ones."""
    found = []
    for name, split, label in _PARTS:
        members = [item for item in items if (item["split"], item["label"]) == (split, label)]
        shuffled = [members[i] for i in np.random.default_rng(0).permutation(len(members))]
        seen: Counter[str] = Counter()
        turns = []
        for item in shuffled:
            turns.append(seen[item["group"]])
            seen[item["group"]] += 1
        order = np.argsort(turns, kind="stable")[:_EXAMPLES]  # a second image of a group comes after all first ones
        found += [Example(name, *_picture(shuffled[i])) for i in order]
    return found


def _picture(item: dict[str, Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Thumbnail and its mask, if that is a picture too."""
    from PIL import Image

    picture, _ = grey_picture(item["image"])
    picture.thumbnail((_EDGE, _EDGE))
    mask = item.get("mask")
    if mask is None or not mask.lower().endswith((".png", ".tif", ".tiff", ".bmp")):
        return np.asarray(picture), None
    reduced = Image.fromarray(read_mask(Path(mask))).resize(picture.size, Image.Resampling.NEAREST)
    return np.asarray(picture), np.asarray(reduced, bool)
