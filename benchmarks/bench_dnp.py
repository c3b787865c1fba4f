# SPDX-License-Identifier: Apache-2.0
"""DNP's training step and inference, timed, profiled, and against the same network run in a plain way.

The plain way computes in float32, writes the transformer's attention out, steps the optimizer tensor by tensor and, as
the authors' release does, rebuilds on the teacher's side too, with gradients that nobody uses. All else is equal:
architecture, batch, loss. Each variant runs in a process of its own, in turn, so that the peak memory is its own and a
drift of the machine's speed cancels in the ratio of each round.

    python benchmarks/bench_dnp.py --size 252 --batch 4 --rounds 3
    python benchmarks/bench_dnp.py --size 252 --batch 32 --device cuda --profile
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any


def make_plain(network: Any) -> None:
    """Change a network, and torch's attention in this process, to the plain way."""
    import torch
    from torch import nn

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v

    nn.functional.scaled_dot_product_attention = attend
    network.precision = "fp32"


def second_reconstruction(network: Any, image: Any) -> None:
    """The teacher's tokens through extractor, bottleneck and decoder, as a graph."""
    import torch

    levels = network.teacher(image)
    tokens = torch.stack([embed(level) for embed, level in zip(network.embeds, levels, strict=True)]).mean(0)
    tokens = tokens.flatten(2).transpose(1, 2)
    network.decoder(network.bottleneck(tokens), network.extractor(tokens))


def make_step(args: argparse.Namespace, plain: bool) -> Callable[[], None]:
    """One training step or one inference of a variant."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    from monai_rdad.inferers import AnomalyMap
    from monai_rdad.losses import PrototypeLoss
    from monai_rdad.networks.nets import DNP
    from monai_rdad.optimizers import StableAdamW

    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    network = DNP(args.encoder, "none", blocks=8).to(args.device)
    if plain:
        make_plain(network)
    image = torch.rand(args.batch, 3, args.size, args.size, device=args.device)
    if args.mode == "infer":
        anomaly_map = AnomalyMap(network).eval()

        @torch.no_grad()
        def infer() -> None:
            anomaly_map(image)

        return infer
    network.train()
    groups = network.parameter_groups(1e-4, 1e-5)
    # tensor by tensor: a group for each
    shares = [[p] for g in groups for p in g["params"]] if plain else [g["params"] for g in groups]
    optimizer = StableAdamW([{"params": p} for p in shares], lr=1e-4, weight_decay=1e-4, amsgrad=True)
    loss = PrototypeLoss()

    def train() -> None:
        optimizer.zero_grad()
        value = loss(network(image))
        if plain:
            second_reconstruction(network, image)
        value.backward()
        clip_grad_norm_(groups[0]["params"], 0.1)
        optimizer.step()
        network.update_teacher()

    return train


def worker(args: argparse.Namespace) -> dict[str, float]:
    """Seconds per step and peak memory of one variant, in this process; with ``--profile`` a table on the way."""
    import torch

    step = make_step(args, args.worker == "plain")
    cuda = args.device.startswith("cuda")
    wait = torch.cuda.synchronize if cuda else nullcontext
    step()
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(args.steps):
        step()
    wait()
    figures = {
        "cpu": (time.process_time() - cpu) / args.steps,
        "wall": (time.perf_counter() - wall) / args.steps,
        "memory": torch.cuda.max_memory_allocated() / 2**30
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if args.profile:
        with torch.profiler.profile() as profile:
            step()
            wait()
        order = "self_device_time_total" if cuda else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=40))
    return figures


def run(args: argparse.Namespace, mode: str, variant: str) -> dict[str, float]:
    """Figures of one variant in a process of its own."""
    command = [sys.executable, __file__, "--worker", variant, "--mode", mode] + ["--profile"] * args.profile
    for name in ("encoder", "size", "batch", "steps", "device"):
        command += [f"--{name}", str(getattr(args, name))]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ).stdout
    *before, last = out.rstrip().splitlines()
    if before:
        print("\n".join(before), flush=True)
    return dict(json.loads(last))


def compare(args: argparse.Namespace, mode: str) -> None:
    """Both variants in turn; prints our figures and the ratios ours / plain of the rounds."""
    ratios: dict[str, list[float]] = {"cpu": [], "wall": [], "memory": []}
    for _ in range(args.rounds):
        ours, plain = run(args, mode, "ours"), run(args, mode, "plain")
        for key, values in ratios.items():
            values.append(ours[key] / plain[key])
    what = f"{args.encoder}, {args.size} px, batch {args.batch}, {args.device}, {mode}"
    print(f"{what}: last round {ours['wall']:.3f} s per step, {ours['memory']:.2f} GiB", flush=True)
    for key, values in ratios.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{mode:5} {key:6} ours/plain: median {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="vit_small_dinov2_reg4")
    parser.add_argument("--size", type=int, default=252)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="measured steps per round, after one for warming up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", choices=["train", "infer"], default=None, help="default: both")
    parser.add_argument("--profile", action="store_true", help="profile one step of our variant and stop")
    parser.add_argument("--worker", choices=["ours", "plain"], default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        figures = worker(args)
        print(json.dumps(figures))
        return
    for mode in [args.mode] if args.mode else ["train", "infer"]:
        if args.profile:
            print(f"{mode}: {run(args, mode, 'ours')}", flush=True)
        else:
            compare(args, mode)


if __name__ == "__main__":
    main()
