# SPDX-License-Identifier: Apache-2.0
"""Cases of an evaluation as HTML: image, map, mask and overlay, to be sorted, filtered and enlarged."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monai_rdad.visualize.overlay import colorize, overlay, to_rgb
from monai_rdad.visualize.sheet import Case

__all__ = ["CaseText", "card", "color_bar", "controls"]

QUALITY = 90  # of the JPEG pictures
TOLERANCE = 0.4  # pixels that an outline may deviate when it is simplified


class CaseText(NamedTuple):
    """What a card says and is sorted by.

    Attributes:
        error: how wrong the case is; higher is worse.
        p_value: or None.
        called: whether it is called abnormal, None without calibration.
        rank: words on its place among the images of the other class.
    """

    error: float
    p_value: float | None
    called: bool | None
    rank: str


def controls(calibrated: bool) -> str:
    """Choice of order and filter, and the dialog that shows a case large; hidden until the script runs."""
    orders = [
        ("error:-1", "worst errors first"),
        ("score:-1", "highest score first"),
        ("score:1", "lowest score first"),
    ]
    filters = [("all", "all"), ("0", "normal"), ("1", "abnormal")]
    if calibrated:
        orders.append(("p:1", "smallest p-value first"))
        filters += [("fp", "false positives"), ("fn", "false negatives")]
    orders.append(("name:1", "name"))

    def choice(key: str, text: str, options: Sequence[tuple[str, str]]) -> str:
        entries = "".join(f'<option value="{value}">{shown}</option>' for value, shown in options)
        return f'<label>{text} <select id="{key}" autocomplete="off">{entries}</select></label>'

    buttons = "".join(
        f'<button type="button" class="{key}">{text}</button>'
        for key, text in (("previous", "← Previous"), ("next", "Next →"), ("close", "Close"))
    )
    return (
        f'<div class="controls" id="controls" hidden>{choice("sort", "Order", orders)}'
        f'{choice("filter", "Show", filters)}<span id="status" role="status"></span></div>'
        f'<dialog id="enlarged" aria-labelledby="enlarged-name"><div class="bar"><span></span>{buttons}</div>'
        '<div class="stage"></div></dialog>'
    )


def color_bar(vmin: float, vmax: float) -> str:
    """The scale of the maps."""
    bar = colorize(np.linspace(vmin, vmax, 256)[None].repeat(4, 0), vmin, vmax)
    return (
        f'<div class="scale"><img alt="Colours of the anomaly maps, from black over purple and orange to light yellow" '
        f'src="{_data(bar, "PNG")}"><span>{vmin:.3g} and below</span><span>{vmax:.3g} and above</span></div>'
    )


def card(number: int, case: Case, text: CaseText, vmin: float, vmax: float, masks: bool) -> str:
    """One case as an ``<article>``.

    Args:
        number: of the card on the page.
        case: its pictures.
        text: what it says.
        vmin: value of the maps that is black.
        vmax: value of the maps that is brightest.
        masks: whether to keep a place for the mask.
    """
    name = html.escape(case.name)
    wrong = text.called is not None and text.called != bool(case.label)
    outcome = ("fn" if case.label else "fp") if wrong else ""
    truth = "abnormal" if case.label else "normal"
    badges = f'<span class="badge {truth}">{truth}</span>'
    if text.called is not None:
        words = {"fp": "false positive", "fn": "false negative: missed", "": f"called {truth}"}[outcome]
        badges += f'<span class="badge {"wrong" if wrong else "right"}">{words}</span>'
    facts = [f"score {case.score:.4g}"]
    if text.p_value is not None:
        facts.append(f"p-value {text.p_value:.3g}")
    facts.append(text.rank)
    if case.slice is not None:
        facts.append(f"slice {case.slice[0] + 1} of {case.slice[1]}, the most anomalous")
    lesion = None if case.mask is None else outline(case.mask == 1)
    traced = "" if not lesion else f'<path class="halo" d="{lesion}"/><path class="lesion" d="{lesion}"/>'
    found = "" if case.outlined is None else outline(case.anomaly_map >= case.outlined)
    marked = found and f'<path class="halo" d="{found}"/><path class="marked" d="{found}"/>'
    height, width = case.anomaly_map.shape
    size = (height, width)
    panels = _picture(to_rgb(case.image), "", size, f"Image {name}", "image")
    panels += _picture(colorize(case.anomaly_map, vmin, vmax), marked, size, f"Anomaly map of {name}", "map")
    if masks:
        panels += _mask(case, lesion, size, name)
    both = overlay(case.image, case.anomaly_map, vmin, vmax)
    panels += _picture(both, traced, size, f"Anomaly map over the image {name}", "overlay")
    # all digits, because cards are sorted by them
    data = f'data-label="{case.label}" data-outcome="{outcome}" data-score="{case.score!r}" data-error="{text.error!r}"'
    data += f' data-p="{"" if text.p_value is None else repr(text.p_value)}" data-name="{name}"'
    return (
        f'<article class="case" id="case-{number}" {data}>\n<h3>{name}</h3>\n<p>{badges}</p>\n'
        f'<div class="panels">{panels}</div>\n<p>{html.escape(", ".join(facts))}</p>\n'
        f'<button type="button" class="open" aria-haspopup="dialog" aria-label="Enlarge {name}" hidden>Enlarge'
        "</button>\n</article>"
    )


def outline(region: NDArray[np.bool_]) -> str:
    """Border of a region (H, W) as an SVG path in pixels, "" if there is none; closed, also at the image's edge."""
    from skimage.measure import approximate_polygon, find_contours

    path = ""
    for contour in find_contours(np.pad(region, 1).astype(np.float32), 0.5):
        points = approximate_polygon(contour, TOLERANCE) - 0.5  # less the padding, and from centres to corners
        steps = " ".join(f"{x:.1f},{y:.1f}" for y, x in points[:-1])
        path += f"M{steps}Z"
    return path


def _picture(pixels: NDArray[np.uint8], paths: str, size: tuple[int, int], alt: str, caption: str) -> str:
    lines = f'<svg viewBox="0 0 {size[1]} {size[0]}" aria-hidden="true">{paths}</svg>' if paths else ""
    return (
        f'<figure><span class="stack"><img alt="{alt}" width="{size[1]}" height="{size[0]}" decoding="async" '
        f'src="{_data(pixels, "JPEG")}">{lines}</span><figcaption>{caption}</figcaption></figure>'
    )


def _mask(case: Case, lesion: str | None, size: tuple[int, int], name: str) -> str:
    """The true lesion, white on black; parts that nobody has judged are grey."""
    box = f'style="aspect-ratio: {size[1]} / {size[0]}"'
    if case.label == 0 or case.mask is None:
        words = "no mask" if case.label else "normal: no lesion"
        return f'<figure><span class="stack none" {box}>{words}</span><figcaption>true lesion</figcaption></figure>'
    unknown = outline(case.mask == 255)
    shapes = f'<path class="unknown" fill-rule="evenodd" d="{unknown}"/>' if unknown else ""
    shapes += f'<path class="fill" fill-rule="evenodd" d="{lesion}"/>' if lesion else ""
    label = f"True lesion of {name}" if lesion else f"No lesion marked in this picture of {name}"
    picture = f'<svg viewBox="0 0 {size[1]} {size[0]}" role="img" aria-label="{label}">{shapes}</svg>'
    caption = f"true lesion{'' if lesion else ': none here'}"
    return f'<figure><span class="stack mask" {box}>{picture}</span><figcaption>{caption}</figcaption></figure>'


def _data(pixels: NDArray[np.uint8], kind: str) -> str:
    from PIL import Image

    picture: Any = Image.fromarray(pixels)
    if kind == "JPEG" and (np.ptp(pixels, axis=2) == 0).all():
        picture = picture.convert("L")
    buffer = io.BytesIO()
    options = {"quality": QUALITY, "optimize": True}
    if picture.mode == "RGB":
        options["subsampling"] = 0  # coloured borders stay sharp
    picture.save(buffer, format=kind, **(options if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
