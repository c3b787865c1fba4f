# SPDX-License-Identifier: Apache-2.0
r"""What a teacher's weights are worth: its share of what ImageNet's weights gain over random ones.

    monai-rdad benchmark none.yaml; monai-rdad benchmark imagenet.yaml; monai-rdad benchmark embedded.yaml
    python scripts/study_teachers.py none=results/none imagenet=results/imagenet embedded=results/embedded

Each folder holds one finished benchmark; they differ in ``weights`` alone. Methods, data sets and seeds that all of
them hold are compared, in Markdown: image AUROC, pixel AUROC and AUPRO (mean over the seeds and their range), the means
over data sets and methods, and the share (other - none) / (imagenet - none) of the mean image AUROC. Its 95 % interval
comes from 1000 resamples that draw groups of test images, the same for all teachers, and for each teacher, method and
data set its seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_rdad.metrics.bootstrap import resample_image_metrics

RESAMPLES = 1000
METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro_0.3": "AUPRO"}
Key = tuple[str, str]  # method and data set


def read(folder: Path) -> dict[Key, dict[int, Path]]:
    """Folders of the finished evaluations by method and data set, then by seed."""
    found: dict[Key, dict[int, Path]] = {}
    for file in sorted(folder.glob("runs/*/*/seed*/eval/metrics.json")):
        run = file.parents[1]
        found.setdefault((run.parts[-3], run.parts[-2]), {})[int(run.name.removeprefix("seed"))] = file.parent
    if not found:
        raise SystemExit(f"{folder} holds no finished run of a benchmark.")
    return found


def scores(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of an evaluation's scores by the image's name."""
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def figures(folder: Path) -> dict[str, float]:
    """Metrics of one evaluation."""
    return dict(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))


def resampled_means(runs: dict[str, dict[int, Path]], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Mean image AUROC over seeds in each resample of one method on one data set, by teacher."""
    rows = {teacher: [scores(path) for path in seeds.values()] for teacher, seeds in runs.items()}
    names = sorted(next(iter(rows.values()))[0])
    about = next(iter(rows.values()))[0]
    labels, groups = [int(about[n]["label"]) for n in names], [about[n]["group"] for n in names]
    table = [[float(one[n]["score"]) for n in names] for seeds in rows.values() for one in seeds]
    drawn = resample_image_metrics(table, labels, groups, RESAMPLES)["image_auroc"]
    means, at = {}, 0
    for teacher, seeds in rows.items():
        pick = rng.integers(len(seeds), size=(RESAMPLES, len(seeds)))
        means[teacher] = np.take_along_axis(drawn[:, at : at + len(seeds)], pick, 1).mean(1)
        at += len(seeds)
    return means


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
    folders = dict(part.split("=", 1) for part in parser.parse_args().folders)
    if not {"none", "imagenet"} <= set(folders):
        parser.error("none=FOLDER and imagenet=FOLDER are needed.")
    found = {teacher: read(Path(folder)) for teacher, folder in folders.items()}
    keys = sorted(set.intersection(*(set(runs) for runs in found.values())))
    seeds = {key: sorted(set.intersection(*(set(runs[key]) for runs in found.values()))) for key in keys}
    keys = [key for key in keys if seeds[key]]
    teachers = list(folders)
    rng = np.random.default_rng(0)
    points: dict[str, dict[Key, float]] = {teacher: {} for teacher in teachers}
    drawn: dict[str, dict[Key, NDArray[Any]]] = {teacher: {} for teacher in teachers}
    for metric, title in METRICS.items():
        head("method", "data", f"{title}: " + teachers[0], *teachers[1:])
        for key in keys:
            values = {t: [figures(found[t][key][s]).get(metric) for s in seeds[key]] for t in teachers}
            known = {t: [v for v in of_seeds if v is not None] for t, of_seeds in values.items()}
            if all(known.values()):
                row(key[0], key[1], *(cell(known[t]) for t in teachers))
            if metric == "image_auroc":
                for t in teachers:
                    points[t][key] = float(np.mean(known[t]))
    for key in keys:
        means = resampled_means({t: {s: found[t][key][s] for s in seeds[key]} for t in teachers}, rng)
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
    others = [t for t in teachers if t not in ("none", "imagenet")]
    for t in others:
        shares = []
        for left_out in data:
            of = [key for key in keys if key[1] != left_out]
            gain = {x: float(np.mean([points[x][key] - points["none"][key] for key in of])) for x in (t, "imagenet")}
            shares.append(gain[t] / gain["imagenet"])
        print(f"\n{t}: the share with one data set left out lies between {min(shares):.2f} and {max(shares):.2f}.")


if __name__ == "__main__":
    main()
