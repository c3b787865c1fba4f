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
from monai_rdad.apps.command import describe_error

__all__ = ["GROUPS", "main"]

GROUPS = ("manifest", "benchmark", "label")
"""Modules of ``monai_rdad.apps`` with commands, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: default: those of the process.

    Returns:
        exit code: 0, 1 for an error, 130 when interrupted. Wrong arguments exit with 2, as argparse does.
    """
    parser = argparse.ArgumentParser("monai-rdad", description="Anomaly detection in medical images.")
    parser.add_argument("--version", action="version", version=monai_rdad.__version__)
    groups = parser.add_subparsers(dest="group", metavar="GROUP", required=True)
    for name in GROUPS:
        import_module(f"monai_rdad.apps.{name}").add_parser(groups)
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
