# SPDX-License-Identifier: Apache-2.0
"""Our training step and inference against the same network run as the methods' releases run it.

The releases compute in float32, leave the frozen teacher inside the autograd graph, compute its fourth stage and drop
it, and use ``F.cosine_similarity``, ``F.interpolate`` and SciPy's Gaussian. Everything else is equal: architecture,
batch, optimizer. Each variant runs in a process of its own, in turn, so that the peak memory is its own and a drift of
the machine's speed cancels in the ratio of each round.

    python benchmarks/bench_step.py --encoder wide_resnet50_2 --size 256 --batch 8 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time


def worker(args: argparse.Namespace) -> dict[str, float]:
    """CPU and wall seconds per step and peak memory of one variant, in this process."""
    import torch
    from scipy.ndimage import gaussian_filter
    from torch import nn
    from torch.nn import functional as F

    from monai_rdad.features import FeaturePairs
    from monai_rdad.inferers import AnomalyMap
    from monai_rdad.losses import CosineDistillationLoss, ScaleContrastiveLoss
    from monai_rdad.networks.encoders import ResNetEncoder
    from monai_rdad.networks.nets import RD4AD, SCRD

    class ReleaseTeacher(ResNetEncoder):
        """All four stages, parameters and activations in the graph."""

        def __init__(self) -> None:
            super().__init__(args.encoder, stages=4)

        def train(self, mode: bool = True) -> ReleaseTeacher:
            super().train(False)
            return self

        def forward(self, x):
            return super().forward(x)[:3]

    def release_distance(a, b):
        return torch.mean(1 - F.cosine_similarity(a.flatten(1), b.flatten(1)))

    def release_loss(pairs: FeaturePairs, labels=None):
        positive = sum(release_distance(a, b) for a, b in zip(pairs.targets, pairs.predictions, strict=True))
        if pairs.negatives is None:
            return positive
        return positive / sum(release_distance(a, b) for a, b in zip(pairs.negatives, pairs.predictions, strict=True))

    def release_map(network: nn.Module, image: torch.Tensor):
        pairs = network(image)
        total = 0
        for a, b in zip(pairs.targets, pairs.predictions, strict=True):
            distance = (1 - F.cosine_similarity(a, b))[:, None]
            total = total + F.interpolate(distance, size=image.shape[2:], mode="bilinear", align_corners=True)
        return [gaussian_filter(m, sigma=4) for m in total[:, 0].numpy()]

    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    release = args.worker == "release"
    cls = RD4AD if args.method == "rd4ad" else SCRD
    network = cls(args.encoder, "none", precision="fp32" if release else "auto")
    loss = CosineDistillationLoss() if args.method == "rd4ad" else ScaleContrastiveLoss()
    if release:
        network.teacher = ReleaseTeacher()
        network = network.to(memory_format=torch.contiguous_format)
        loss = release_loss
    image = torch.rand(args.batch, 3, args.size, args.size)
    inputs = (image,) if args.method == "rd4ad" else (image, (image + 0.02 * torch.randn_like(image)).clamp(0, 1))

    if args.mode == "train":
        network.train()
        trainable = [p for n, p in network.named_parameters() if not n.startswith("teacher.")]
        optimizer = torch.optim.Adam(trainable, lr=1e-3, betas=(0.5, 0.999), **({} if release else {"fused": True}))

        def step() -> None:
            optimizer.zero_grad()
            loss(network(*inputs)).backward()
            optimizer.step()
    else:
        network.eval()
        anomaly_map = AnomalyMap(network)

        @torch.no_grad()
        def step() -> None:
            if release:
                release_map(network, image)
            else:
                anomaly_map(image)

    step()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(args.steps):
        step()
    return {
        "cpu": (time.process_time() - cpu) / args.steps,
        "wall": (time.perf_counter() - wall) / args.steps,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def compare(args: argparse.Namespace, mode: str) -> None:
    """Both variants in turn; prints the ratios ours / release of each round."""
    ratios: dict[str, list[float]] = {"cpu": [], "wall": [], "memory": []}
    for _ in range(args.rounds):
        figures = {}
        for variant in ("ours", "release"):
            command = [sys.executable, __file__, "--worker", variant, "--mode", mode]
            for name in ("encoder", "method", "size", "batch", "steps"):
                command += [f"--{name}", str(getattr(args, name))]
            out = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
            figures[variant] = json.loads(out.splitlines()[-1])
        for key, values in ratios.items():
            values.append(figures["ours"][key] / figures["release"][key])
    for key, values in ratios.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(
            f"{args.method:6} {mode:5} {key:6} ours/release: median {middle:.2f} ({low:.2f} to {high:.2f})", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="wide_resnet50_2")
    parser.add_argument("--method", choices=["rd4ad", "scrd"], default="rd4ad")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="measured steps per round, after one for warming up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", choices=["train", "infer"], default=None, help="default: both")
    parser.add_argument("--worker", choices=["ours", "release"], default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args)))
        return
    for mode in [args.mode] if args.mode else ["train", "infer"]:
        compare(args, mode)


if __name__ == "__main__":
    main()
