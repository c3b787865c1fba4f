# SPDX-License-Identifier: Apache-2.0
"""Tables of a benchmark whose runs have known scores."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from monai_rdad.apps import cli
from monai_rdad.apps.benchmark_plan import Plan, read_plan
from monai_rdad.apps.benchmark_tables import write_tables
from monai_rdad.metrics import compare_auroc


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch) -> None:
    monkeypatch.setattr("monai_rdad.apps.benchmark_tables.RESAMPLES", 1000)


PEOPLE = 30


def fabricate(
    folder: Path, shifts: dict[str, float], sets=("first", "second", "third"), seeds=(0, 1), images: int = 1
) -> Plan:
    """A finished benchmark whose methods separate the classes as told; ``images`` per person."""
    data = {}
    for name in sets:
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text(f'"{name}"')
        data[name] = {"dataset_dir": str(folder / name)}
    content = {
        "out": str(folder / "out"),
        "seeds": list(seeds),
        "data": data,
        "methods": {name: {"bundle": "rd4ad"} for name in shifts},
        "metrics": ["image_auroc", "image_ap", "pixel_auroc"],
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    plan = read_plan(folder / "plan.yaml")
    for run in plan.runs():
        rng = np.random.default_rng([sets.index(run.data.name), run.seed])
        labels = np.repeat(np.arange(2 * PEOPLE) % 2, images)
        base = np.repeat(rng.normal(size=2 * PEOPLE), images)
        scores = base + 0.1 * rng.normal(size=labels.size) + shifts[run.method.name] * labels
        (run.folder / "eval").mkdir(parents=True)
        with (run.folder / "eval" / "scores.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "group", "label", "score"])
            writer.writerows(
                (f"{i:03d}", f"p{i // images}", y, s) for i, (y, s) in enumerate(zip(labels, scores, strict=True))
            )
        np.savez(run.folder / "eval" / "pixel_resamples.npz", pixel_auroc=rng.normal(0.8, 0.01, 999))
        figures = {"image_auroc": roc_auc_score(labels, scores), "image_ap": 0.5, "pixel_auroc": 0.8}
        figures |= {"n_images": labels.size, "n_abnormal": labels.sum(), "n_groups": 2 * PEOPLE, "n_pixel_images": 7}
        record = {"metrics": {k: float(v) for k, v in figures.items()}, "identity": run.identity, "commit": "abc"}
        (run.folder / "run.json").write_text(json.dumps(record | {"train_seconds": None, "evaluate_seconds": 1.0}))
    return plan


def scores_of(plan: Plan, method: str, data: str) -> list[list[float]]:
    rows = []
    for run in plan.runs():
        if (run.method.name, run.data.name) == (method, data):
            rows.append(pandas.read_csv(run.folder / "eval" / "scores.csv").score.tolist())
    return rows


def test_comparisons_are_paired_and_corrected(tmp_path):
    plan = fabricate(tmp_path, {"good": 2.0, "weak": 0.5, "none": 0.45})
    write_tables(plan)
    table = pandas.read_csv(plan.out / "comparisons.csv")
    assert len(table) == 3 * 3 * 3
    auroc = table[table.metric == "image_auroc"]
    assert set(auroc.test) == {"DeLong"} and set(table[table.metric != "image_auroc"].test) == {"group bootstrap"}
    assert set(auroc.n) == {60} and set(auroc.seeds) == {2} and set(table[table.metric == "pixel_auroc"].n) == {7}
    entry = auroc[(auroc.data == "second") & (auroc.method_a == "good") & (auroc.method_b == "weak")].iloc[0]
    labels = np.arange(60) % 2
    expected = compare_auroc(scores_of(plan, "good", "second"), scores_of(plan, "weak", "second"), labels)
    assert (entry.difference, entry.ci_low, entry.ci_high, entry.p_value) == pytest.approx(tuple(expected))
    assert entry.p_holm >= entry.p_value and auroc.p_holm.min() == pytest.approx(9 * auroc.p_value.min())
    values = {m: [roc_auc_score(labels, row) for row in scores_of(plan, m, "second")] for m in ("weak", "none")}
    near = auroc[(auroc.data == "second") & (auroc.method_a == "weak") & (auroc.method_b == "none")].iloc[0]
    assert near.seeds_agree == np.mean([a > b for a in values["weak"] for b in values["none"]]) < 1 == entry.seeds_agree
    # equal figures and equal resamples: no difference
    pixels = table[table.metric == "pixel_auroc"]
    assert (pixels.difference == 0).all() and (pixels.p_value == 1).all()

    text = (plan.out / "table.md").read_text()
    bold = [line for line in text.splitlines() if line.startswith("| ") and "**" in line]
    assert [line.split(" | ")[1] for line in bold] == ["good"] * 3
    ranks = pandas.read_csv(plan.out / "ranks.csv").set_index(["metric", "method"])
    assert ranks.loc[("image_auroc", "good"), "mean_rank"] == 1 and set(ranks.data_sets) == {3}
    assert ranks.loc[("pixel_auroc", "good"), "mean_rank"] == 2  # all tied
    latex = (plan.out / "table.tex").read_text()
    assert r"image\_auroc" in latex and latex.count(r"\textbf{") == 3 and latex.count(r"\midrule") == 4


def test_too_few_resamples_are_named(tmp_path):
    plan = fabricate(tmp_path, {name: 0.1 * i for i, name in enumerate("abcde")})
    write_tables(plan)
    # 3 data sets x 10 pairs, 999 resamples: 30 * 2 / 1000
    assert "no p-value of pixel_auroc can fall below 0.06: raise 'bootstrap'" in (plan.out / "table.md").read_text()


def test_groups_with_several_images_are_drawn_whole(tmp_path):
    one = fabricate(tmp_path / "one", {"a": 0.8, "b": 0.4}, sets=("first",), images=1)
    three = fabricate(tmp_path / "three", {"a": 0.8, "b": 0.4}, sets=("first",), images=3)
    widths = {}
    for plan in (one, three):
        write_tables(plan)
        table = pandas.read_csv(plan.out / "comparisons.csv").set_index("metric")
        entry = table.loc["image_auroc"]
        widths[entry.test] = entry.ci_high - entry.ci_low
    # three images of one person tell little more than one
    assert widths["group bootstrap"] == pytest.approx(widths["DeLong"], rel=0.35)


def test_unfinished_runs_are_left_out(tmp_path, capsys):
    plan = fabricate(tmp_path, {"a": 2.0, "b": 0.5})
    for run in plan.runs():
        if run.method.name == "b" and (run.data.name, run.seed) in (("first", 0), ("second", 0), ("second", 1)):
            (run.folder / "run.json").unlink()
    assert cli.main(["benchmark", str(tmp_path / "plan.yaml"), "--table"]) == 0
    text = capsys.readouterr().out
    assert "9 of 12 runs are finished" in text and "1 of 2 seeds" in text
    table = pandas.read_csv(plan.out / "comparisons.csv")
    auroc = table[table.metric == "image_auroc"].set_index("data")
    assert list(auroc.index) == ["first", "third"] and list(auroc.seeds) == [1, 2]
    assert set(pandas.read_csv(plan.out / "ranks.csv").data_sets) == {2}
    assert cli.main(["benchmark", str(tmp_path / "plan.yaml"), "--list"]) == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert states.count("done") == 9 and states.count("waiting") == 3


def test_runs_on_other_images_are_not_compared(tmp_path):
    plan = fabricate(tmp_path, {"a": 2.0, "b": 0.5}, sets=("first",))
    path = plan.runs()[1].folder / "eval" / "scores.csv"
    path.write_text(path.read_text().replace("004,", "x04,"))
    with pytest.raises(ValueError, match="b first seed 0 was evaluated on other images than a first seed 0"):
        write_tables(plan)
