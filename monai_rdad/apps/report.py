# SPDX-License-Identifier: Apache-2.0
"""``monai-rdad report``: the HTML report of an evaluation or of a benchmark, made anew from its folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from monai_rdad.apps.command import add_command

__all__ = ["add_parser"]


def add_parser(groups: Any) -> None:
    """Add the command."""
    report = add_command(
        groups,
        "report",
        _report,
        "make the HTML report of an evaluation or of a benchmark",
        "One HTML file that needs neither network nor other files, from what an evaluation (metrics.json, scores.csv, "
        "evaluation.json, cases/) or a benchmark (benchmark.json, results.csv and others) has left in a folder. Both "
        "write it themselves when they end; this makes it anew.",
        """
        monai-rdad report runs/mine/eval
        monai-rdad report results/chest --out chest.html
        """,
    )
    report.add_argument("folder", type=Path, help="of the evaluation or benchmark")
    report.add_argument("--out", type=Path, help="file to write; default: report.html in the folder")


def _report(arguments: argparse.Namespace) -> None:
    from monai_rdad.visualize import benchmark_report, evaluation_report

    if not arguments.folder.is_dir():
        raise NotADirectoryError(f"{arguments.folder} is no folder. Name that of an evaluation or a benchmark.")
    if arguments.out is not None and arguments.out.is_dir():
        raise IsADirectoryError(f"{arguments.out} is a folder. Give --out the name of a file.")
    benchmark = (arguments.folder / "benchmark.json").is_file()
    print((benchmark_report if benchmark else evaluation_report)(arguments.folder, arguments.out))
