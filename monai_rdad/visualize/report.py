# SPDX-License-Identifier: Apache-2.0
"""The page of one evaluation, made from the files in its folder."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_rdad.metrics import bootstrap_curve_bands, misordered, score_histograms
from monai_rdad.metrics.curves import precision_recall, roc
from monai_rdad.utils import file_sha256
from monai_rdad.visualize import gallery
from monai_rdad.visualize.decisions import decisions
from monai_rdad.visualize.page import (
    Html,
    Section,
    definitions,
    figure_grid,
    figure_label,
    interval,
    metric_names,
    number,
    paragraph,
    table,
    write_page,
)
from monai_rdad.visualize.plots import curve_plot, histogram_plot
from monai_rdad.visualize.record import CALIBRATION, RECORD, Record, Score, errors, order, read_record

__all__ = ["REPORT", "evaluation_report"]

REPORT = "report.html"
PICTURE_BYTES = 8_500_000  # of all cases together, so that a page stays below 10 MB
PIXEL = ("pixel", "aupro", "oracle_dice", "dice_at_area_")


def evaluation_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the HTML report of an evaluation: figures, curves, decisions, cases, provenance, in one file.

    Args:
        folder: what :class:`~monai_rdad.visualize.EvaluationReport` left, see :mod:`monai_rdad.visualize.record`.
        out: file to write; default: report.html in the folder.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: no evaluation has left its files there.
        ValueError: a file is broken.
    """
    record = read_record(folder)
    path = Path(out) if out is not None else record.folder / REPORT
    calibrated = record.calibration is not None
    cases = _cases(record, calibrated)  # first, because only here a file can still be found broken
    sections: list[Section] = [
        ("summary", "At a glance", _summary(record)),
        ("figures", "Figures", _figures(record)),
        ("scores", "Scores", _distribution(record, calibrated)),
        ("curves", "Curves", _curves(record, calibrated)),
        ("decisions", "Decisions", decisions(record) if calibrated else ""),
        ("cases", "Cases", cases),
        ("provenance", "How this was made", _provenance(record)),
    ]
    n, abnormal = len(record.scores), sum(score.label for score in record.scores)
    groups = len({score.group for score in record.scores})
    data = "" if record.content["data"] is None else f" on {record.content['data']}"
    lead = (
        f"Split “{record.content['split']}”: {n} images of {groups} groups (patients, scans), {n - abnormal} normal "
        f"and {abnormal} abnormal. The detector was trained on normal images only."
    )
    write_page(
        path,
        f"{record.content['title']}{data}",
        paragraph(lead) + "".join(paragraph(note) for note in record.content["notes"]),
        sections,
        "gallery.js" if record.content["cases"] else "",
    )
    return path


def _summary(record: Record) -> str:
    metrics, alpha = record.metrics, record.content["alpha"]
    tiles = []

    def tile(name: str, what: str, meaning: str) -> None:
        value = metrics.get(name, math.nan)
        if not math.isfinite(value):
            return
        span = interval(metrics.get(f"{name}_ci_low"), metrics.get(f"{name}_ci_high"))
        small = "" if span == "–" else f" <small>95 %: {span}</small>"
        tiles.append(
            f'<div class="tile"><p class="what">{html.escape(what)}</p><p class="value">{number(value)}{small}</p>'
            f"<p>{html.escape(meaning)}</p></div>"
        )

    area = metrics.get("image_auroc", math.nan)
    pairs = f"In {100 * area:.0f} % of all pairs of a normal and an abnormal image the abnormal one scores higher"
    tile("image_auroc", "Image AUROC", f"{pairs}; 50 % would be chance.")
    for name, label, what, text in (
        (f"sensitivity_at_{alpha:g}", 1, "Sensitivity", "abnormal images were called abnormal"),
        (f"false_positive_rate_at_{alpha:g}", 0, "False-positive rate", "normal images were called abnormal"),
    ):
        mine = [score for score in record.scores if score.label == label]
        called = sum(bool(score.called(alpha)) for score in mine)
        tile(name, f"{what} at α = {alpha:g}", f"{called} of {len(mine)} {text}.")
    tile("aupro_0.3", "AUPRO", "How much of each lesion the map covers at few false pixels; chance is about 0.15.")
    warnings = []
    low, high = (metrics.get(f"image_auroc_ci_{end}", math.nan) for end in ("low", "high"))
    if low <= 0.5 <= high:
        warnings.append("The interval of the AUROC holds 0.5: these images do not show that the scores beat chance.")
    if high < 0.5:
        warnings.append("The AUROC lies below 0.5: normal images score higher than abnormal ones.")
    if not math.isfinite(area):
        warnings.append("Only one kind of image, normal or abnormal: most figures are not defined.")
    return f'<div class="tiles">{"".join(tiles)}</div>' + "".join(paragraph(text, "warning") for text in warnings)


def _figures(record: Record) -> str:
    metrics = record.metrics
    rows = []
    names = metric_names(metrics)
    for name in names:
        low, high = metrics.get(f"{name}_ci_low"), metrics.get(f"{name}_ci_high")
        count = _count(name, metrics)
        rows.append(
            (
                figure_label(name),
                number(metrics[name]),
                interval(low, high),
                _range(metrics[name], low, high),
                "–" if count is None else f"{count:.0f}",
            )
        )
    remarks = ["Intervals: bootstrap over groups (patients, scans), normal and abnormal ones apart."]
    if any("oracle" in figure_label(name) for name in names):
        remarks.append(
            "Oracle: the threshold was chosen by looking at the labels of these very images. Such figures are upper "
            "bounds, not what a user would get."
        )
    head = ("Metric", "Value", "95 % interval", "0 to 1", "Images")
    return table(head, rows, "All figures, with the number of images that each is about") + "".join(
        paragraph(text, "note") for text in remarks
    )


def _count(name: str, metrics: Mapping[str, float]) -> float | None:
    """Number of images that a figure is about."""
    if name.startswith(PIXEL):
        return metrics.get("n_pixel_images")
    images, abnormal = metrics.get("n_images"), metrics.get("n_abnormal")
    if images is None or abnormal is None:
        return images
    if name.startswith(("false_positive_rate_at_", "normal_area_at_")):
        return images - abnormal
    calibrated = name.startswith("sensitivity_at_") and not name.endswith("_specificity")
    return abnormal if calibrated else images


def _range(value: float, low: float | None, high: float | None) -> str:
    """A figure and its interval between 0 and 1 as a small picture."""
    if not 0 <= value <= 1:
        return ""
    ends = (low, high) if low is not None and high is not None and low <= high else (value, value)
    left, right = (min(max(100 * end, 0), 100) for end in ends)
    return Html(
        '<svg class="range" viewBox="-4 0 108 12" preserveAspectRatio="none" aria-hidden="true">'
        '<path d="M0 6H100M0 3V9M50 4V8M100 3V9" stroke="var(--line)" stroke-width="1" fill="none"/>'
        f'<path d="M{left:.1f} 6H{right:.1f}" stroke="var(--normal)" stroke-width="3"/>'
        f'<ellipse cx="{100 * value:.1f}" cy="6" rx="3" ry="4" fill="var(--normal)"/></svg>'
    )


def _distribution(record: Record, calibrated: bool) -> str:
    parts: dict[str, tuple[NDArray[np.float64], str]] = {}
    if record.calibration is not None:
        parts["calibration, normal"] = (record.calibration[0], "calibration")
    split = str(record.content["split"])
    for label, kind in enumerate(("normal", "abnormal")):
        values = np.array([score.score for score in record.scores if score.label == label])
        if values.size:
            parts[f"{split}, {kind}"] = (values, kind)
    threshold = record.content.get("threshold") if calibrated else None
    told = "; ".join(
        f"{heading}: {values.size} images, median score {np.median(values):.3g}"
        for heading, (values, _) in parts.items()
    )
    caption = "Higher scores mean more abnormal. They have no unit and compare only within one trained detector."
    if threshold is not None:
        caption += f" Dashed: the threshold {threshold:.4g} for α = {record.content['alpha']:g}."
    return figure_grid((histogram_plot("histogram", parts, threshold, told), caption))


def _curves(record: Record, calibrated: bool) -> str:
    labels = np.array([score.label for score in record.scores], dtype=bool)
    scores = np.array([score.score for score in record.scores])
    groups = [score.group for score in record.scores]
    if labels.all() or not labels.any():
        return paragraph("Curves need normal and abnormal images.")
    at = np.linspace(0, 1, 101)
    bands = bootstrap_curve_bands(scores, labels, groups, at)
    histograms = score_histograms(scores, labels)
    false_rate, true_rate = roc(*histograms)
    recall, precision = precision_recall(*histograms)
    hits = recall > 0
    recall, precision = np.insert(recall[hits], 0, 0), np.insert(precision[hits], 0, precision[hits][0])
    prevalence = float(labels.mean())
    alpha = record.content["alpha"]
    operating: tuple[float, float, str] | None = None
    hit = (math.nan, math.nan)
    if calibrated:
        called = np.array([bool(score.called(alpha)) for score in record.scores])
        operating = (float(called[~labels].mean()), float(called[labels].mean()), f"α = {alpha:g}")
        if called.any():
            hit = (operating[1], float(labels[called].mean()))
    area = record.metrics.get("image_auroc", math.nan)
    mean = record.metrics.get("image_ap", math.nan)
    first = curve_plot(
        "roc",
        "roc",
        false_rate,
        true_rate,
        (at, *bands["roc"]),
        0.5,
        operating,
        f"Sensitivity against false-positive rate over all thresholds; area under the curve {number(area)}.",
    )
    second = curve_plot(
        "pr",
        "precision_recall",
        recall,
        precision,
        (at, *bands["precision_recall"]),
        prevalence,
        (*hit, f"α = {alpha:g}") if math.isfinite(hit[1]) else None,
        f"Precision against sensitivity over all thresholds; average precision {number(mean)}, by chance "
        f"{prevalence:.2f}.",
    )
    return figure_grid(
        (first, "Each point is a threshold. Band: 95 % interval at each false-positive rate, bootstrap over groups."),
        (
            second,
            f"Precision: of the images above the threshold, the fraction that is abnormal. It depends on how common "
            f"abnormal images are: {100 * prevalence:.0f} % here, far less in most practice.",
        ),
    )


def _cases(record: Record, calibrated: bool) -> str:
    entries = {entry["name"]: entry for entry in record.content["cases"]}
    if not entries:
        return ""
    alpha = float(record.content["alpha"])
    vmin, vmax = (float(value) for value in record.content["scale"])
    wrong = errors(record.scores, alpha)
    ranks = misordered([s.score for s in record.scores], [s.label for s in record.scores])
    masks = any(entry["mask"] is not None for entry in entries.values())
    outlines = any(entry["outlined"] is not None for entry in entries.values())
    cards: list[str] = []
    shown: list[Score] = []
    size = 0
    for i in order(record.scores, alpha):
        score = record.scores[i]
        if score.name not in entries:
            continue
        text = gallery.CaseText(float(wrong[i]), score.p_value, score.called(alpha), _rank(score.label, ranks[i]))
        case = record.case(entries[score.name], score)
        markup = gallery.card(len(cards) + 1, case, text, vmin, vmax, masks)
        size += len(markup)
        if size > PICTURE_BYTES and cards:
            break
        cards.append(markup)
        shown.append(score)
    return (
        "".join(paragraph(text) for text in _which(record, shown, alpha, calibrated))
        + _legend(record, masks, outlines)
        + gallery.color_bar(vmin, vmax)
        + gallery.controls(calibrated)
        + f'<div class="gallery" id="gallery">{"".join(cards)}</div>'
    )


def _which(record: Record, shown: list[Score], alpha: float, calibrated: bool) -> list[str]:
    """Which images the gallery shows, and in which order."""
    text = [f"{len(shown)} of {len(record.scores)} images."]
    if calibrated:
        counts = [
            (name, [sum(s.label == label and s.wrong(alpha) for s in part) for part in (shown, record.scores)])
            for name, label in (("false positives", 0), ("false negatives", 1))
        ]
        text.append("Among them " + " and ".join(f"{few} of the {all_} {name}" for name, (few, all_) in counts) + ".")
        worst = (
            "Worst errors first: false decisions before right ones, in the order of the factor by which the p-value "
            f"misses α = {alpha:g}; images with the same p-value by score."
        )
    else:
        worst = (
            "Worst errors first: by the fraction of images of the other class on the wrong side, so normal images that "
            "score above many abnormal ones and abnormal images that score below many normal ones."
        )
    if len(shown) < len(record.scores):
        text.append("The worst errors were taken first, then a random sample of normal and abnormal images.")
    return [" ".join(text), worst]


def _legend(record: Record, masks: bool, outlines: bool) -> str:
    entries = [
        "<li><b>image</b>: as the network sees it, scaled to the size of its input and compressed for this page.</li>",
        "<li><b>map</b>: the anomaly map, with one scale for all cases (below). Dark means like the normal training "
        "images, bright means unlike. It marks what is unusual, which need not be disease.</li>",
    ]
    if masks:
        entries.append("<li><b>true lesion</b>: what a person has drawn, in white.</li>")
    entries.append(
        "<li><b>overlay</b>: the map over the image, the more opaque the higher it is."
        + (' <span class="key lesion"></span>outline of the true lesion.' if masks else "")
        + "</li>"
    )
    if outlines:
        area = record.content["area_alpha"]
        entries.append(
            f'<li><span class="key marked"></span>on the map: what the calibrated detector marks; of a normal image at '
            f"most the fraction {area:g}, on average.</li>"
        )
    return f"<ul>{''.join(entries)}</ul>"


def _rank(label: int, wrong: float) -> str:
    """In words, where an image stands among those of the other class."""
    if math.isnan(wrong):
        return "no image of the other class"
    return f"{'below' if label else 'above'} {100 * wrong:.0f} % of the {'normal' if label else 'abnormal'} images"


def _provenance(record: Record) -> str:
    content = record.content
    text = ""
    if content["commands"]:
        text += "<h3>Command</h3>" + f"<pre>{html.escape(chr(10).join(content['commands']))}</pre>"
    text += "<h3>Run</h3>" + definitions({"evaluated": content["created"], "device": content["device"]})
    if content["settings"]:
        text += "<h3>Settings of the training, the seed among them</h3>"
        text += definitions({k: str(v) for k, v in content["settings"].items()})
    text += "<h3>Versions</h3>" + definitions({k: str(v) for k, v in content["software"].items()})
    hashes = dict(content["hashes"])
    for name in ("metrics.json", "scores.csv", RECORD, *([CALIBRATION] if content["calibrated"] else [])):
        hashes[name] = file_sha256(record.folder / name)
    return text + "<h3>SHA-256 of the files</h3>" + definitions(hashes)
