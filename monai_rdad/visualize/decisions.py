# SPDX-License-Identifier: Apache-2.0
"""Calibrated decisions on the page of an evaluation."""

from __future__ import annotations

import math

import numpy as np

from monai_rdad.metrics import ConformalScores, bootstrap_rate, false_positive_band
from monai_rdad.visualize.page import figure_grid, interval, number, paragraph, table
from monai_rdad.visualize.plots import calibration_plot, p_value_plot
from monai_rdad.visualize.record import Record, Score

__all__ = ["decisions"]

ALPHAS = (0.01, 0.05, 0.1, 0.2)  # of the table, beside that of the evaluation


def decisions(record: Record) -> str:
    """What came of the calibration, as HTML: decisions at several rates, and whether the promise was kept."""
    assert record.calibration is not None
    chosen = float(record.content["alpha"])
    calibration_groups = len(set(record.calibration[1]))
    classes = [[score for score in record.scores if score.label == label] for label in (0, 1)]
    normal, abnormal = classes
    groups = len({score.group for score in normal})
    strata = record.content["strata"]
    alphas = sorted({*ALPHAS, chosen})
    rows = []
    for alpha in alphas:
        expected = "–"
        if normal and not strata:
            band = false_positive_band(calibration_groups, alpha, groups)
            expected = "0: too few groups" if _too_few(calibration_groups, alpha) else interval(*band)
        called, specificity = _called(normal, alpha)
        found, sensitivity = _called(abnormal, alpha)
        rows.append((f"{alpha:g}", called, expected, specificity, found, sensitivity))
    words = [
        f"An image is called abnormal if its p-value among {len(record.calibration[0])} normal calibration images of "
        f"{calibration_groups} groups is at most α. The promise: of new normal images from the same source at most the "
        "fraction α is called abnormal, on average over calibration sets. No abnormal image has set a threshold."
    ]
    warnings = []
    if not strata and _too_few(calibration_groups, chosen):
        warnings.append(
            f"{calibration_groups} calibration groups are too few for α = {chosen:g}: at least "
            f"{math.ceil(1 / chosen - 1 - 1e-9)} are needed before any image can be called abnormal."
        )
    if strata:
        words.append(f"Thresholds of their own: {', '.join(strata)}.")
    head = (
        "α",
        "False positives",
        "Expected rate, 95 %",
        "Specificity (95 %)",
        "Found",
        "Sensitivity (95 %)",
    )
    shown = table(head, rows, f"Decisions; the evaluation used α = {chosen:g}", alphas.index(chosen))
    text = "".join(paragraph(t, "warning") for t in warnings) + "".join(paragraph(t) for t in words) + shown
    text += paragraph(
        "Expected: where the rate of false positives lies with 95 % probability over calibration sets and test images. "
        "Specificity: the fraction of normal images not called abnormal. Intervals: bootstrap over groups.",
        "note",
    )
    p_values = [np.array([score.p_value for score in mine], dtype=np.float64) for mine in classes]
    plots = []
    if normal:
        grid = np.linspace(0.005, 0.5, 100)
        realised = (p_values[0][None] <= grid[:, None] + 1e-9).mean(1)
        bands = np.array([false_positive_band(calibration_groups, float(a), groups) for a in grid]).T
        plots.append(
            (
                calibration_plot(
                    "calibration",
                    grid,
                    realised,
                    (bands[0], bands[1]),
                    chosen,
                    f"At a promised rate of {chosen:g}, {_called(normal, chosen)[0]} are found.",
                ),
                "A well calibrated detector stays inside the band, where the rate found lies with 95 % probability, "
                f"for {calibration_groups} calibration groups and {groups} normal test groups of one image each."
                + (" With several strata the band is a guide only." if strata else ""),
            )
        )
    plots.append(
        (
            p_value_plot(
                "pvalues",
                p_values[0],
                p_values[1],
                chosen,
                "Cumulative distribution of the p-values of normal and of abnormal images.",
            ),
            "p-values of normal images should follow the dashed line, those of abnormal images rise as steeply as "
            "possible at the left. Dotted: the α of the evaluation.",
        )
    )
    return text + figure_grid(*plots)


def _too_few(groups: int, alpha: float) -> bool:
    """Whether no score can be rare enough among the calibration groups."""
    return math.isinf(ConformalScores(np.zeros(groups)).threshold(alpha))


def _called(scores: list[Score], alpha: float) -> tuple[str, str]:
    """How many images of one class are called abnormal, and the fraction that is called rightly, with its interval."""
    if not scores:
        return "–", "–"
    called = [bool(score.called(alpha)) for score in scores]
    right = [float(not score.wrong(alpha)) for score in scores]
    span = interval(*bootstrap_rate(right, [score.group for score in scores]))
    rate = number(sum(called) / len(called))
    return f"{sum(called)} of {len(called)} ({rate})", f"{number(float(np.mean(right)))} ({span})"
