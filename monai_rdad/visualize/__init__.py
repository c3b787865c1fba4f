# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: overlays, sheets of cases, a page of results, and the files that inference leaves."""

from __future__ import annotations

from monai_rdad.visualize.evaluation import EvaluationReport
from monai_rdad.visualize.overlay import overlay
from monai_rdad.visualize.page import result_page
from monai_rdad.visualize.prototypes import PrototypeReport, assignment_overlay, prototype_sheet
from monai_rdad.visualize.sheet import Case, contact_sheet
from monai_rdad.visualize.writer import PredictionWriter

__all__ = [
    "Case",
    "EvaluationReport",
    "PredictionWriter",
    "PrototypeReport",
    "assignment_overlay",
    "contact_sheet",
    "overlay",
    "prototype_sheet",
    "result_page",
]
