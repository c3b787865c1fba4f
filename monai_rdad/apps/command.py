# SPDX-License-Identifier: Apache-2.0
"""How a group of commands joins the command line; standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

__all__ = ["Run", "add_command", "add_group"]

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
