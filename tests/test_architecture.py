# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for the package as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import monai_rdad

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for folder in ("monai_rdad", "tests", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
HEAVY = ("torch", "monai", "numpy", "scipy", "ignite", "mlflow", "matplotlib", "sklearn", "skimage", "itk", "SimpleITK")


def _modules_after(statement: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a fresh interpreter that ran the statement."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_layers() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_package_import_is_light() -> None:
    loaded = _modules_after("import monai_rdad")
    assert "monai_rdad" in loaded
    assert not loaded.intersection(HEAVY)


def test_version_matches_changelog() -> None:
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == monai_rdad.__version__


def test_lock_satisfies_setup_cfg() -> None:
    """Every dependency of setup.cfg and of the extras ``dev`` and ``onnx`` is pinned, inside its range."""
    import configparser

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    wanted = config["options"]["install_requires"] + extras["dev"] + extras["onnx"]
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for line in filter(None, wanted.splitlines()):
        requirement = Requirement(line)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is missing in requirements.lock"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow the pinned {pin}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_source_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), "the licence line is missing"
    assert len(text.splitlines()) <= 400, "too long: split it"
