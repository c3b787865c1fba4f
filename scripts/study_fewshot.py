# SPDX-License-Identifier: Apache-2.0
r"""Leave one organ out: D2-4FAD beside two baselines, on the same draws of supports.

For each data set and seed the bundle ``d24fad`` is trained once on all other sets. Then, for each number of supports
and each draw of them from the left-out set's normal training images, its test images are judged by

- every form of the method that ``--forms`` names, each trained with its own settings;
- ``neighbour``, the distance of the teacher's features to the nearest features of the supports, at the same pixel, in
  a window, and everywhere: nothing is learned;
- ``rd4ad``, trained on the supports alone for a fixed number of steps.

One JSON line per organ, seed and number of supports, with a figure per draw, is appended to ``results.jsonl`` in the
output folder; what stands there already is skipped.

    python scripts/study_fewshot.py --out fewshot --weights PATH \\
        --data brain=PATH retina=PATH histo=PATH ...
    python scripts/study_fewshot.py --out fewshot --table
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from study_rows import read  # beside this file
from torch import Tensor, nn

SCORES = ("max", "mean", "top")
TOP = 0.1  # of the pixels, in the score "top"
# settings of the network that differ from the bundle's defaults
PUBLISHED = {
    "compare": "student",
    "weighting": "distances",
    "logits": "published",
    "match_window": 0,
    "pooled": False,
    "whole_maps": True,
}
FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": PUBLISHED | {"self_distillation": 1.0, "distillation": 0.1},
}

BASELINES = ("neighbour", "neighbour_window1", "neighbour_everywhere", "rd4ad")


class Organ:
    """Images of one data set, as the bundle prepares them."""

    def __init__(self, name: str, folder: str, channels: int, size: int) -> None:
        from monai.transforms import Compose

        from monai_rdad.data import load_manifest, manifest_hash
        from monai_rdad.transforms import NormalizeByPresetd, QuantizeIntensityd, ReadImaged, ReadMaskd, ResizeInPlaned

        self.name, self.folder, self.hash = name, folder, manifest_hash(Path(folder) / "manifest.json")
        splits = load_manifest(Path(folder) / "manifest.json")
        reads = [ReadImaged("image", channels=channels)]
        finish = [NormalizeByPresetd("image", preset="auto"), ResizeInPlaned("image", size=size)]
        support = Compose([*reads, *finish, QuantizeIntensityd("image")])
        finish[-1] = ResizeInPlaned(["image", "mask"], size=size, nearest=[False, True])
        test = Compose([*reads, ReadMaskd("mask", ref_key="image"), *finish, QuantizeIntensityd("image")])
        self.training = torch.stack([torch.as_tensor(support(item)["image"]) for item in splits["training"]])
        items = [test(item) for item in splits["testing"]]
        self.images = torch.stack([torch.as_tensor(item["image"]) for item in items])
        self.masks = torch.stack([torch.as_tensor(item["mask"]) for item in items])[:, 0].numpy()
        self.labels = [int(item["label"]) for item in splits["testing"]]

    def draw(self, shots: int, seed: int) -> Tensor:
        """Supports in [0, 1], the same for every method."""
        from monai_rdad.data import draw_support

        items = [{"index": i} for i in range(len(self.training))]
        return self.training[[item["index"] for item in draw_support(items, shots, seed)]].float() / 255


def figures(maps: Tensor, organ: Organ) -> dict[str, float]:
    """Image AUROC by each score, and pixel AUROC where there are masks."""
    from monai_rdad.metrics import PixelAccumulator, image_metrics
    from monai_rdad.transforms import ScoreReduction

    found = {}
    for mode in SCORES:
        scores = ScoreReduction(mode, TOP)(maps).tolist()
        found[f"image_auroc_{mode}"] = image_metrics(scores, organ.labels)["image_auroc"]
    pixels = PixelAccumulator()
    for i, (anomaly_map, mask) in enumerate(zip(maps[:, 0].cpu().numpy(), organ.masks, strict=True)):
        pixels.update(anomaly_map, mask, str(i), str(i))
    if "pixel_auroc" in (metrics := pixels.compute()):
        found["pixel_auroc"] = metrics["pixel_auroc"]
    return found


Judge = Callable[[Tensor, int], Tensor]  # from supports and the number of their draw to the maps of all test images


def few_shot(network: Any, organ: Organ, device: torch.device, batch: int = 16) -> Judge:
    """Judges the test images, which pass through the network once for all draws."""
    from monai_rdad.inferers import AnomalyMap
    from monai_rdad.networks.precision import mixed_precision

    anomaly_map = AnomalyMap(network.to(device)).eval()
    size = organ.images.shape[2]
    with torch.no_grad(), mixed_precision(device, network.precision):
        maps = [network.encode(x.to(device).float() / 255) for x in organ.images.split(batch)]

    @torch.no_grad()
    def judge(support: Tensor, draw: int) -> Tensor:
        network.set_support(support.to(device))
        kept = [network.map1, network.map2, network.map3], [network.key1, network.key2, network.key3]
        return torch.cat([anomaly_map.fuse(network.match(*pair, *kept), size, size).cpu() for pair in maps])

    return judge


def trained(form: dict[str, Any], organs: list[Organ], held: str, seed: int, args: argparse.Namespace) -> nn.Module:
    """The bundle's network, trained on all organs but one."""
    from monai_rdad.apps.bundle import run_bundle

    place = args.out / "run"
    shutil.rmtree(place, ignore_errors=True)
    settings = {
        "bundle_root": str(place),
        "manifests": [f"{organ.name}={organ.folder}/manifest.json" for organ in organs],
        "holdout": held,
        "channels": 3,  # grey images are read as grey RGB, so that all organs fit into one batch
        "encoder": args.encoder,
        "weights": args.weights,
        "image_size": args.size,
        "max_epochs": args.epochs,
        "episodes": args.episodes,
        "batch_size": args.batch_size,
        "seed": seed,
        "tracking_uri": "none",
    }
    network: nn.Module = run_bundle("d24fad", "train", settings | form).get("network_def")
    shutil.rmtree(place, ignore_errors=True)
    return network


def rd4ad(organ: Organ, args: argparse.Namespace, device: torch.device) -> Judge:
    """RD4AD trained on the supports, all of them in every step."""
    from monai_rdad.features import FeaturePairs
    from monai_rdad.inferers import AnomalyMap
    from monai_rdad.losses import CosineDistillationLoss
    from monai_rdad.networks.nets import RD4AD
    from monai_rdad.networks.nets.rd4ad import build_student
    from monai_rdad.networks.precision import mixed_precision

    # the teacher is frozen: test images pass through it once for all draws, supports once per draw
    network = RD4AD(args.encoder, args.weights).to(device).eval()
    teacher, anomaly_map, size = network.teacher, AnomalyMap(network), organ.images.shape[2]
    with torch.no_grad(), mixed_precision(device, "auto"):
        tests = [teacher(x.to(device).float() / 255) for x in organ.images.split(16)]

    def judge(support: Tensor, draw: int) -> Tensor:
        torch.manual_seed(draw)
        bottleneck, decoder = (
            part.to(device, memory_format=torch.channels_last).train() for part in build_student(args.encoder)
        )
        parameters = [*bottleneck.parameters(), *decoder.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.005, betas=(0.5, 0.999), fused=True)
        loss = CosineDistillationLoss()
        with mixed_precision(device, "auto"):
            with torch.no_grad():
                maps = teacher(support.to(device))
            for _ in range(args.rd4ad_steps):
                optimizer.zero_grad()
                loss(FeaturePairs(maps, decoder(bottleneck(*maps)))).backward()
                optimizer.step()
            bottleneck.eval(), decoder.eval()
            with torch.no_grad():
                pairs = [FeaturePairs(maps, decoder(bottleneck(*maps))) for maps in tests]
        return torch.cat([anomaly_map.fuse(pair, size, size).cpu() for pair in pairs])

    return judge


def study(args: argparse.Namespace) -> None:
    """All that is not yet in the results."""
    from monai_rdad.handlers.mlflow import git_commit
    from monai_rdad.networks.nets import D24FAD

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    done = {json.dumps(row["key"], sort_keys=True) for row in read(results)}
    organs = [Organ(*pair.split("=", 1), channels=3, size=args.size) for pair in args.data]

    def record(method: str, organ: Organ, seed: int, make: Callable[[], Judge]) -> None:
        ready = None
        for shots in args.shots:
            key = {"method": method, "organ": organ.name, "seed": seed, "shots": shots, "draws": args.draws}
            key |= {"encoder": args.encoder, "size": args.size, "epochs": args.epochs, "episodes": args.episodes}
            if json.dumps(key, sort_keys=True) in done:
                continue
            ready = ready or make()
            start = time.perf_counter()
            draws = [figures(ready(organ.draw(shots, draw), draw), organ) for draw in range(args.draws)]
            row = {
                "key": key,
                "draws": draws,
                "n_images": len(organ.labels),
                "n_abnormal": sum(organ.labels),
                "seconds": round(time.perf_counter() - start, 1),
                "manifest_sha256": organ.hash,
                "commit": git_commit(),
                "command": " ".join(sys.argv),
            }
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            best = {m: round(statistics.fmean(d[f"image_auroc_{m}"] for d in draws), 3) for m in SCORES}
            print(f"{method} {organ.name} seed {seed} K {shots}: image AUROC {best}", flush=True)

    def neighbour(organ: Organ, window: int | None) -> Judge:
        options = {"start": "bottleneck", "weighting": "nearest", "compare": "teacher", "window": window}
        options["pooled"] = window is None  # as the default form has it
        return few_shot(D24FAD(args.encoder, args.weights, **options), organ, device)

    def method(organ: Organ, form: dict[str, Any], seed: int) -> Judge:
        return few_shot(trained(form, organs, organ.name, seed, args), organ, device)

    for organ in [o for o in organs if not args.only or o.name in args.only]:
        for name, window in (("neighbour", 0), ("neighbour_window1", 1), ("neighbour_everywhere", None)):
            if name in args.baselines:
                record(name, organ, 0, partial(neighbour, organ, window))
        if "rd4ad" in args.baselines:
            record("rd4ad", organ, 0, partial(rd4ad, organ, args, device))
        for seed in args.seeds:
            for name in args.forms:
                record(name, organ, seed, partial(method, organ, FORMS[name], seed))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table: mean over draws and seeds, and the standard deviation over draws."""
    names = [*(f"image_auroc_{mode}" for mode in SCORES), "pixel_auroc"]
    lines = ["| organ | K | method | n (abnormal) | seeds x draws | " + " | ".join(names) + " |"]
    lines.append("|" + " --- |" * (5 + len(names)))
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        key = row["key"]
        groups.setdefault((key["organ"], key["shots"], key["method"]), []).append(row)
    averages: dict[tuple[int, str], list[list[float]]] = {}
    for (organ, shots, method), group in sorted(groups.items()):
        draws = [draw for row in group for draw in row["draws"]]
        cells = [organ, str(shots), method, f"{group[0]['n_images']} ({group[0]['n_abnormal']})"]
        cells.append(f"{len(group)} x {len(group[0]['draws'])}")
        for name in names:
            values = [draw[name] for draw in draws if name in draw]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.fmean(values):.3f} ± {spread:.3f}" if values else "")
        means = [statistics.fmean(draw[name] for draw in draws) for name in names[: len(SCORES)]]
        averages.setdefault((shots, method), []).append(means)
        lines.append("| " + " | ".join(cells) + " |")
    for (shots, method), organs in sorted(averages.items()):
        figures = [f"{statistics.fmean(column):.3f}" for column in zip(*organs, strict=True)]
        lines.append("| " + " | ".join([f"mean of {len(organs)}", str(shots), method, "", "", *figures, ""]) + " |")
    return "\n".join([*lines, "", *differences(rows)])


def differences(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown table of each form of the method minus each other method, on the same organs and draws.

    The difference of a draw is its mean over organs and the form's seeds; the spread is that over draws. The organs on
    which the mean over draws is higher are counted.
    """
    found: dict[tuple[int, str], dict[str, list[list[dict[str, float]]]]] = {}
    for row in rows:
        key = row["key"]
        found.setdefault((key["shots"], key["method"]), {}).setdefault(key["organ"], []).append(row["draws"])
    lines = ["| form | minus | K | organs | " + " | ".join(f"image_auroc_{mode}" for mode in SCORES) + " |"]
    lines.append("|" + " --- |" * (4 + len(SCORES)))
    for (shots, form), organs in sorted(found.items()):
        others = [method for k, method in sorted(found) if k == shots and method != form]
        for other in others if form in FORMS else []:
            common = sorted(set(organs) & set(found[shots, other]))
            cells = [form, other, str(shots), str(len(common))]
            for mode in SCORES:
                table = []  # organs x draws
                for organ in common:
                    sides = []
                    for seeds in (organs[organ], found[shots, other][organ]):
                        sides.append(
                            [statistics.fmean(d[f"image_auroc_{mode}"] for d in ds) for ds in zip(*seeds, strict=True)]
                        )
                    table.append([a - b for a, b in zip(*sides, strict=True)])
                draws = [statistics.fmean(column) for column in zip(*table, strict=True)]
                spread = statistics.stdev(draws) if len(draws) > 1 else 0.0
                wins = sum(statistics.fmean(row) > 0 for row in table)
                cells.append(
                    f"{statistics.fmean(draws):+.3f} ± {spread:.3f} ({wins} of {len(common)})" if draws else ""
                )
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="folders with a manifest.json")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="sets to leave out in turn; default all")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--weights", default="none", help="teacher: embedded, imagenet, none, or a path")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--shots", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--forms", nargs="*", default=["default"], choices=list(FORMS))
    parser.add_argument("--baselines", nargs="*", default=list(BASELINES), choices=BASELINES)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=800, help="per epoch")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rd4ad_steps", type=int, default=50)
    parser.add_argument("--table", action="store_true", help="print the table of the results and stop")
    args = parser.parse_args()
    if args.table:
        print(table(read(args.out / "results.jsonl")))
        return
    study(args)


if __name__ == "__main__":
    main()
