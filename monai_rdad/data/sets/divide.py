# SPDX-License-Identifier: Apache-2.0
"""Which record of a download goes to which split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from monai_rdad.data.manifest import NORMAL_ONLY, SPLITS, split_by_group
from monai_rdad.data.sets.report import BuildReport
from monai_rdad.data.sets.source import Record

__all__ = ["apart", "drawn", "group_of", "moved", "place_of"]


def place_of(record: Record) -> int:
    """Number of a record's split in ``SPLITS``, -1 of one without a split."""
    return SPLITS.index(record.split) if record.split else -1


def group_of(record: Record) -> str:
    """Group of a record; a record without one is its own."""
    return record.group or record.name


def apart(records: list[Record], report: BuildReport) -> list[Record]:
    """A published split without the training images whose group is in validation or testing as well."""
    homes: dict[str, int] = {}
    for record in records:
        homes[group_of(record)] = max(homes.get(group_of(record), 0), place_of(record))
    kept = [record for record in records if place_of(record) == homes[group_of(record)]]
    lost = {record.name for record in records} - {record.name for record in kept}
    report.drop("of a group (patient, lesion, scan) that is in a later split as well", sorted(lost))
    return kept


def drawn(records: list[Record], rule: Mapping[str, Any], seed: int, report: BuildReport) -> list[Record]:
    """Splits at random by group, to the sizes of the description.

    ``rule["normal"]`` and ``rule["abnormal"]`` give numbers of images by split, or fractions. With numbers that add up
    to less than there is, the rest stays unused; to more, all shrink alike. ``rule["patients"]`` gives fractions for
    sets in which the same patients have normal and abnormal images: all groups are dealt by it, and the abnormal
    images of those in training stay unused.
    """
    if "patients" in rule:
        dealt = _dealt(records, rule["patients"], seed, len(records))
        unused = [r.name for r in dealt if r.label and r.split in NORMAL_ONLY]
        report.drop("abnormal images of the patients in training", unused)
        return [r for r in dealt if not (r.label and r.split in NORMAL_ONLY)]
    mixed = {group_of(record) for record in records if record.label}
    pure = [record for record in records if group_of(record) not in mixed]
    other = [record for record in records if group_of(record) in mixed]
    wanted = dict(rule.get("normal") or {"training": 0.7, "testing": 0.3})
    wanted_abnormal = dict(rule.get("abnormal") or {"testing": 1.0})
    chosen = _dealt(pure, wanted, seed, len(pure)) if pure else []
    abnormal = sum(record.label for record in other)
    abnormal_and_theirs = _dealt(other, wanted_abnormal, seed, abnormal) if other else []
    if sum(wanted.values()) > 1:  # normal images of patients with abnormal ones are welcome up to the wanted number
        spare = round(wanted.get("testing", 0)) - sum(record.split == "testing" for record in chosen)
        surplus = [record.name for record in abnormal_and_theirs if not record.label][max(0, spare) :]
        abnormal_and_theirs = [record for record in abnormal_and_theirs if record.name not in set(surplus)]
    chosen += abnormal_and_theirs
    names = {record.name for record in chosen}
    report.drop("beyond the numbers of the split", [record.name for record in records if record.name not in names])
    return chosen


def _dealt(records: list[Record], wanted: Mapping[str, float], seed: int, number: int) -> list[Record]:
    """Records by ``wanted`` numbers or fractions of ``number``; those left over are not returned."""
    total = sum(wanted.values())
    scale = number if total > 1 + 1e-6 else 1.0
    fractions = {name: min(value / scale, value / total) for name, value in wanted.items() if value > 0}
    if (rest := 1 - sum(fractions.values())) > 1e-6:
        fractions["unused"] = rest
    items = [{"image": record.name, "label": 0, "group": group_of(record)} for record in records]
    groups = len({item["group"] for item in items})
    while len(fractions) > groups:  # too few for every split: the smallest share goes without
        fractions.pop(min(fractions, key=fractions.__getitem__))
    parts = split_by_group(items, {name: part / sum(fractions.values()) for name, part in fractions.items()}, seed)
    home = {item["image"]: name for name, members in parts.items() for item in members}
    return [replace(r, split=home[r.name]) for r in records if home[r.name] != "unused"]


def moved(records: list[Record], parts: Mapping[str, float], seed: int) -> list[Record]:
    """Moves fractions of the training images, by group, to other splits."""
    parts = {name: part for name, part in parts.items() if part > 0}
    training = [{"image": r.name, "label": 0, "group": group_of(r)} for r in records if r.split == "training"]
    if not parts or not training:
        return records
    dealt = split_by_group(training, {"training": 1 - sum(parts.values()), **parts}, seed)
    home = {item["image"]: name for name, members in dealt.items() for item in members}
    return [replace(record, split=home.get(record.name, record.split)) for record in records]
