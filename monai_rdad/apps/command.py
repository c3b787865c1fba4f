# SPDX-License-Identifier: Apache-2.0
"""How a group of commands joins the command line; standard library only."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from textwrap import dedent, indent
from typing import Any

from monai_rdad.utils import root_cause

__all__ = ["Help", "Run", "add_command", "add_group", "describe_error"]

_EXAMPLES = "examples:"

Run = Callable[[argparse.Namespace], int | None]


class Help(argparse.HelpFormatter):
    """Wraps paragraphs one by one and leaves the lines of examples as they are."""

    def __init__(self, prog: str, max_help_position: int = 26, **options: Any) -> None:
        super().__init__(prog, max_help_position=max_help_position, **options)

    def add_argument(self, action: argparse.Action) -> None:
        """As in argparse, which forgets that commands are indented once more."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return text
        return "\n\n".join(super(Help, self)._fill_text(part, width, indent) for part in text.split("\n\n"))


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


def add_command(
    commands: Any, name: str, run: Run, help_text: str, details: str = "", examples: str = ""
) -> argparse.ArgumentParser:
    """Add a command, with the option that all commands have.

    Args:
        commands: what :func:`add_group` or ``add_subparsers`` of the parser gave.
        name: of the command.
        run: gets the parsed arguments; returns an exit code, None for 0. It imports what it needs when it runs.
        help_text: one line.
        details: paragraphs that follow it in the command's own help, wrapped there.
        examples: lines for the end of the command's own help.

    Returns:
        the command's parser, for its arguments.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_text,
        description="\n\n".join(filter(None, (help_text[0].upper() + help_text[1:] + ".", dedent(details).strip()))),
        epilog=f"{_EXAMPLES}\n{indent(dedent(examples).strip(), '  ')}" if examples else None,
        formatter_class=Help,
    )
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
