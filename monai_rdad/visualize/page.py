# SPDX-License-Identifier: Apache-2.0
"""HTML pages that need no other file and no network: frame, tables, figures in words."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from string import Template

from monai_rdad.utils import atomic_path

__all__ = [
    "RESEARCH_ONLY",
    "Html",
    "Section",
    "definitions",
    "figure_grid",
    "interval",
    "figure_label",
    "metric_names",
    "number",
    "paragraph",
    "table",
    "write_page",
]

RESEARCH_ONLY = (
    "Software for research. It is not a medical device; nothing on this page may be used for diagnosis or treatment."
)

LABELS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image average precision",
    "sensitivity_at_95_specificity": "Sensitivity at 95 % specificity (oracle threshold)",
    "oracle_f1": "Image F1, oracle threshold",
    "oracle_accuracy": "Image accuracy, oracle threshold",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel average precision",
    "aupro_0.3": "AUPRO, false-positive rate up to 0.3",
    "oracle_dice": "Pixel Dice, oracle threshold",
}
"""Metrics of a page in their order; calibrated decisions come before them, others after, under their own names."""

DECISIONS = {
    "false_positive_rate_at_": "False-positive rate, calibrated for {}",
    "sensitivity_at_": "Sensitivity, calibrated for a false-positive rate of {}",
    "normal_area_at_": "Marked area of normal images, calibrated for {}",
    "dice_at_area_": "Pixel Dice of the mark calibrated for an area of {}",
}


class Html(str):
    """Text that is markup already; all other text is escaped."""

    __slots__ = ()


Section = tuple[str, str, str]
"""Identifier, heading and HTML of a part of the page."""

# The policy lets no script run but the page's own, and nothing load: not even a hostile name could change that.
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src '$script_hash'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
$style
</style>
</head>
<body>
<header>
<h1>$title</h1>
$lead
<p class="research">$research</p>
<nav aria-label="Parts of the page"><ul>$links</ul></nav>
</header>
<main>
$body
</main>
<script>$script</script>
</body>
</html>
""")


def write_page(
    path: str | os.PathLike[str], title: str, lead: str, sections: Sequence[Section], script: str = ""
) -> None:
    """Write one HTML file that needs no other.

    Args:
        path: of the file; written completely or not at all.
        title: heading, text.
        lead: HTML for below the heading.
        sections: parts of the page; those without HTML are left out.
        script: name of a file of this package with JavaScript, or "".
    """
    folder = files("monai_rdad.visualize")
    code = folder.joinpath(script).read_text(encoding="utf-8") if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    shown = [section for section in sections if section[2]]
    text = PAGE.substitute(
        title=html.escape(title),
        lead=lead,
        research=RESEARCH_ONLY,
        links="".join(f'<li><a href="#{key}">{html.escape(heading)}</a></li>' for key, heading, _ in shown),
        body="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{html.escape(heading)}</h2>\n'
            f"{content}\n</section>"
            for key, heading, content in shown
        ),
        style=folder.joinpath("page.css").read_text(encoding="utf-8"),
        script=code,
        script_hash=f"sha256-{digest}",
    )
    with atomic_path(path) as temporary:
        # a lone surrogate, from a file name that is no UTF-8, cannot be written
        temporary.write_text(text, encoding="utf-8", errors="replace")


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(kind)}>{html.escape(text)}</p>"


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, marked: int | None = None, words: int = 1
) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        head: headings, text.
        rows: cells, text or :class:`Html`.
        caption: text.
        marked: index of a row to stress.
        words: number of columns that hold words; the others, on the right, hold figures.
    """

    def cell(text: str) -> str:
        return text if isinstance(text, Html) else html.escape(text)

    def kind(column: int) -> str:
        return _class("words" if column < words else "")

    body = ""
    for i, row in enumerate(rows):
        cells = f'<th scope="row"{kind(0)}>{cell(row[0])}</th>'
        cells += "".join(f"<td{kind(k)}>{cell(text)}</td>" for k, text in enumerate(row[1:], 1))
        body += f"<tr{_class('marked' if i == marked else '')}>{cells}</tr>\n"
    titles = "".join(f'<th scope="col"{kind(k)}>{html.escape(text)}</th>' for k, text in enumerate(head))
    return (
        f'<div class="scroll" role="region" aria-label="{html.escape(caption)}" tabindex="0"><table><caption>'
        f"{html.escape(caption)}</caption><thead><tr>{titles}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def definitions(entries: Mapping[str, str]) -> str:
    """Names and values."""
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>\n" for name, value in entries.items())
    return f'<dl class="facts">{rows}</dl>'


def figure_grid(*plots: tuple[str, str]) -> str:
    """Plots beside each other where there is room: SVG and caption (text) of each; "" of none."""
    figures = "".join(
        f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>" for svg, caption in plots
    )
    return f'<div class="plots">{figures}</div>' if plots else ""


def number(value: float, digits: int = 3) -> str:
    """A figure in words, for one that is not defined as well."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "not defined"


def interval(low: float | None, high: float | None) -> str:
    """An interval in words, a dash where there is none."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    return f"{number(low)} to {number(high)}"


def figure_label(name: str) -> str:
    """A metric's name for people; that of a calibrated decision holds its nominal rate."""
    for prefix, text in DECISIONS.items():
        if name.startswith(prefix) and name not in LABELS:
            return text.format(name.removeprefix(prefix))
    return LABELS.get(name, name)


def metric_names(names: Iterable[str]) -> list[str]:
    """The metrics among the names (no counts, no ends of intervals), in the order of the page."""
    known = [n for n in names if not n.startswith("n_") and not re.search(r"_ci_(low|high)$", n)]

    def place(name: str) -> int:
        if name in LABELS:
            return 10 + list(LABELS).index(name)
        return next((i for i, prefix in enumerate(DECISIONS) if name.startswith(prefix)), 100)

    return sorted(known, key=place)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
