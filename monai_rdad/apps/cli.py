# SPDX-License-Identifier: Apache-2.0
"""The command ``monai-rdad``.

Each group of commands is a module of this package with a function ``add_parser(groups)``; :data:`GROUPS` names them.
Such a module imports nothing heavy before one of its commands runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import monai_rdad
from monai_rdad.apps.command import Help, describe_error

__all__ = ["GROUPS", "build_parser", "main"]

GROUPS = ("methods", "check", "benchmark", "report", "export", "label", "manifest", "completion")
"""Modules of ``monai_rdad.apps`` with commands, in the order of the help."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        "monai-rdad",
        description="Anomaly detection in medical images: methods that learn from normal images only.",
        epilog="monai-rdad COMMAND --help has each command's options and examples.",
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=monai_rdad.__version__)
    groups = parser.add_subparsers(dest="group", title="commands", metavar="COMMAND", required=True)
    for name in GROUPS:
        import_module(f"monai_rdad.apps.{name}").add_parser(groups)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: default: those of the process.

    Returns:
        exit code: 0, 1 for an error, 130 when interrupted. Wrong arguments exit with 2, as argparse does.
    """
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    try:
        return parsed.run(parsed) or 0
    except KeyboardInterrupt:
        print("monai-rdad: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if parsed.debug:
            raise
        print(f"monai-rdad: {describe_error(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
