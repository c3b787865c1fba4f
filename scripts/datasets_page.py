# SPDX-License-Identifier: Apache-2.0
"""Writes docs/datasets.md from data_manifests/*.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_rdad.data.sets import builder_options, card, set_names

PAGE = Path(__file__).resolve().parents[1] / "docs" / "datasets.md"

HEAD = """# Public data sets

`monai-rdad manifest build` makes a manifest of each of these sets from its download, as it unpacks;
[data.md](data.md#public-data-sets) says how, and what it leaves out. No image is part of this project, and none is
downloaded. `data_manifests/<name>.json` holds what is known of a set: source, licence, citation, classes, split rule,
expected numbers; what could not be checked against its source is listed there as `unverified`.
**Read the licence at the source before you use a set.** Not for clinical use.

This page is written by `python scripts/datasets_page.py`.

| set | what | papers | licence | command |
|---|---|---|---|---|
"""


def row(about: dict[str, Any]) -> str:
    """Line of a set in the table."""
    name, papers = about["name"], ", ".join(about["used_by"]) or "–"
    what = f"[{about['title']}](#{name})<br>{about['modality']}; {about['organ']}"
    return f"| {name} | {what} | {papers} | {about['licence']} | `monai-rdad manifest build {name} --raw FOLDER` |"


def section(about: dict[str, Any]) -> str:
    """What to know of a set before building."""
    counts = ", ".join(f"{kind} {number}" for kind, number in about["counts"]["classes"].items())
    certain = "" if about["counts"]["verified"] or not counts else " (not verified: a difference is a warning only)"
    note = f"; {about['counts']['note']}" if about["counts"]["note"] else ""
    options = ", ".join(
        f"`{key}={str(value).lower() if isinstance(value, bool) else value}`"
        for key, value in builder_options(about["name"]).items()
    )
    lines = [
        f"\n## {about['name']}\n",
        f"{about['title']}. {about['modality']}. Source: {about['source']}.\n",
        f"- Holds: {'; '.join(f'`{entry}`' for entry in about['layout'])}",
        f"- Normal: {', '.join(about['normal']) or 'none'}. Abnormal: {', '.join(about['abnormal'])}. "
        f"Group: {about['group']}.",
        f"- Split: {about['split_rule']}",
        f"- Images: {counts or 'no numbers by class'}{certain}{note}",
    ]
    if options:
        lines.append(f"- Options (`--set KEY=VALUE`): {options}")
    lines.append("- Known problems:")
    lines += [f"  - {problem}" for problem in about["known_problems"]]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    cards = [card(name) for name in set_names()]
    return HEAD + "\n".join(map(row, cards)) + "\n" + "".join(map(section, cards))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
