# SPDX-License-Identifier: Apache-2.0
"""``monai-rdad completion``: a script that lets the shell complete commands, methods, options and paths."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_rdad.apps.bundle import method_names
from monai_rdad.apps.command import add_command

__all__ = ["add_parser", "completion_script"]

_SHELLS = ("bash", "zsh", "fish")


def add_parser(groups: Any) -> None:
    """Add the command."""
    parser = add_command(
        groups,
        "completion",
        _completion,
        "print a script with which the shell completes this command",
        "The script is static: it costs nothing when a shell starts, and is to be made anew after an update.",
        """
        monai-rdad completion bash > ~/.local/share/bash-completion/completions/monai-rdad
        monai-rdad completion zsh > ~/.zfunc/_monai-rdad    # with fpath+=~/.zfunc before compinit in ~/.zshrc
        monai-rdad completion fish > ~/.config/fish/completions/monai-rdad.fish
        """,
    )
    parser.add_argument("shell", choices=_SHELLS)


def _completion(arguments: argparse.Namespace) -> None:
    print(completion_script(arguments.shell))


def completion_script(shell: str) -> str:
    """The script for a shell.

    What an argument takes is told by its metavar (METHOD, FOLDER, FILE, INPUT, WEIGHTS) and, without one, by its type:
    paths are completed as files.

    Args:
        shell: "bash", "zsh" or "fish".
    """
    import shtab

    from monai_rdad.apps.cli import build_parser

    methods, weights = " ".join(method_names()), "embedded imagenet dinov2 none"
    words = {
        # in bash names and paths; the others take one of both
        "METHOD": {
            "bash": "_monai_rdad_method",
            "zsh": f"({methods})",
            "fish": methods,
        },
        "WEIGHTS": {
            "bash": "_monai_rdad_weights",
            "zsh": shtab.FILE["zsh"],
            "fish": shtab.FILE["fish"],
        },
    }
    preamble = {
        "bash": f"""
_monai_rdad_method() {{
    compgen -W "{methods}" -- "$1"
    [[ $1 == [./~]* || $1 == */* ]] && compgen -d -- "$1"
}}
_monai_rdad_weights() {{
    compgen -W "{weights}" -- "$1"
    compgen -f -- "$1"
}}
"""
    }
    parser = build_parser()
    for action in _actions(parser):
        name = action.metavar if isinstance(action.metavar, str) else ""
        if name in words:
            action.complete = words[name]  # type: ignore[attr-defined]
        elif name == "FOLDER":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif name in ("FILE", "INPUT") or action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell, preamble=preamble.get(shell, "")))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of a parser and all its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
