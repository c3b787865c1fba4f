# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from monai_rdad.utils import atomic_path, command_line, root_cause, shell_words, write_csv


@pytest.mark.parametrize("name", ["scores.csv", "map.nii.gz", "overlay.png", "plain"])
def test_writes_and_keeps_suffix(tmp_path: Path, name: str) -> None:
    target = tmp_path / "new" / "folder" / name
    with atomic_path(target) as temporary:
        assert not temporary.exists()
        assert not target.exists()
        assert temporary.suffixes == target.suffixes
        assert temporary.parent.stat().st_dev == target.parent.stat().st_dev
        temporary.write_text("done")
        assert not target.exists()
    assert target.read_text() == "done"
    assert list(target.parent.iterdir()) == [target]


def test_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            temporary.with_name("side.file").write_text("of the writer")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_replaces(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    target.write_text("old")
    with atomic_path(os.fspath(target)) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "data") as temporary:
        (temporary / "training").mkdir(parents=True)
        (temporary / "training" / "0.png").write_text("x")
    assert (tmp_path / "data" / "training" / "0.png").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"map\.png"), atomic_path(tmp_path / "map.png"):
        pass
    assert not list(tmp_path.iterdir())


def test_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic_path(tmp_path / "atomic") as temporary:
        temporary.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def _raise_in_package() -> None:
    from monai_rdad.networks.encoders import ResNetEncoder

    ResNetEncoder("vgg")


def _wrap(call: Callable[[], object]) -> None:
    try:
        call()
    except ValueError as inner:
        raise RuntimeError("applying transform") from inner


def test_root_cause_is_the_innermost_error_of_this_package() -> None:
    with pytest.raises(RuntimeError) as caught:
        _wrap(_raise_in_package)
    assert "Unknown encoder 'vgg'" in str(root_cause(caught.value))


def test_root_cause_falls_back_to_the_innermost_error_at_all() -> None:
    with pytest.raises(RuntimeError) as caught:
        _wrap(lambda: int("x"))
    assert isinstance(root_cause(caught.value), ValueError)


def test_write_csv(tmp_path):
    write_csv(tmp_path / "new" / "t.csv", ("name", "value"), [("ä, b", 0.1), ("c", "")])
    assert (tmp_path / "new" / "t.csv").read_bytes() == 'name,value\n"ä, b",0.1\nc,\n'.encode()
    with pytest.raises(ZeroDivisionError):
        write_csv(tmp_path / "new" / "t.csv", ("x",), ((1 / x,) for x in (1, 0)))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["t.csv"]
    assert (tmp_path / "new" / "t.csv").read_text(encoding="utf-8").startswith("name")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a", "--x", "1"], "a --x 1"),
        (["['b/c.yaml','d e.yaml']"], "\"['b/c.yaml','d e.yaml']\""),
        (["$torch.device('cpu')", "a b"], None),
        (["", "'", '"', "\\", "!", "`x`"], None),
    ],
)
def test_shell_words_survive_the_shell(words: list[str], line: str | None) -> None:
    import shlex

    assert shlex.split(shell_words(words)) == words
    assert line is None or shell_words(words) == line


@pytest.mark.parametrize(
    ("spec", "program", "line"),
    [
        ("monai.bundle.__main__", "/x/monai/bundle/__main__.py", "python -m monai.bundle run training"),
        (None, "/x/bin/monai-rdad", "monai-rdad run training"),
        (None, "scripts/study.py", "python scripts/study.py run training"),
    ],
)
def test_command_line(monkeypatch: pytest.MonkeyPatch, spec: str | None, program: str, line: str) -> None:
    from importlib.machinery import ModuleSpec

    monkeypatch.setattr("__main__.__spec__", ModuleSpec(spec, None) if spec else None)
    monkeypatch.setattr("sys.argv", [program, "run", "training"])
    assert command_line() == line
