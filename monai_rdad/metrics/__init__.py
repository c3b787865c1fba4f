# SPDX-License-Identifier: Apache-2.0
"""Image and pixel metrics with bootstrap intervals."""

from __future__ import annotations

from monai_rdad.metrics.bootstrap import (
    bootstrap_curve_bands,
    bootstrap_image_metrics,
    bootstrap_pixel_metrics,
    bootstrap_rate,
    group_strata,
    resample_image_metrics,
    resample_pixel_metrics,
    resampled_intervals,
    resampling_weights,
)
from monai_rdad.metrics.comparison import (
    Comparison,
    compare_auroc,
    compare_resampled,
    friedman_p_value,
    holm,
    mean_ranks,
)
from monai_rdad.metrics.conformal import AreaRisk, ConformalScores, false_positive_band, is_abnormal
from monai_rdad.metrics.delong import delong_covariance
from monai_rdad.metrics.image import IMAGE_METRICS, image_metrics, misordered, score_histograms
from monai_rdad.metrics.lesions import Lesion, find_lesions
from monai_rdad.metrics.pixel import AUPRO_LIMIT, PIXEL_METRICS, PixelAccumulator, PixelHistogram

__all__ = [
    "AUPRO_LIMIT",
    "IMAGE_METRICS",
    "AreaRisk",
    "Comparison",
    "ConformalScores",
    "Lesion",
    "PIXEL_METRICS",
    "PixelAccumulator",
    "PixelHistogram",
    "bootstrap_curve_bands",
    "bootstrap_image_metrics",
    "bootstrap_pixel_metrics",
    "bootstrap_rate",
    "compare_auroc",
    "compare_resampled",
    "delong_covariance",
    "false_positive_band",
    "find_lesions",
    "friedman_p_value",
    "group_strata",
    "holm",
    "image_metrics",
    "is_abnormal",
    "misordered",
    "mean_ranks",
    "resample_image_metrics",
    "resample_pixel_metrics",
    "resampled_intervals",
    "resampling_weights",
    "score_histograms",
]
