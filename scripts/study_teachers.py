# SPDX-License-Identifier: Apache-2.0
r"""What a teacher's weights are worth: its share of what ImageNet's weights gain over random ones.

    monai-rdad benchmark none.yaml; monai-rdad benchmark imagenet.yaml; monai-rdad benchmark embedded.yaml
    python scripts/study_teachers.py none=results/none imagenet=results/imagenet embedded=results/embedded

Each folder holds one finished benchmark; they differ in ``weights`` alone. Methods, data sets and seeds that all of
them hold are compared, in Markdown: image AUROC, pixel AUROC and AUPRO (mean over the seeds and their range), the means
over data sets and methods, and the share (other - none) / (imagenet - none) of the mean image AUROC. Its 95 % interval
comes from 1000 resamples that draw groups of test images, the same for all teachers, and for each teacher the seeds,
the same for all methods and data sets.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rdad.metrics.bootstrap import resample_image_metrics

RESAMPLES = 1000
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro_0.3": "AUPRO"}
Key = tuple[str, str]  # method and data set


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of one run: its metrics, and name, group, label and score of every image."""

    identity: dict[str, Any]
    metrics: dict[str, float]
    images: tuple[tuple[str, str, int], ...]
    scores: tuple[float, ...]


def read(folder: Path) -> dict[Key, dict[int, Evaluation]]:
    """The finished runs of a benchmark by method and data set, then by seed."""
    found: dict[Key, dict[int, Evaluation]] = {}
    for file in sorted(folder.glob("runs/*/*/seed*/run.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        with (file.parent / "eval" / "scores.csv").open(encoding="utf-8", newline="") as table:
            rows = sorted(csv.DictReader(table), key=lambda row: row["name"])
        images = tuple((row["name"], row["group"], int(row["label"])) for row in rows)
        settings = {k: v for k, v in record["identity"]["settings"].items() if k != "weights"}
        run = Evaluation(
            record["identity"] | {"settings": settings},
            record["metrics"],
            images,
            tuple(float(row["score"]) for row in rows),
        )
        found.setdefault((record["method"], record["data"]), {})[int(record["seed"])] = run
    if not found:
        raise SystemExit(f"{folder} holds no finished run of a benchmark.")
    return found


def comparable(found: dict[str, dict[Key, dict[int, Evaluation]]]) -> tuple[list[Key], list[int]]:
    """Methods with data sets, and seeds, that all teachers have; an error where more than the weights differs."""
    keys = sorted(set.intersection(*(set(runs) for runs in found.values())))
    seeds = sorted(set.intersection(*(set(runs[key]) for runs in found.values() for key in keys)) if keys else [])
    if not seeds:
        raise SystemExit("The benchmarks have no method, data set and seed in common.")
    first = next(iter(found))
    for teacher, runs in found.items():
        for key in keys:
            for seed in seeds:
                a, b = found[first][key][seed], runs[key][seed]
                what = "settings" if a.identity != b.identity else "test images" if a.images != b.images else None
                if what:
                    raise SystemExit(
                        f"{teacher} and {first} differ in their {what}: {key[0]} on {key[1]}, seed {seed}."
                    )
    return keys, seeds


def resampled(runs: dict[str, dict[int, Evaluation]], draws: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Mean image AUROC of the seeds drawn, in each resample of one method on one data set, by teacher."""
    of_seeds = [run for seeds in runs.values() for run in seeds.values()]
    _, groups, labels = zip(*of_seeds[0].images, strict=True)
    values = resample_image_metrics([r.scores for r in of_seeds], labels, groups, RESAMPLES)["image_auroc"]
    columns = np.split(values, np.cumsum([len(seeds) for seeds in runs.values()])[:-1], axis=1)
    return {t: np.take_along_axis(v, draws[t], 1).mean(1) for t, v in zip(runs, columns, strict=True)}


def cell(values: list[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def interval(values: NDArray[Any]) -> str:
    """The middle 95 %."""
    low, high = np.quantile(values, [0.025, 0.975])
    return f"[{low:.2f}, {high:.2f}]"


def row(*cells: str) -> None:
    """One row of a table."""
    print("| " + " | ".join(cells) + " |")


def head(*cells: str) -> None:
    """The first two rows of a table."""
    print()
    row(*cells)
    print("|" + "---|" * len(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER", help="none and imagenet are two of the names")
    parser.add_argument("--data", nargs="+", help="data sets to compare; default: all")
    parsed = parser.parse_args()
    arguments = parsed.folders
    folders = dict(part.split("=", 1) for part in arguments if "=" in part)
    if len(folders) < len(arguments) or not {"none", "imagenet"} <= set(folders):
        parser.error("give NAME=FOLDER, each name once, among them none=FOLDER and imagenet=FOLDER.")
    found = {teacher: read(Path(folder)) for teacher, folder in folders.items()}
    if parsed.data:
        found = {t: {key: runs for key, runs in of.items() if key[1] in parsed.data} for t, of in found.items()}
    keys, seeds = comparable(found)
    teachers = list(folders)
    rng = np.random.default_rng(0)
    # A seed's random teacher is the same on all data sets: its luck does not average out over them.
    draws = {t: rng.integers(len(seeds), size=(RESAMPLES, len(seeds))) for t in teachers}
    points: dict[str, dict[Key, float]] = {teacher: {} for teacher in teachers}
    drawn: dict[str, dict[Key, NDArray[Any]]] = {teacher: {} for teacher in teachers}
    for metric, title in METRICS.items():
        head("method", "data", f"{title}: " + teachers[0], *teachers[1:])
        for key in keys:
            values = {t: [found[t][key][s].metrics.get(metric) for s in seeds] for t in teachers}
            known = {t: [v for v in of_seeds if v is not None] for t, of_seeds in values.items()}
            if all(known.values()):
                row(key[0], key[1], *(cell(known[t]) for t in teachers))
            if metric == "image_auroc":
                for t in teachers:
                    points[t][key] = float(np.mean(known[t]))
    for key in keys:
        means = resampled({t: {s: found[t][key][s] for s in seeds} for t in teachers}, draws)
        for t in teachers:
            drawn[t][key] = means[t]
    data = sorted({d for _, d in keys})
    head("method", "teacher", f"mean image AUROC, {len(data)} sets", "gain over none", "share of imagenet's gain")
    methods = sorted({m for m, _ in keys})
    for chosen in [*([m] for m in methods), methods]:
        of = [key for key in keys if key[0] in chosen]
        mean = {t: float(np.mean([points[t][key] for key in of])) for t in teachers}
        sample = {t: np.mean([drawn[t][key] for key in of], axis=0) for t in teachers}
        for t in teachers:
            gain, gains = mean[t] - mean["none"], sample[t] - sample["none"]
            share = gain / (mean["imagenet"] - mean["none"])
            shares = gains / (sample["imagenet"] - sample["none"])
            cells = (f"{gain:+.3f} {interval(gains)}", f"{share:.2f} {interval(shares)}")
            row("all" if chosen is methods else chosen[0], t, f"{mean[t]:.3f}", *(cells if t != "none" else ("", "")))
    others = [t for t in teachers if t not in ("none", "imagenet") and len(data) > 1]
    for t in others:
        shares = []
        for left_out in data:
            of = [key for key in keys if key[1] != left_out]
            gain = {x: float(np.mean([points[x][key] - points["none"][key] for key in of])) for x in (t, "imagenet")}
            shares.append(gain[t] / gain["imagenet"])
        print(f"\n{t}: the share with one data set left out lies between {min(shares):.2f} and {max(shares):.2f}.")


if __name__ == "__main__":
    main()
