# SPDX-License-Identifier: Apache-2.0
"""Image and pixel metrics with bootstrap intervals."""

from __future__ import annotations

from monai_rdad.metrics.bootstrap import (
    bootstrap_image_metrics,
    bootstrap_pixel_metrics,
    bootstrap_rate,
    group_strata,
    resampling_weights,
)
from monai_rdad.metrics.conformal import AreaRisk, ConformalScores, false_positive_band, is_abnormal
from monai_rdad.metrics.image import IMAGE_METRICS, image_metrics
from monai_rdad.metrics.lesions import Lesion, find_lesions
from monai_rdad.metrics.pixel import AUPRO_LIMIT, PIXEL_METRICS, PixelAccumulator, PixelHistogram

__all__ = [
    "AUPRO_LIMIT",
    "IMAGE_METRICS",
    "AreaRisk",
    "ConformalScores",
    "Lesion",
    "PIXEL_METRICS",
    "PixelAccumulator",
    "PixelHistogram",
    "bootstrap_image_metrics",
    "bootstrap_pixel_metrics",
    "bootstrap_rate",
    "false_positive_band",
    "find_lesions",
    "group_strata",
    "image_metrics",
    "is_abnormal",
    "resampling_weights",
]
