# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from monai_rdad.data import SPLITS, ManifestError
from monai_rdad.data.sets import card, card_folder, set_names
from monai_rdad.data.sets.cards import KEYS

ROOT = Path(__file__).resolve().parents[3]


def test_a_description_for_each_builder() -> None:
    assert {path.stem for path in card_folder().glob("*.json")} == set(set_names())
    with pytest.raises(ManifestError, match="no description .*Known data sets: .*busi"):
        card("bussi")


@pytest.mark.parametrize("name", set_names())
def test_description(name: str) -> None:
    about = card(name)
    assert tuple(about) == KEYS
    assert about["name"] == name
    for key in ("title", "source", "licence", "modality", "organ", "group", "split_rule"):
        assert isinstance(about[key], str) and about[key]
    for key in ("layout", "citation", "abnormal", "known_problems"):
        assert about[key] and all(isinstance(entry, str) for entry in about[key])
    rule, counts = about["split"], about["counts"]
    assert rule["default"] in ("published", "drawn")
    for key in ("normal", "abnormal", "patients"):
        assert set(rule.get(key, {})) <= set(SPLITS)
    assert "training" not in rule.get("abnormal", {})
    total = sum(counts["classes"].values())
    assert counts["images"] is None or total <= counts["images"]
    # a wish for more images than there are would silently shrink the split
    if counts["classes"] and sum(rule.get("normal", {}).values()) > 1:
        normal = sum(number for kind, number in counts["classes"].items() if kind in about["normal"])
        assert sum(rule["normal"].values()) <= normal
    assert all(value is None or len(value) == 64 for value in about["checksums"].values())
    # what is not certain says so
    assert counts["verified"] or not counts["classes"] or any("number" in text for text in about["unverified"])


def test_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("datasets_page", ROOT / "scripts" / "datasets_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python scripts/datasets_page.py"
