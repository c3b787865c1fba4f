# SPDX-License-Identifier: Apache-2.0
"""What the builders of all data sets share: the raw folder, the records that they yield, the list of builders."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rdad.data.manifest import ManifestError
from monai_rdad.formats import PICTURE_SUFFIXES

__all__ = ["Builder", "Record", "Source", "builder", "builder_options", "find_builder", "set_names"]

Pixels = NDArray[np.uint8]
_DEPTH = 3  # folders below the raw one that are searched: archives nest
_MODULES = ("brain", "chest", "fundus", "oct", "other", "packaged")


@dataclass(slots=True)
class Record:
    """One image of a download.

    Attributes:
        name: unique in the set, without suffix; files that are made get it.
        label: 0 normal, 1 abnormal.
        kind: class as the authors call it.
        image: file of the download; None where ``pixels`` make the image.
        group: patient, lesion, scan or slide, "" where the download does not tell.
        split: the authors' split, "" where they publish none.
        mask: file of the download.
        pixels: image to be written as PNG, (H, W) or (H, W, 3), or a function that makes it.
        mask_pixels: mask to be written as PNG, (H, W), not 0 on the lesion, or a function that makes it.
    """

    name: str
    label: int
    kind: str
    image: Path | None = None
    group: str = ""
    split: str = ""
    mask: Path | None = None
    pixels: Pixels | Callable[[], Pixels] | None = None
    mask_pixels: Pixels | Callable[[], Pixels] | None = None


Builder = Callable[..., Iterator[Record]]
_BUILDERS: dict[str, Builder] = {}


def builder(name: str) -> Callable[[Builder], Builder]:
    """Register a function ``(source, **options) -> iterator of Record`` as the builder of a data set."""

    def register(function: Builder) -> Builder:
        _BUILDERS[name] = function
        return function

    return register


def set_names() -> list[str]:
    """Names of all data sets, sorted."""
    for module in _MODULES:
        import_module(f"monai_rdad.data.sets.{module}")
    return sorted(_BUILDERS)


def find_builder(name: str) -> Builder:
    """The builder of a data set.

    Raises:
        ManifestError: there is none of this name; lists those that are.
    """
    names = set_names()
    if name not in names:
        raise ManifestError(f"'{name}' is no known data set. Known: {', '.join(names)}.")
    return _BUILDERS[name]


def builder_options(name: str) -> dict[str, Any]:
    """Options of a data set's builder with their defaults."""
    parameters = list(inspect.signature(find_builder(name)).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


@dataclass
class Source:
    """The folder of a download, as unpacked.

    Attributes:
        raw: the folder.
        problems: "file: what is wrong" of broken or missing files that a builder came across; these items are left out.
        notes: what a user should know of this download besides.
    """

    raw: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def broken(self, path: Path | str, why: str) -> None:
        """Note that a file cannot be used."""
        name = path.relative_to(self.raw).as_posix() if isinstance(path, Path) else path
        self.problems.append(f"{name}: {why}")

    def note(self, text: str) -> None:
        """Note something that the user should know."""
        self.notes.append(text)

    def find(self, *names: str, optional: bool = False) -> Path:
        """The folder that holds all of these files and folders; the uppermost where archives nest.

        Names match without regard to case and outer blanks, as some archives have "OCT2017 " or "Ground truth". Copies
        deeper down (some archives hold themselves once more) are left alone, with a note.

        Args:
            names: of files or folders.
            optional: return a path that does not exist rather than raise.

        Raises:
            ManifestError: no such folder.
        """
        wanted = {name.lower() for name in names}
        level, found = [self.raw], []
        for _ in range(_DEPTH + 1):
            below: list[Path] = []
            for folder in level:
                children = sorted(child for child in folder.iterdir() if _visible(child))
                if wanted <= {child.name.strip().lower() for child in children}:
                    found.append(folder)
                below += [child for child in children if child.is_dir()]
            level = below
        if not found:
            if optional:
                return self.raw / "missing"
            shown = " and ".join(f"'{name}'" for name in names)
            raise ManifestError(
                f"{self.raw}: no folder in it holds {shown}. Unpack the download there; "
                "docs/datasets.md says what it must hold."
            )
        for copy in found[1:]:
            self.note(
                f"{copy.relative_to(self.raw)} holds the same names as the folder that was read; it was left alone."
            )
        return found[0]

    def child(self, folder: Path, name: str) -> Path:
        """A file or folder directly in a folder, without regard to case and outer blanks; it need not exist."""
        if folder.is_dir():
            for entry in folder.iterdir():
                if entry.name.strip().lower() == name.lower():
                    return entry
        return folder / name

    def images(self, folder: Path, suffixes: Sequence[str] = PICTURE_SUFFIXES, deep: bool = False) -> list[Path]:
        """Sorted image files of a folder; hidden ones ("._x.png" of macOS) are passed over."""
        if not folder.is_dir():
            return []
        entries = folder.rglob("*") if deep else folder.iterdir()
        return sorted(e for e in entries if e.name.lower().endswith(tuple(suffixes)) and _visible(e))

    def table(self, path: Path, *columns: str) -> list[dict[str, str]]:
        """Rows of a CSV file, names and values without outer blanks.

        Args:
            path: of the file, in UTF-8 with or without a byte order mark, commas or tabulators.
            columns: that must be there.

        Raises:
            ManifestError: no such file, or a column is missing.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path}: cannot be read ({error}). It belongs to the download.") from error
        first = text.partition("\n")[0]
        reader = csv.reader(text.splitlines(), delimiter="\t" if "\t" in first else ",")
        header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in columns if name not in header]:
            raise ManifestError(
                f"{path}: no column {', '.join(missing)} among {', '.join(header)}. Is it the right file?"
            )
        return [dict(zip(header, (value.strip() for value in row), strict=False)) for row in reader if row]


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"
