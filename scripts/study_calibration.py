# SPDX-License-Identifier: Apache-2.0
r"""Does the calibrated false-positive rate hold? Random splits of normal images whose scores are known.

Reads the ``scores.csv`` of evaluations. In each repetition the groups (patients) of the normal images are divided at
random into calibration and test; thresholds come from the one half, the realised rate from the other.

    python scripts/study_calibration.py brain=bundles/rd4ad/eval/scores.csv retina=PATH --repetitions 200

Two rates are printed per data set and alpha: with one image per group, drawn anew in each repetition, for which the
distribution of the realised rate is known (beta-binomial), and with all images, as the mean over the test groups.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from monai_rdad.metrics import ConformalScores, false_positive_band


def realised(
    scores: np.ndarray, groups: np.ndarray, alpha: float, rng: np.random.Generator, single: bool
) -> tuple[float, int, int]:
    """False-positive rate on the test half, the number of calibration groups and that of test images."""
    names = rng.permutation(np.unique(groups))
    chosen = names[: len(names) // 2]
    if single:
        order = rng.permutation(len(scores))
        first = order[np.unique(groups[order], return_index=True)[1]]
        scores, groups = scores[first], groups[first]
    mine = np.isin(groups, chosen)
    calibration = ConformalScores(scores[mine], groups[mine].tolist())
    called = scores[~mine] > calibration.threshold(alpha)
    index, sizes = np.unique(groups[~mine], return_inverse=True, return_counts=True)[1:]
    return float((np.bincount(index, called) / sizes).mean()), len(chosen), len(called)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="NAME=SCORES.CSV")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| data | normal images (groups) | alpha | expected | realised, mean | in the 95 % band | all images: mean |")
    print("|---|---|---|---|---|---|---|")
    for pair in args.files:
        name, _, path = pair.partition("=")
        with Path(path).open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["label"] == "0"]
        scores = np.array([float(row["score"]) for row in rows])
        groups = np.array([row["group"] for row in rows])
        for alpha in args.alpha:
            rng = np.random.default_rng(args.seed)
            runs = [realised(scores, groups, alpha, rng, single=True) for _ in range(args.repetitions)]
            rates = np.array([rate for rate, _, _ in runs])
            n, m = runs[0][1], runs[0][2]
            low, high = false_positive_band(n, alpha, m)
            inside = ((rates >= low) & (rates <= high)).mean()
            whole = [realised(scores, groups, alpha, rng, single=False)[0] for _ in range(args.repetitions)]
            cells = [name, f"{len(scores)} ({len(np.unique(groups))})", f"{alpha:g}"]
            cells += [f"{int(alpha * (n + 1) + 1e-9) / (n + 1):.3f}", f"{rates.mean():.3f}"]
            cells += [f"{inside:.0%} of {len(rates)} ({low:.3f} to {high:.3f})", f"{np.mean(whole):.3f}"]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
