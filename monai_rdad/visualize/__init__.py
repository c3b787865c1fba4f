# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: overlays, sheets of cases, reports, pages of data sets, what inference leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai_rdad.visualize.benchmark import benchmark_report
from monai_rdad.visualize.description import description_page
from monai_rdad.visualize.maps import read_map
from monai_rdad.visualize.overlay import overlay
from monai_rdad.visualize.report import evaluation_report
from monai_rdad.visualize.sheet import Case, contact_sheet

if TYPE_CHECKING:
    from monai_rdad.visualize.evaluation import EvaluationReport
    from monai_rdad.visualize.prototypes import PrototypeReport, assignment_overlay, prototype_sheet
    from monai_rdad.visualize.writer import PredictionWriter

__all__ = [
    "Case",
    "EvaluationReport",
    "PredictionWriter",
    "PrototypeReport",
    "assignment_overlay",
    "benchmark_report",
    "contact_sheet",
    "description_page",
    "evaluation_report",
    "overlay",
    "prototype_sheet",
    "read_map",
]

# These need PyTorch and MONAI, which take seconds to import; who draws figures does not.
_LAZY = {
    "EvaluationReport": "evaluation",
    "PredictionWriter": "writer",
    "PrototypeReport": "prototypes",
    "assignment_overlay": "prototypes",
    "prototype_sheet": "prototypes",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"monai_rdad.visualize.{_LAZY[name]}"), name)
