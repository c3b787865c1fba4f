# SPDX-License-Identifier: Apache-2.0
r"""What the teacher's features tell without any training: baselines for ``monai-rdad benchmark``.

Features are the two groups of DNP-ConFormer's ResNet encoder: stages 1 and 2 as one vector per position, and stage 3,
on the grid of stage 3. A map is the sum of both groups' cosine distances to

- ``mean``: the mean of all positions of all training normals, one vector;
- ``position_mean``: their mean at the same position;
- ``neighbour``: the nearest of all positions of the training normals (of at most ``--bank``, drawn at random).

    python scripts/study_baselines.py --out baselines --data brain=PATH retina=PATH --weights PATH --size 128
    python scripts/study_baselines.py --out baselines --table
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from study_rows import read, table  # beside this file
from torch import Tensor
from torch.nn.functional import normalize

from monai_rdad.data import load_manifest, manifest_hash
from monai_rdad.features import FeaturePairs
from monai_rdad.handlers.mlflow import git_commit
from monai_rdad.inferers import AnomalyMap
from monai_rdad.metrics import (
    PixelAccumulator,
    bootstrap_image_metrics,
    bootstrap_pixel_metrics,
    group_strata,
    image_metrics,
)
from monai_rdad.networks.encoders.tokens import TokenResNet
from monai_rdad.networks.encoders.weights import load_encoder_weights
from monai_rdad.transforms import NormalizeByPresetd, QuantizeIntensityd, ReadImaged, ReadMaskd, ResizeInPlaned
from monai_rdad.transforms import ScoreReduction as Score

BASELINES = ("mean", "position_mean", "neighbour")
SCORES = ("max", "top", "mean")


def images(items: list[dict[str, Any]], channels: int, size: int, masks: bool) -> list[dict[str, Any]]:
    """Items as the bundles prepare them, "image" uint8 (C, size, size)."""
    keys = ["image", "mask"] if masks else ["image"]
    chain: list[Any] = [ReadImaged("image", channels=channels)]
    chain += [ReadMaskd("mask", ref_key="image")] if masks else []
    chain += [NormalizeByPresetd("image", preset="auto")]
    chain += [ResizeInPlaned(keys, size=size, nearest=[False, True][: len(keys)]), QuantizeIntensityd("image")]
    transform = Compose(chain)
    return [dict(transform(item)) for item in items]


@torch.no_grad()
def features(encoder: TokenResNet, items: list[dict[str, Any]]) -> list[Tensor]:
    """Both groups (N, C, h, w) at unit length."""
    groups: list[list[Tensor]] = [[], []]
    for start in range(0, len(items), 16):
        batch = torch.stack([torch.as_tensor(item["image"]) for item in items[start : start + 16]]).float() / 255
        for found, group in zip(groups, encoder.groups(encoder(batch)), strict=True):
            found.append(normalize(group, dim=1))
    return [torch.cat(found) for found in groups]


def references(baseline: str, bank: Tensor, query: Tensor, most: int) -> Tensor:
    """What each position of the query (N, C, h, w) is compared with, broadcast to its shape."""
    if baseline == "mean":
        return bank.mean((0, 2, 3), keepdim=True).expand_as(query)
    if baseline == "position_mean":
        return bank.mean(0, keepdim=True).expand_as(query)
    rows = bank.permute(0, 2, 3, 1).flatten(0, 2)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]]
    nearest = [rows[(q.flatten(1).T @ rows.T).argmax(1)].T.view_as(q) for q in query]
    return torch.stack(nearest)


def evaluate(maps: Tensor, items: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Metrics with intervals, as the bundles' evaluation has them, for each reduction."""
    labels, groups = [int(i["label"]) for i in items], [str(i["group"]) for i in items]
    pixels = PixelAccumulator()
    for anomaly_map, item in zip(maps[:, 0].numpy(), items, strict=True):
        pixels.update(anomaly_map, torch.as_tensor(item["mask"])[0].numpy(), str(item["group"]), str(item["name"]))
    strata = group_strata(groups, labels)
    shared = dict(pixels.compute())
    intervals = bootstrap_pixel_metrics(pixels, strata)
    result = {}
    for mode in SCORES:
        scores = Score(mode)(maps).tolist()
        metrics = shared | image_metrics(scores, labels)
        for name, (low, high) in (intervals | bootstrap_image_metrics(scores, labels, groups)).items():
            metrics |= {f"{name}_ci_low": low, f"{name}_ci_high": high}
        result[mode] = metrics | {"n_images": len(labels), "n_abnormal": sum(labels)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="folders with a manifest.json")
    parser.add_argument("--colour", nargs="*", default=[], metavar="NAME", help="data sets read with 3 channels")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--weights", default="none", help="teacher: embedded, imagenet, none, or a path")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--bank", type=int, default=20000, help="positions kept for the nearest neighbour")
    parser.add_argument("--table", action="store_true", help="print the table of the results and stop")
    args = parser.parse_args()
    if args.table:
        print(table(read(args.out / "results.jsonl")))
        return
    encoder = TokenResNet(args.encoder)
    load_encoder_weights(encoder, args.encoder, args.weights)
    fuse = AnomalyMap(encoder, sigma=4.0).fuse
    args.out.mkdir(parents=True, exist_ok=True)
    for pair in args.data:
        name, _, folder = pair.partition("=")
        splits = load_manifest(Path(folder) / "manifest.json", required=("training", "testing"))
        channels = 3 if name in args.colour else 1
        normal = features(encoder, images(splits["training"], channels, args.size, masks=False))
        items = images(splits["testing"], channels, args.size, masks=True)
        query = features(encoder, items)
        for baseline in BASELINES:
            known = [references(baseline, bank, q, args.bank) for bank, q in zip(normal, query, strict=True)]
            metrics = evaluate(fuse(FeaturePairs(known, query), args.size, args.size), items)
            key = {"method": baseline, "data": name, "weights": Path(args.weights).stem, "seed": 0}
            row = {
                "key": key | {"image_size": args.size},
                "metrics": metrics,
                "manifest_sha256": manifest_hash(Path(folder) / "manifest.json"),
                "commit": git_commit(),
                "command": " ".join(sys.argv),
            }
            with (args.out / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(key, {mode: round(m["image_auroc"], 3) for mode, m in metrics.items()}, flush=True)


if __name__ == "__main__":
    main()
