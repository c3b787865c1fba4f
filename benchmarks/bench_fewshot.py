# SPDX-License-Identifier: Apache-2.0
"""What a query costs with the supports kept in the network, against computing them again for each query.

Both are measured in turn in one process, round by round, on one thread; the ratio of each round is that of CPU times.
Matching costs the same in both and lowers the ratio, and so does a batch of one query, for which convolutions at low
resolution are bound by reading their weights.

    python benchmarks/bench_fewshot.py --size 128 --shots 4
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from monai_rdad.inferers import AnomalyMap
from monai_rdad.networks.nets import D24FAD

# settings of the network as in the bundle's train.yaml, and as published
FORMS: dict[str, dict[str, Any]] = {
    "default": {"weighting": "nearest", "window": None, "pooled": True, "compare": "whitened"},
    "published": {"weighting": "distances", "logits": "published"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--form", default="default", choices=list(FORMS))
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8, help="queries per pass")
    parser.add_argument("--queries", type=int, default=1, help="passes per round and variant")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    network = D24FAD(args.encoder, "none", start="bottleneck", precision=args.precision, **FORMS[args.form])
    anomaly_map = AnomalyMap(network).eval()
    image, support = torch.rand(args.batch, 1, args.size, args.size), torch.rand(args.shots, 1, args.size, args.size)
    network.set_support(support)

    @torch.no_grad()
    def seconds(kept: bool) -> float:
        start = time.process_time()
        for _ in range(args.queries):
            pairs = network(image) if kept else network(image, support.expand(args.batch, -1, -1, -1, -1))
            anomaly_map.fuse(pairs, args.size, args.size)
        return (time.process_time() - start) / args.queries / args.batch

    seconds(True), seconds(False)
    ratios, costs = [], []
    for _ in range(args.rounds):
        kept, computed = seconds(True), seconds(False)
        ratios.append(computed / kept)
        costs.append(kept)
    print(
        f"{args.encoder} {args.size} px, {args.shots} supports, batch {args.batch}, "
        f"{args.form}: "
        f"computed again / kept {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"one query {1000 * statistics.median(costs):.0f} ms CPU"
    )


if __name__ == "__main__":
    main()
