# SPDX-License-Identifier: Apache-2.0
r"""Trains and evaluates bundles over data sets, teachers and seeds, and tabulates what came out.

One JSON line per run is appended to ``results.jsonl`` in the output folder; runs that stand there already are skipped,
so that an interrupted study goes on where it stopped.

    python scripts/study.py --out results --methods rd4ad scrd --data brain=PATH retina=PATH \\
        --weights imagenet none --seeds 0 1 2 -- --max_epochs 20
    python scripts/study.py --out results --table

Arguments behind ``--`` go to every training and evaluation, as on the bundle's command line.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

PIXEL = {"pixel_auroc": "pixel AUROC", "aupro_0.3": "AUPRO"}


def study(args: argparse.Namespace, extra: dict[str, Any]) -> None:
    """All runs that are not yet in the results."""
    from monai_rdad.apps.bundle import run_bundle
    from monai_rdad.data import manifest_hash
    from monai_rdad.handlers.mlflow import git_commit

    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    done = {json.dumps(row["key"], sort_keys=True) for row in read(results)}
    for seed in args.seeds:
        for pair in args.data:
            name, _, folder = pair.partition("=")
            channels = 3 if name in args.colour else 1
            for weights in args.weights:
                for method in args.methods:
                    key = {"method": method, "data": name, "weights": Path(weights).stem, "seed": seed, **extra}
                    if json.dumps(key, sort_keys=True) in done:
                        continue
                    place = args.out / "run"
                    shutil.rmtree(place, ignore_errors=True)
                    settings = {
                        "bundle_root": str(place),
                        "dataset_dir": folder,
                        "weights": weights,
                        "channels": channels,
                        "seed": seed,
                        "tracking_uri": "none",
                        **extra,
                    }
                    start = time.perf_counter()
                    run_bundle(method, "train", settings)
                    seconds = time.perf_counter() - start
                    settings["weights"] = "none"
                    metrics = {
                        mode: run_bundle(method, "evaluate", settings | {"score_mode": mode}).metrics
                        for mode in args.scores
                    }
                    row = {
                        "key": key,
                        "metrics": metrics,
                        "train_seconds": round(seconds, 1),
                        "manifest_sha256": manifest_hash(Path(folder) / "manifest.json"),
                        "commit": git_commit(),
                        "command": " ".join(sys.argv),
                    }
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    figures = {mode: round(m["image_auroc"], 3) for mode, m in metrics.items()}
                    print(f"{key}: image AUROC {figures}, {seconds:.0f} s", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a results file, none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table: mean over seeds, their range, and the mean 95 % bootstrap interval over test images.

    One row per data set, method, teacher and further settings; image AUROC for each reduction of the map.
    """
    modes = [mode for mode in ("max", "top", "mean") if any(mode in row["metrics"] for row in rows)]
    figures = [("image_auroc", mode) for mode in modes] + [(figure, "") for figure in PIXEL]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = row["key"]
        further = ", ".join(f"{k} {v}" for k, v in key.items() if k not in ("data", "method", "weights", "seed"))
        groups.setdefault((key["data"], key["method"], key["weights"], further), []).append(row["metrics"])
    common = set.intersection(*({*key[3].split(", ")} for key in groups)) if groups else set()
    heads = ["data", "method", "teacher", "n (abnormal)", "seeds"]
    heads += [f"image AUROC, {mode}" for mode in modes] + list(PIXEL.values())
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for (data, method, weights, further), runs in sorted(groups.items()):
        own = ", ".join(part for part in further.split(", ") if part and part not in common)
        first = next(iter(runs[0].values()))
        cells = [data, method + (f" ({own})" if own else ""), weights]
        cells += [f"{first['n_images']:.0f} ({first['n_abnormal']:.0f})", str(len(runs))]
        for figure, mode in figures:
            found = [run.get(mode, {}) if mode else next(iter(run.values())) for run in runs]
            values = [metrics[figure] for metrics in found if figure in metrics]
            if not values:
                cells.append("")
                continue
            low, high = (
                statistics.fmean(metrics[f"{figure}_ci_{end}"] for metrics in found if figure in metrics)
                for end in ("low", "high")
            )
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread} [{low:.2f}, {high:.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--methods", nargs="+", default=["rd4ad", "scrd"])
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="folders with a manifest.json")
    parser.add_argument("--colour", nargs="*", default=[], metavar="NAME", help="data sets read with 3 channels")
    parser.add_argument("--weights", nargs="+", default=["none"], help="teachers: imagenet, none, or paths")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scores", nargs="+", default=["max", "mean"], help="reductions of the map to a score")
    parser.add_argument("--table", action="store_true", help="print the table of the results and stop")
    known = sys.argv[1:]
    extra: dict[str, Any] = {}
    if "--" in known:
        at = known.index("--")
        pairs = known[at + 1 :]
        known = known[:at]
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            try:
                extra[name.removeprefix("--")] = json.loads(value)
            except ValueError:
                extra[name.removeprefix("--")] = value
    args = parser.parse_args(known)
    if args.table:
        print(table(read(args.out / "results.jsonl")))
        return
    logging.basicConfig(level=logging.WARNING)
    study(args, extra)


if __name__ == "__main__":
    main()
