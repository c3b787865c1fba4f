# SPDX-License-Identifier: Apache-2.0
"""How a group of commands joins the command line; standard library only."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from typing import Any

from monai_rdad.utils import root_cause

__all__ = ["Run", "add_command", "add_group", "describe_error"]

Run = Callable[[argparse.Namespace], int | None]


def add_group(groups: Any, name: str, help_text: str) -> Any:
    """Add a group of commands (``monai-rdad <name> <command>``) to the parser.

    Args:
        groups: what ``add_subparsers`` of the parser gave.
        name: of the group.
        help_text: one line.

    Returns:
        what :func:`add_command` adds commands to.
    """
    group = groups.add_parser(name, help=help_text, description=help_text)
    return group.add_subparsers(dest="command", metavar="COMMAND", required=True)


def add_command(commands: Any, name: str, run: Run, help_text: str) -> argparse.ArgumentParser:
    """Add a command, with the option that all commands have.

    Args:
        commands: what :func:`add_group` or ``add_subparsers`` of the parser gave.
        name: of the command.
        run: gets the parsed arguments; returns an exit code, None for 0. It imports what it needs when it runs.
        help_text: one line.

    Returns:
        the command's parser, for its arguments.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    parser.set_defaults(run=run)
    return parser


def describe_error(error: BaseException) -> str:
    """An error in one line: what is wrong, not where. Kinds that no user can cause are named."""
    # An error of this package says what its cause means; the wrappers of MONAI only say where they were.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = str(frames[-1].f_globals.get("__name__", "")).startswith("monai_rdad.") if frames else False
    cause = error if own else root_cause(error)
    expected = isinstance(cause, (ValueError, OSError, ImportError))
    kind = "" if expected else f"{type(cause).__name__}: "
    hint = "" if expected else " (--debug shows where)"
    return kind + " ".join(str(cause).replace("\n  - ", " | ").split()) + hint
