# SPDX-License-Identifier: Apache-2.0
"""Three more kinds of phantoms beside the head: what few-shot methods learn from before they meet a new organ.

They differ in what matters to a feature extractor: large smooth structures with fine lines (an eye's fundus), layers
under multiplicative speckle (ultrasound), and a texture of many small objects (a histological section).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_rdad.data.phantoms import phantom_dataset
from monai_rdad.utils import atomic_path

__all__ = ["PHANTOM_TASKS", "phantom_tasks"]

Picture = NDArray[np.float32]  # values from 0 to about 1
VERSION = 1  # to be raised when a change of the code changes pictures


def _grid(size: int) -> tuple[Picture, Picture]:
    """Rows and columns of a picture, from -1 to 1."""
    axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    return axis[:, None], axis[None, :]


def _noise(rng: np.random.Generator, size: int, width: float) -> Picture:
    """Smooth noise of unit variance; ``width`` is its correlation length as a fraction of the picture."""
    field = ndimage.gaussian_filter(rng.standard_normal((size, size), np.float32), width * size, mode="wrap")
    return field / field.std()


def _ellipse(rng: np.random.Generator, size: int, reach: float, low: float, high: float) -> Picture:
    """Squared distance from the centre of a random ellipse: below 1 inside it."""
    y, x = _grid(size)
    radius, angle = reach * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    y, x = y - radius * np.sin(angle), x - radius * np.cos(angle)
    turn, (a, b) = rng.uniform(0, np.pi), rng.uniform(low, high, 2)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return (u / a) ** 2 + (v / b) ** 2


def _fundus(rng: np.random.Generator, lesion: bool, size: int) -> tuple[Picture, NDArray[np.bool_]]:
    """Bright disc with an optic nerve head and vessels that branch from it; the lesions are deposits and bleedings."""
    y, x = _grid(size)
    disc = np.clip((0.9 - np.hypot(y, x)) * 15, 0, 1)
    picture = 0.5 - 0.15 * (x * x + y * y) + 0.03 * _noise(rng, size, 0.06)
    side = rng.choice([-1, 1])
    head_y, head_x = rng.uniform(-0.1, 0.1), side * rng.uniform(0.4, 0.5)
    vessels = np.zeros((size, size), np.float32)
    for start in rng.uniform(0, np.pi / 2) + np.arange(8) * np.pi / 4 + rng.normal(0, 0.15, 8):
        angles = start + np.cumsum(rng.normal(0, 0.05, 120)) + side * np.sin(start) * np.linspace(0, 0.8, 120)
        rows = head_y + np.cumsum(np.sin(angles)) * 0.012
        columns = head_x + np.cumsum(np.cos(angles)) * 0.012
        places = np.round((np.stack([rows, columns]) + 1) / 2 * size).astype(int)
        places = places[:, (places >= 0).all(0) & (places < size).all(0)]
        vessels[places[0], places[1]] = 1
    picture -= 0.25 * np.clip(ndimage.gaussian_filter(vessels, 0.006 * size) * 0.03 * size, 0, 1)
    picture += 0.35 * np.exp(-((y - head_y) ** 2 + (x - head_x) ** 2) / rng.uniform(0.008, 0.014))
    mask = np.zeros((size, size), bool)
    if lesion:
        mask = (_ellipse(rng, size, 0.55, 0.06, 0.16) < 1) & (_noise(rng, size, 0.012) > -0.3)
        picture += rng.choice([-0.3, 0.35]) * ndimage.gaussian_filter(mask.astype(np.float32), 0.004 * size)
    return (picture * disc).astype(np.float32), mask


def _ultrasound(rng: np.random.Generator, lesion: bool, size: int) -> tuple[Picture, NDArray[np.bool_]]:
    """Wavy layers of different echogenicity under speckle; the lesion is dark, with a brighter band below it."""
    y, x = _grid(size)
    depth = y + 0.06 * np.sin(x * rng.uniform(1, 4) + rng.uniform(0, 6)) + 0.03 * _noise(rng, size, 0.08)
    bounds = np.sort(rng.uniform(-0.8, 0.8, 4))
    values = rng.permutation([0.25, 0.4, 0.5, 0.65, 0.35])
    picture = values[np.searchsorted(bounds, depth)].astype(np.float32) * np.exp(-0.25 * (y + 1))
    mask = np.zeros((size, size), bool)
    if lesion:
        mask = _ellipse(rng, size, 0.5, 0.12, 0.3) + 0.15 * _noise(rng, size, 0.03) < 1
        below = np.cumsum(mask, 0) * ~mask
        picture = picture * (1 + 0.5 * (below > 0)) * np.where(mask, rng.uniform(0.2, 0.45), 1)
    speckle = np.hypot(*(ndimage.gaussian_filter(rng.standard_normal((size, size)), (1, 2)) for _ in range(2)))
    return (picture * (0.35 + 0.55 * speckle / speckle.mean())).astype(np.float32), mask


def _histology(rng: np.random.Generator, lesion: bool, size: int) -> tuple[Picture, NDArray[np.bool_]]:
    """Light tissue with small dark nuclei; in the lesion nuclei are larger and lie closer."""
    picture = 0.75 + 0.05 * _noise(rng, size, 0.04) + 0.03 * _noise(rng, size, 0.008)
    mask = np.zeros((size, size), bool)
    if lesion:
        mask = _ellipse(rng, size, 0.5, 0.2, 0.45) + 0.2 * _noise(rng, size, 0.04) < 1

    def nuclei(count: float, width: float) -> Picture:
        seeds = (rng.uniform(size=(size, size)) < count / size**2).astype(np.float32)
        return np.clip(ndimage.gaussian_filter(seeds, width * size) * (width * size) ** 2 * 12, 0, 1)

    density = rng.uniform(250, 450)
    picture -= 0.4 * np.where(mask, nuclei(2 * density, 0.013), nuclei(density, 0.008))
    return picture, mask


PHANTOM_TASKS: dict[str, Callable[[np.random.Generator, bool, int], tuple[Picture, NDArray[np.bool_]]]] = {
    "fundus": _fundus,
    "ultrasound": _ultrasound,
    "histology": _histology,
}


def phantom_tasks(
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    *,
    size: int = 160,
    training: int = 60,
    testing: int = 20,
) -> list[str]:
    """Manifests of four phantom data sets, one per task, as ``name=path``; made on first use, in a few seconds.

    Args:
        root: folder to make them in. Default: that of :func:`~monai_rdad.data.phantoms.phantom_dataset`.
        seed: of the sets, not negative.
        size: edge length in pixels, of all but the head.
        training: number of normal images per task, of all but the head.
        testing: number of normal images and number of abnormal images per task, of all but the head.

    Returns:
        "fundus=...", "ultrasound=...", "histology=..." and "head=...", the last one being the package's default data
        set.
    """
    head = Path(phantom_dataset(root))
    found = []
    for number, (name, draw) in enumerate(PHANTOM_TASKS.items()):
        folder = head.parent / f"phantom_{name}_v{VERSION}_seed{seed}_size{size}_training{training}_testing{testing}"
        if not (folder / "manifest.json").is_file():
            try:
                with atomic_path(folder) as temporary:
                    _write(temporary, draw, [seed, number], size, {"training": training, "testing": testing})
            except OSError as error:
                if not (folder / "manifest.json").is_file():  # else another process was faster
                    raise FileExistsError(f"{folder} cannot be made ({error}). Move away what is there.") from error
        found.append(f"{name}={folder / 'manifest.json'}")
    return [*found, f"head={head / 'manifest.json'}"]


def _write(folder: Path, draw: Callable[..., Any], seed: list[int], size: int, counts: dict[str, int]) -> None:
    from PIL import Image

    manifest: dict[str, Any] = {"description": "procedural phantoms, not images of any person", "licence": "Apache-2.0"}
    for number, (split, count) in enumerate(counts.items()):
        (folder / split).mkdir(parents=True)
        manifest[split] = []
        for label in (0,) if split == "training" else (0, 1):
            for index in range(count):
                picture, mask = draw(np.random.default_rng([*seed, number, label, index]), bool(label), size)
                name = f"{split}/{('normal', 'lesion')[label]}_{index:03d}"
                item: dict[str, Any] = {"image": f"{name}.png", "label": label, "group": name}
                Image.fromarray(np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)).save(folder / item["image"])
                if label:
                    item["mask"] = f"{name}_mask.png"
                    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / item["mask"])
                manifest[split].append(item)
    # the manifest goes last: its presence marks a complete set
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
