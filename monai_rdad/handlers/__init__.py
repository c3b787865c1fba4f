# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers for MONAI's trainers and evaluators."""

from __future__ import annotations

from monai_rdad.handlers.anomaly_metrics import AnomalyMetrics
from monai_rdad.handlers.calibration import Calibration, CalibrationWriter, load_calibration
from monai_rdad.handlers.checkpoint import ResumableCheckpoint
from monai_rdad.handlers.mlflow import AnomalyMLFlow
from monai_rdad.handlers.progress import Progress
from monai_rdad.handlers.prototypes import PrototypeUsage
from monai_rdad.handlers.support import EpisodeMonitor, SupportSet, support_hash
from monai_rdad.handlers.trained import TrainedCheckpointLoader, load_data_record, load_settings, load_weights
from monai_rdad.handlers.training import GradientClipping, MomentumUpdate

__all__ = [
    "AnomalyMLFlow",
    "AnomalyMetrics",
    "Calibration",
    "CalibrationWriter",
    "EpisodeMonitor",
    "GradientClipping",
    "MomentumUpdate",
    "Progress",
    "PrototypeUsage",
    "ResumableCheckpoint",
    "SupportSet",
    "support_hash",
    "TrainedCheckpointLoader",
    "load_calibration",
    "load_data_record",
    "load_settings",
    "load_weights",
]
