# SPDX-License-Identifier: Apache-2.0
"""Seeded procedural head-like MR phantoms: the data set that the package brings along.

The order of grey values is that of T1-weighted MR, with the brain at a third of the scale, so that lesions can leave it
in both directions. Sizes, pose, contrast, bias field and noise vary from subject to subject so much that a global
statistic or the nearest training picture does not tell lesioned slices from normal ones.
"""

from __future__ import annotations

import inspect
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_rdad.data.phantom_anatomy import LESION_KINDS, Array, Head, Lesion, Mask, Points, common_shape
from monai_rdad.utils import atomic_path

__all__ = ["LESION_KINDS", "phantom_dataset", "phantom_slice", "phantom_volume"]

UNIT_MM = 120.0  # of head coordinates
SLAB = (0.07, 0.25)  # z range of slices and volumes: the level of the lateral ventricles
VERSION = 1  # of the data set; to be raised when a change of the code changes pictures
SPLITS = ("training", "validation", "calibration", "testing", "volumes")  # the position is part of a sample's seed


def _scan(rng: np.random.Generator, lesion: bool, grid: Points, step: float) -> tuple[Array, Mask]:
    """Picture (values from 0 to about 1) and mask of a new subject; ``step`` is the grid's in-plane spacing."""
    head = Head(rng)
    points = head.place(grid)
    if lesion:
        focus = Lesion(rng, head, points)
        image, depth = head.render(focus.displace(points), step)
        image, mask = focus.paint(image, points, depth, head, step)
    else:
        image, _ = head.render(points, step)
        mask = np.zeros(common_shape(grid), np.uint8)
    image = np.clip(image, 0, 1) ** head.gamma * np.exp(head.bias_size * head.bias(grid))
    image = ndimage.gaussian_filter(image, (head.blur / step, head.blur / step, 0))
    noise = rng.standard_normal((2, *image.shape), np.float32) * head.noise
    return np.hypot(image + noise[0], noise[1]), mask  # magnitude of a complex signal: Rician noise


def _centres(count: int, low: float, high: float) -> Array:
    """Centres of ``count`` equal cells between ``low`` and ``high``."""
    return (low + (np.arange(count) + 0.5) * ((high - low) / count)).astype(np.float32)


def phantom_slice(rng: np.random.Generator, lesion: bool, size: int = 192) -> tuple[NDArray[np.uint8], Mask]:
    """One axial slice of a new subject.

    Args:
        rng: source of all that is random; the same state gives the same slice.
        lesion: with one lesion, of a random kind of :data:`LESION_KINDS`.
        size: edge length in pixels; the field of view is 240 mm.

    Returns:
        The picture, uint8 (size, size), rows towards posterior and columns towards the patient's left, and the mask
        of the lesion, uint8 (size, size) of 0 and 1.

    Raises:
        ValueError: ``size`` below 16.
    """
    if size < 16:
        raise ValueError(f"size is {size}, a phantom needs at least 16 pixels.")
    level = np.full((1, 1, 1), rng.uniform(*SLAB), np.float32)
    axis = _centres(size, -1, 1)
    image, mask = _scan(rng, lesion, (axis[None, :, None], axis[:, None, None], level), 2 / size)
    return np.round(np.clip(image[..., 0], 0, 1) * 255).astype(np.uint8), mask[..., 0]


def phantom_volume(
    rng: np.random.Generator, lesion: bool, shape: tuple[int, int, int] = (128, 128, 12)
) -> tuple[Array, Mask, NDArray[np.float64]]:
    """A slab of axial slices of a new subject, in the range of levels that :func:`phantom_slice` draws from.

    Args:
        rng: source of all that is random; the same state gives the same volume.
        lesion: with one lesion, of a random kind of :data:`LESION_KINDS`.
        shape: voxels towards left, anterior and superior. The longer in-plane edge spans 240 mm, voxels are square in
            the plane, the slices share 21.6 mm.

    Returns:
        The picture, float32 of ``shape``, in arbitrary units of several hundred as scanners have them; the mask, uint8
        of 0 and 1; the affine (4, 4) from voxels to millimetres in RAS+ coordinates.

    Raises:
        ValueError: fewer than 16 voxels in the plane, or no slice.
    """
    columns, rows, slices = shape
    if min(columns, rows) < 16 or slices < 1:
        raise ValueError(f"shape is {shape}, a phantom needs at least 16 x 16 x 1 voxels.")
    step = 2 / max(columns, rows)
    x, y = _centres(columns, -columns * step / 2, columns * step / 2), _centres(rows, rows * step / 2, -rows * step / 2)
    z = _centres(slices, *SLAB)
    image, mask = _scan(rng, lesion, (x[:, None, None], y[None, :, None], z[None, None, :]), step)
    # The file's axes point left, anterior, superior, as most scanners' conversions have it; RAS+ counts x to the right.
    affine = np.diag([-step * UNIT_MM, step * UNIT_MM, (SLAB[1] - SLAB[0]) * UNIT_MM / slices, 1.0])
    affine[:3, 3] = [-x[0] * UNIT_MM, -y[0] * UNIT_MM, z[0] * UNIT_MM]
    return image * np.float32(rng.uniform(500, 1200)), mask, affine


def phantom_dataset(
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    *,
    size: int = 192,
    training: int = 120,
    validation: int = 12,
    calibration: int = 40,
    testing: int = 50,
    volumes: int = 2,
) -> str:
    """Folder of a phantom data set; it is made on first use, in a few seconds, and found again afterwards.

    The folder appears with its whole content or not at all, also when two processes make it at the same time. Every
    sample has a seed of its own, made of ``seed``, split, kind and number, so another count changes no other sample.

    It holds ``manifest.json`` (decathlon form; the volumes under the key "volumes", which is no split), the slices as
    8-bit grey PNG under the split's name, ``volumes/*.nii.gz``, and under ``masks/`` a mask of the same name for every
    abnormal item (PNG 0 or 255, NIfTI 0 or 1).

    Args:
        root: folder to make it in. Default: environment variable ``MONAI_RDAD_CACHE``, else ``~/.cache/monai_rdad``.
        seed: of the whole set, not negative.
        size: edge length of the slices in pixels.
        training: number of normal slices in this split.
        validation: number of normal slices and number of abnormal slices.
        calibration: number of normal slices.
        testing: number of normal slices and number of abnormal slices.
        volumes: number of normal volumes and number of abnormal volumes.

    Returns:
        The folder: ``phantoms_v1`` inside ``root``, with a suffix where an argument differs from its default.

    Raises:
        FileExistsError: the folder is there, but is not a complete data set.
    """
    settings = {"seed": seed, "size": size, "training": training, "validation": validation}
    settings |= {"calibration": calibration, "testing": testing, "volumes": volumes}
    changes = "".join(f"_{key}{value}" for key, value in settings.items() if value != _DEFAULTS[key])
    base = Path(root or os.environ.get("MONAI_RDAD_CACHE") or Path.home() / ".cache" / "monai_rdad").expanduser()
    folder = base.absolute() / f"phantoms_v{VERSION}{changes}"
    if not (folder / "manifest.json").is_file():
        try:
            with atomic_path(folder) as temporary:
                _write_dataset(temporary, settings)
        except OSError as error:
            if (folder / "manifest.json").is_file():  # another process was faster
                return str(folder)
            if folder.exists():
                raise FileExistsError(f"{folder} is there, but holds no complete data set. Move it away.") from error
            raise
    return str(folder)


_DEFAULTS = {name: p.default for name, p in inspect.signature(phantom_dataset).parameters.items()}


def _write_dataset(folder: Path, settings: dict[str, int]) -> None:
    manifest: dict[str, Any] = {
        "name": f"monai_rdad phantoms, version {VERSION}",
        "description": "Procedural head-like MR slices and volumes with focal lesions; not images of any person",
        "licence": "Apache-2.0",
        "settings": settings,
        **{split: [] for split in SPLITS},
    }
    seeds = []
    for number, split in enumerate(SPLITS):
        (folder / split).mkdir(parents=True)
        (folder / "masks" / split).mkdir(parents=True)
        for label in (0,) if split in ("training", "calibration") else (0, 1):
            for index in range(settings[split]):
                name = f"{split}/{('normal', 'lesion')[label]}_{index:03d}"
                file = name + (".nii.gz" if split == "volumes" else ".png")
                item = {"image": file, "label": label, "group": name}
                manifest[split].append(item | {"mask": f"masks/{file}"} if label else item)
                seeds.append([settings["seed"], number, label, index])
    items = [item for split in SPLITS for item in manifest[split]]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # NumPy and the encoders leave the interpreter lock
        for _ in pool.map(lambda item, sample: _write_sample(folder, item, sample, settings["size"]), items, seeds):
            pass
    # the manifest goes last: its presence marks a complete set
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _write_sample(folder: Path, item: dict[str, Any], seed: list[int], size: int) -> None:
    rng = np.random.default_rng(seed)
    if item["image"].endswith(".png"):
        from PIL import Image

        picture, mask = phantom_slice(rng, bool(item["label"]), size)
        Image.fromarray(picture).save(folder / item["image"])
        if "mask" in item:
            Image.fromarray(mask * np.uint8(255)).save(folder / item["mask"])
        return
    import nibabel

    volume, mask, affine = phantom_volume(rng, bool(item["label"]))
    for key, array in (("image", volume), ("mask", mask)):
        if key in item:
            file = nibabel.Nifti1Image(array, affine)
            file.header.set_xyzt_units("mm")
            nibabel.save(file, folder / item[key])
