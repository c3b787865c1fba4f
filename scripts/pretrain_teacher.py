# SPDX-License-Identifier: Apache-2.0
r"""Trains a teacher on procedural images: stages 1 to 3 of a ResNet-18, no data, no download.

    python scripts/pretrain_teacher.py --out teacher --epochs 30 --cool 8
    python scripts/pretrain_teacher.py --out mine --objectives contrast --manifest /data/mine/manifest.json --epochs 30

An epoch's pictures are a function of seed, epoch and kind of device, rendered when it starts and shown ``--repeats``
times, turned, mirrored and acquired anew. A training that was stopped goes on where its last epoch ended, with the same
result; more ``--epochs`` continue one that had ended. After every epoch the folder holds ``checkpoint.pt`` and the
moving average of the encoder's weights, ``teacher.safetensors``, in half precision with the settings as metadata, to be
given to a bundle as ``--weights``. The learning rate rises, stays, and, with ``--cool N``, falls to 0 over the last N
epochs.

Objectives, summed: ``dense``, the class of the texture at a position, at all three stages; ``corrupt``, where a part
was replaced, likewise; ``classify``, the class of a picture's composition; ``contrast``, which two acquisitions are of
one picture (SimCLR: Chen et al., ICML 2020), which is also possible with the normal training images of a data set.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from monai.utils import path_to_sqlite_uri
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import (
    affine_grid,
    avg_pool2d,
    binary_cross_entropy_with_logits,
    cross_entropy,
    grid_sample,
    interpolate,
    normalize,
)

from monai_rdad.data import load_manifest, manifest_title
from monai_rdad.data.synthetic_scenes import IGNORED, TextureScenes, acquire, corrupt
from monai_rdad.data.synthetic_textures import seeded
from monai_rdad.handlers.mlflow import git_commit
from monai_rdad.networks.encoders import ResNetEncoder
from monai_rdad.networks.encoders.resnet import RESNETS
from monai_rdad.transforms import NormalizeByPresetd, QuantizeIntensityd, ReadImaged, ResizeInPlaned
from monai_rdad.utils import atomic_path

OBJECTIVES = ("dense", "corrupt", "classify", "contrast")
STRIDES = (4, 8, 16)


class Pretraining(nn.Module):
    """Encoder with the heads of the chosen objectives; the forward pass gives their losses.

    Args:
        encoder: name of a ResNet.
        objectives: of :data:`OBJECTIVES`.
        classes: number of texture classes.
        compositions: number of classes of whole pictures.
        stage_weights: weights of the three stages in the losses per position.
    """

    def __init__(
        self, encoder: str, objectives: list[str], classes: int, compositions: int, stage_weights: list[float]
    ) -> None:
        super().__init__()
        self.objectives, self.stage_weights = objectives, stage_weights
        self.encoder = ResNetEncoder(encoder, stages=3)
        widths = [RESNETS[encoder].channels(stage) for stage in (1, 2, 3)]
        self.heads = nn.ModuleDict()
        for name, out in (("dense", classes), ("corrupt", 1)):
            if name in objectives:
                self.heads[name] = nn.ModuleList([nn.Conv2d(width, out, 1) for width in widths])
        if "classify" in objectives:
            hidden = [nn.Linear(widths[2], 512, bias=False), nn.BatchNorm1d(512), nn.ReLU()]
            self.heads["classify"] = nn.Sequential(*hidden, nn.Linear(512, compositions))
        if "contrast" in objectives:
            self.heads["contrast"] = nn.Sequential(nn.Linear(widths[2], 256), nn.ReLU(), nn.Linear(256, 128))

    def maps(self, image: Tensor) -> list[Tensor]:
        """Maps of the three stages, also the first in the precision of the context."""
        e = self.encoder
        x = ((image - e.mean) / e.std).contiguous(memory_format=torch.channels_last)
        first = e.beginning(x)
        assert e.layer2 is not None and e.layer3 is not None
        second = e.layer2(first)
        return [first, second, e.layer3(second)]

    def forward(self, image: Tensor, labels: list[Tensor], whole: Tensor, g: torch.Generator) -> dict[str, Tensor]:
        """Losses by objective.

        Args:
            image: pictures before their acquisition (B, 3, H, W).
            labels: classes per cell of 4, 8 and 16 pixels, each (B, H / stride, W / stride).
            whole: class of each picture's composition (B,).
            g: source of what is random.
        """
        mask = None
        if "corrupt" in self.heads:
            image, mask = corrupt(image, g)
            changed = [interpolate(mask, size=label.shape[-2:], mode="area")[:, 0] > 0.3 for label in labels]
            labels = [torch.where(c, IGNORED, label) for c, label in zip(changed, labels, strict=True)]
        views = [acquire(image, g)]
        if "contrast" in self.heads:
            views.append(zoomed(acquire(image, g), g))
            if len(self.objectives) == 1:  # the labels of the others are those of the whole picture
                views[0] = zoomed(views[0], g)
        maps = self.maps(torch.cat(views))
        losses: dict[str, Tensor] = {}
        if "dense" in self.heads:
            losses["dense"] = self.per_stage([self.dense(i, maps[i], labels[i], g) for i in range(3)])
        if mask is not None:
            found = [head(m[: len(image)]) for head, m in zip(self.heads["corrupt"], maps, strict=True)]  # type: ignore[arg-type]
            wanted = [avg_pool2d(mask, stride) for stride in STRIDES]
            pairs = zip(found, wanted, strict=True)
            losses["corrupt"] = self.per_stage([binary_cross_entropy_with_logits(a.float(), b) for a, b in pairs])
        if "classify" in self.heads:
            losses["classify"] = cross_entropy(
                self.heads["classify"](maps[2][: len(image)].mean((2, 3))).float(), whole
            )
        if "contrast" in self.heads:
            z = normalize(self.heads["contrast"](maps[2].mean((2, 3))).float(), dim=1)
            with torch.autocast(z.device.type, enabled=False):  # bfloat16 would round the logits to steps of 0.03
                near = (z @ z.T / 0.15).fill_diagonal_(-1e4)
            losses["contrast"] = cross_entropy(near, torch.arange(len(z), device=z.device).roll(len(z) // 2))
        return losses

    def per_stage(self, losses: list[Tensor]) -> Tensor:
        """Weighted mean over the stages."""
        weighted = [weight * loss for weight, loss in zip(self.stage_weights, losses, strict=True)]
        return torch.stack(weighted).sum() / sum(self.stage_weights)

    def dense(self, stage: int, found: Tensor, label: Tensor, g: torch.Generator) -> Tensor:
        """Loss of the classes at one stage.

        As many positions of every stage are judged: neighbours say the same, and a thousand logits at each would cost
        more than the encoder.
        """
        thin = STRIDES[-1] // STRIDES[stage]
        y, x = torch.randint(thin, (2,), generator=g, device=found.device).tolist()
        head: nn.Module = self.heads["dense"][stage]  # type: ignore[index]
        out = head(found[: len(label), :, y::thin, x::thin]).permute(0, 2, 3, 1).flatten(0, 2)
        label = label[:, y::thin, x::thin].flatten()
        known = label != IGNORED
        return cross_entropy(out[known].float(), label[known], reduction="sum") / known.sum().clamp(min=1)


def zoomed(image: Tensor, g: torch.Generator) -> Tensor:
    """A random section of each picture at its full size."""
    b = len(image)
    scale = torch.rand(b, generator=g, device=image.device) * 0.6 + 0.4
    theta = torch.zeros(b, 2, 3, device=image.device)
    theta[:, 0, 0] = scale * torch.where(torch.rand(b, generator=g, device=image.device) < 0.5, 1.0, -1.0)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = (torch.rand(b, 2, generator=g, device=image.device) * 2 - 1) * (1 - scale)[:, None]
    grid = affine_grid(theta, list(image.shape), align_corners=False)
    return grid_sample(image, grid, padding_mode="reflection", align_corners=False)


def dihedral(x: Tensor, which: int) -> Tensor:
    """One of the eight symmetries of the square, on the last two axes."""
    x = x.transpose(-1, -2) if which & 1 else x
    return x.flip([axis for axis, bit in ((-1, 2), (-2, 4)) if which & bit])


def normal_images(manifest: Path, size: int) -> Tensor:
    """Training images of a data set, no volumes, as bytes (N, 3, size, size), prepared as the bundles do.

    Raises:
        ValueError: an item is a volume.
    """
    steps = [ReadImaged("image", channels=3), NormalizeByPresetd("image", preset="auto")]
    chain = Compose([*steps, ResizeInPlaned("image", size=size), QuantizeIntensityd("image")])
    items = load_manifest(manifest, required=("training",))["training"]
    images = []
    for item in items:
        images.append(torch.as_tensor(dict(chain({"image": item["image"]}))["image"]))
        if images[-1].ndim != 3:
            raise ValueError(f"{item['image']} is a volume: give its slices as images.")
    return torch.stack(images)


def rendered(args: argparse.Namespace, scenes: TextureScenes, epoch: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """Pictures of one epoch as bytes, their labels at the three strides, and their compositions."""
    make = scenes.composed if "classify" in args.objectives else scenes.scenes
    images, labels, whole = [], [], []
    for i in range(0, args.pictures, 64):
        made = make(epoch * 2**24 + i, min(64, args.pictures - i), epoch)
        images.append((made.image * 255).round().byte())
        labels.append([made.labels(stride) for stride in STRIDES])
        whole.append(made.composition)
    return torch.cat(images), [torch.cat(stage) for stage in zip(*labels, strict=True)], torch.cat(whole)


def learning_rate(args: argparse.Namespace, done: float) -> float:
    """Learning rate after ``done`` epochs: rises over half an epoch, stays, falls over the last ``--cool``."""
    rate = min(1.0, (done + 0.02) / 0.5)
    if args.cool:
        rate *= min(1.0, (args.epochs - done) / args.cool)
    return float(args.lr * rate)


def train_epoch(
    args: argparse.Namespace, net: Pretraining, run: dict[str, Any], source: TextureScenes | Tensor, epoch: int
) -> dict[str, float]:
    """One epoch; updates the run's optimizer, average and count, and returns the mean losses."""
    device, optimizer, average = net.encoder.mean.device, run["optimizer"], run["average"]
    images, labels, whole = (source, [], source) if isinstance(source, Tensor) else rendered(args, source, epoch)
    steps = len(images) // args.batch
    sums: dict[str, Tensor] = {}
    for repeat in range(args.repeats):
        g = seeded(args.seed, 3, epoch, repeat, device=device)
        order = torch.randperm(len(images), generator=g, device=device)
        for step in range(steps):
            rate = learning_rate(args, epoch + (repeat * steps + step) / (steps * args.repeats))
            for group in optimizer.param_groups:
                group["lr"] = rate
            at = order[step * args.batch : (step + 1) * args.batch]
            turn = int(torch.randint(8, (1,), generator=g, device=device))
            image = dihedral(images[at].float() / 255, turn)
            with torch.autocast(device.type, torch.bfloat16):
                losses = net(image, [dihedral(label[at], turn) for label in labels], whole[at], g)
            torch.stack(list(losses.values())).sum().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 2.0)
            optimizer.step()
            optimizer.zero_grad()
            run["shown"] += len(at)
            # a short memory at first, so that the random weights of the start are soon forgotten
            keep = min(args.average, 1 - 10 / (10 + run["shown"] / args.batch))
            for k, v in net.encoder.state_dict().items():
                if v.is_floating_point():
                    average[k].lerp_(v, 1 - keep)
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + loss.detach()
    return {name: float(loss) / (steps * args.repeats) for name, loss in sums.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and weights")
    parser.add_argument("--encoder", choices=("resnet18", "resnet18_half"), default="resnet18")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=["dense"])
    parser.add_argument("--manifest", type=Path, help="learn from the training images of a data set; no pictures then")
    parser.add_argument(
        "--stage_weights", nargs=3, type=float, default=[0.5, 0.5, 1.0], help="of losses per position (dense, corrupt)"
    )
    parser.add_argument("--classes", type=int, default=1024, help="of textures")
    parser.add_argument("--compositions", type=int, default=2048, help="classes of whole pictures, for classify")
    parser.add_argument("--layers", type=int, default=7, help="leaves per picture (not with classify); 1: one texture")
    parser.add_argument("--size", type=int, default=96, help="edge of a picture, a multiple of 32")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--cool", type=int, default=0, help="epochs of falling learning rate at the end")
    parser.add_argument("--pictures", type=int, default=4096, help="rendered per epoch")
    parser.add_argument("--pool", type=int, default=1024, help="textures rendered per epoch")
    parser.add_argument("--repeats", type=int, default=3, help="times that each picture is shown")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight_decay", type=float, default=0.02)
    parser.add_argument("--average", type=float, default=0.995, help="decay of the moving average of the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tracking_uri", help="of MLflow; by default a file in --out; none: no tracking")
    args = parser.parse_args()
    for name in ("classes", "compositions", "layers", "size", "epochs", "pictures", "pool", "repeats", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, it must be at least 1.")
    if args.size % 32 or (args.manifest and args.size < 64):
        parser.error(f"--size is {args.size}, it must be a multiple of 32, for a data set at least 64.")
    if args.manifest and args.objectives != ["contrast"]:
        parser.error("--manifest has images without labels: choose --objectives contrast.")
    return args


def start_tracking(
    args: argparse.Namespace, fixed: dict[str, Any], commit: str, run: str | None
) -> tuple[Any, str | None]:
    """MLflow's client and the run's id, that of ``run`` if there is one; None twice if tracking is off."""
    if args.tracking_uri == "none":
        return None, None
    # No global settings of MLflow: they would reach others in this process, through the environment too.
    from mlflow import MlflowClient

    client = MlflowClient(args.tracking_uri or path_to_sqlite_uri(args.out / "mlruns.db"))
    found = client.get_experiment_by_name("embedded teacher")
    experiment = found.experiment_id if found else client.create_experiment("embedded teacher")
    if run is None:
        run = client.create_run(experiment, run_name=args.out.name).info.run_id
        for name, value in fixed.items():
            client.log_param(run, name, value)
    client.update_run(run, status="RUNNING")
    for name, value in (
        ("epochs", args.epochs),
        ("cool", args.cool),
        ("commit", commit),
    ):  # may differ in a resumed run
        client.set_tag(run, name, value)
    return client, run


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    source: TextureScenes | Tensor
    if args.manifest:
        source = normal_images(args.manifest, args.size).to(device)
    else:
        compositions = args.compositions if "classify" in args.objectives else 0
        source = TextureScenes(args.classes, args.size, args.seed, args.pool, args.layers, compositions, device)
    count = len(source) if isinstance(source, Tensor) else args.pictures
    if args.batch > count:
        raise SystemExit(f"--batch {args.batch} is more than the {count} pictures of an epoch: choose a smaller one.")
    net = Pretraining(args.encoder, args.objectives, args.classes, args.compositions, args.stage_weights)
    net = net.to(device, memory_format=torch.channels_last).train()
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    run: dict[str, Any] = {
        "optimizer": torch.optim.AdamW(groups, fused=True),
        "average": {k: v.clone() for k, v in net.encoder.state_dict().items()},
        "shown": 0,
    }
    # what the weights depend on: no folders, which say nothing to others
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "tracking_uri", "manifest")}
    settings |= {"data": manifest_title(args.manifest) if args.manifest else None, "commit": git_commit()}
    fixed = [k for k in settings if k not in ("epochs", "cool", "commit")]
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, first, tracked = args.out / "checkpoint.pt", 0, None
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        changed = [k for k in fixed if state["settings"].get(k) != settings[k]]
        if changed:
            was = ", ".join(f"{k} {state['settings'].get(k)}, now {settings[k]}" for k in changed)
            raise SystemExit(f"{checkpoint} was trained with other settings: {was}. Use these, or another --out.")
        net.load_state_dict(state["net"])
        run["optimizer"].load_state_dict(state["optimizer"])
        run |= {"average": state["average"], "shown": state["shown"]}
        first, tracked = state["epoch"] + 1, state.get("tracked")
    client, tracked = start_tracking(args, {k: settings[k] for k in fixed}, str(settings["commit"]), tracked)
    for epoch in range(first, args.epochs):
        begin = time.perf_counter()
        losses = train_epoch(args, net, run, source, epoch)
        state = {"net": net.state_dict(), "optimizer": run["optimizer"].state_dict(), "average": run["average"]}
        with atomic_path(checkpoint) as place:
            extra = {"epoch": epoch, "shown": run["shown"], "tracked": tracked, "settings": settings}
            torch.save({**state, **extra}, place)
        weights = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in run["average"].items()}
        about = {"settings": json.dumps(settings), "images": str(run["shown"])}
        with atomic_path(args.out / "teacher.safetensors") as place:
            save_file(weights, place, about)
        row = {"epoch": epoch, "images": run["shown"], "seconds": round(time.perf_counter() - begin, 1), **losses}
        print(json.dumps(row), flush=True)
        for name, value in row.items() if client else ():
            client.log_metric(tracked, name, float(value), step=epoch)
    if client:
        client.set_terminated(tracked)


if __name__ == "__main__":
    main()
