# SPDX-License-Identifier: Apache-2.0
"""Small helpers that every layer may use; standard library only."""

from __future__ import annotations

import csv
import hashlib
import os
import shlex
import shutil
import site
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = [
    "atomic_path",
    "command_line",
    "file_sha256",
    "installed_folder",
    "one_of",
    "root_cause",
    "shell_words",
    "show_root_cause",
    "write_csv",
]


def command_line() -> str:
    """The command that started this process, to be pasted into a shell."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = Path(sys.argv[0])
    if spec is not None:
        start = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        start = ["python", str(program)] if program.suffix == ".py" else [program.name]
    return shell_words([*start, *sys.argv[1:]])


def shell_words(words: Sequence[str]) -> str:
    """Words as one command line, in double quotes where that is enough: lists of file names have single ones."""
    shown = []
    for word in words:
        quoted = shlex.quote(word)
        shown.append(f'"{word}"' if quoted != word and "'" in word and not set(word) & set('"$`\\!') else quoted)
    return " ".join(shown)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def installed_folder(name: str) -> Path:
    """A folder that belongs to the package without being Python: ``bundles`` or ``data_manifests``.

    Args:
        name: of the folder.

    Returns:
        that of the repository, where the package runs from one; else the installed one, ``share/monai_rdad/<name>`` of
        the environment or, after ``pip install --user``, of the user. Whether it exists is not checked.
    """
    beside = Path(__file__).resolve().parents[1] / name
    if beside.is_dir():
        return beside
    installed = [Path(base) / "share" / "monai_rdad" / name for base in (sys.prefix, site.getuserbase())]
    return next((folder for folder in installed if folder.is_dir()), installed[0])


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """The value of an argument that has to be one of several.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"Unknown {name} '{value}'. Choose one of: {', '.join(choices)}.")
    return value


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` when the block ends well.

    Readers therefore see the old file, or none, or the complete new one. The temporary name keeps every suffix of
    ``path`` (``.nii.gz``, ``.png``), because writers choose their format by it, and lies in the same folder, because
    a rename is atomic only inside one file system.

    Args:
        path: file to write, or folder to make. Missing parent folders are made. An existing file is replaced; a
            folder replaces only an empty one.

    Yields:
        The name to write to. Nothing of that name exists yet.

    Raises:
        FileNotFoundError: the block ended without error and wrote nothing to the yielded name.
        OSError: the folder cannot be made or written to. Whatever the block raises comes through unchanged; in every
            case of an error the temporary file is removed and ``path`` is as it was before.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A private folder rather than a private file: the writer creates the file itself, so that it gets the usual
    # permissions (mkstemp would leave 0600) and side files of a writer are cleaned up with it.
    folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    temporary = folder / target.name
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {target}: the writer left {temporary.name} out")
        os.replace(temporary, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_csv(path: str | os.PathLike[str], fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with a header as UTF-8, complete or not at all.

    Args:
        path: file to write.
        fields: names of the columns.
        rows: values in the order of the columns.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(fields)
        writer.writerows(rows)


def show_root_cause() -> None:
    """End the message of an uncaught exception with the error that started it.

    MONAI wraps an error once per layer that it passes through (config expression, transform, data set), so that the
    last line of a long traceback names a layer. After this call the line that says what is wrong comes last.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        cause = root_cause(error)
        if cause is not error:
            print(f"\nError: {cause}", file=sys.stderr)

    sys.excepthook = hook


def root_cause(error: BaseException) -> BaseException:
    """The innermost of the chained exceptions that this package raised itself; failing that, the innermost at all."""
    chain = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(earlier)
    for link in reversed(chain):
        frames = [frame for frame, _ in traceback.walk_tb(link.__traceback__)]
        if frames and str(frames[-1].f_globals.get("__name__", "")).split(".")[0] == "monai_rdad":
            return link
    return chain[-1]
