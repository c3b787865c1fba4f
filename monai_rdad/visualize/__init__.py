# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: overlays, sheets of cases, pages of results and data sets, what inference leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai_rdad.visualize.description import description_page
from monai_rdad.visualize.overlay import overlay
from monai_rdad.visualize.page import result_page
from monai_rdad.visualize.sheet import Case, contact_sheet

if TYPE_CHECKING:
    from monai_rdad.visualize.evaluation import EvaluationReport
    from monai_rdad.visualize.writer import PredictionWriter

__all__ = [
    "Case",
    "EvaluationReport",
    "PredictionWriter",
    "contact_sheet",
    "description_page",
    "overlay",
    "result_page",
]


def __getattr__(name: str) -> Any:
    # These need PyTorch and MONAI, which take seconds to import; who draws figures does not.
    if name == "EvaluationReport":
        from monai_rdad.visualize.evaluation import EvaluationReport

        return EvaluationReport
    if name == "PredictionWriter":
        from monai_rdad.visualize.writer import PredictionWriter

        return PredictionWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
