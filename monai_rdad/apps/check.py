# SPDX-License-Identifier: Apache-2.0
"""``monai-rdad check``: whether a training, an evaluation and a prediction would run, found out in seconds."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_rdad.apps.bundle import find_bundle, open_bundle
from monai_rdad.apps.command import add_command
from monai_rdad.apps.methods import duration
from monai_rdad.apps.options import (
    add_data_options,
    add_further_options,
    add_machine_options,
    add_method,
    add_out_option,
    add_training_options,
    settings_of,
)

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

__all__ = ["add_parser", "check_bundle"]

_STEPS = 3  # of the training; the first one warms up
_SCRATCH = {"resume": False, "tracking_uri": "none"}
# settings of a training that its evaluation and prediction need as well
_ALSO_TRAINED = ("bundle_root", "dataset_dir", "manifest", "manifests", "on_error", "device", "num_workers")


def add_parser(groups: Any) -> None:
    """Add the command."""
    parser = add_command(
        groups,
        "check",
        _check,
        "whether a training would run, without running it",
        "Takes the options of 'train'. Checks the settings, the manifest with all its files, the disk and the device; "
        "makes every object of the configuration; loads a batch of each split; does a few training steps and, where "
        "the manifest has such images, a validation step. If OUT holds a trained network, that is evaluated on one "
        "batch and applied to one image. Nothing is written but what a training would put into caches as well: "
        "phantoms and downloaded weights. The exit code is 0 if all is well, else 1.",
        """
        monai-rdad check scrd --data /data/mine --weights imagenet --out runs/mine
        monai-rdad check rd4ad --data /data/mine --config paper.yaml
        """,
    )
    add_method(parser)
    add_data_options(parser)
    add_out_option(parser)
    add_training_options(parser)
    add_machine_options(parser, batch_size=False)
    add_further_options(parser, tracking=True, dry_run=False)


def _check(arguments: argparse.Namespace) -> None:
    for title, text in check_bundle(arguments.method, settings_of(arguments), arguments.config):
        print(f"{title:<10} {text}", flush=True)
    print("OK")


def check_bundle(
    name: str | os.PathLike[str],
    overrides: Mapping[str, Any] | None = None,
    config_files: Sequence[str | os.PathLike[str]] = (),
) -> Iterator[tuple[str, str]]:
    """Try a bundle with the settings of a training, leaving nothing behind.

    Args:
        name: of the method, or folder of the bundle.
        overrides: settings by id, see :func:`~monai_rdad.apps.bundle.open_bundle`.
        config_files: further files of settings.

    Yields:
        what was checked and what was found, as each is known.

    Raises:
        Exception: what the training would raise; also a loss that is not finite (ValueError) and a disk that is full
            or read-only (OSError).
    """
    settings = dict(overrides or {})
    planned = open_bundle(name, "train", settings, config_files).parser
    folder = Path(planned.get_parsed_content("ckpt_dir")).absolute()
    if planned.get_parsed_content("resume") and not (folder / "checkpoint.pt").is_file():
        raise FileNotFoundError(f"There is no checkpoint to resume from: {folder / 'checkpoint.pt'}.")
    # not the output folder itself, which shall not come into being
    with tempfile.TemporaryDirectory(prefix="monai_rdad_check_") as scratch:
        places = {"ckpt_dir": f"{scratch}/models", "output_dir": f"{scratch}/eval"}
        yield "bundle", f"{find_bundle(name)}: settings are known"
        workflow = open_bundle(name, "train", settings | _SCRATCH | places, config_files)
        yield from _training(workflow, folder)
        trained = {key: planned.get(key) for key in _ALSO_TRAINED if key in planned}
        trained |= {"ckpt_dir": str(folder), "output_dir": f"{scratch}/eval"}
        yield from _trained(name, trained, workflow)


def _training(workflow: ConfigWorkflow, folder: Path) -> Iterator[tuple[str, str]]:
    parser = workflow.parser
    _shorten(parser.get(), {"train": _STEPS, "validate": 1})
    try:
        workflow.initialize()
        get = parser.get_parsed_content
        splits = get("datalists")
        for split, items in splits.items():
            if items:
                yield "manifest", f"{split}: {_describe(items)}"
        if "tasks" in parser:
            tasks = sorted({item["task"] for item in get("tasks")})
            yield "manifest", f"training: {_describe(get('tasks'))}, tasks {', '.join(tasks)}"
        start = time.monotonic()
        batch = next(iter(get("train#dataloader")))
        seconds = (time.monotonic() - start) / len(batch["image"])
        yield "batch", f"training: {_shape(batch)}, read at {duration(seconds)} per image"
        for split in [split for split, items in splits.items() if items and split != "training"]:
            yield "batch", f"{split}: {_shape(_first_batch(splits[split], get))}"
        yield "device", _device(get)
        yield "network", _network(get)
        for entry in ("train#handlers", "validate#handlers", "validate#evaluator"):
            get(entry)
        count = len(get("tasks") if "tasks" in parser else splits["training"]) + 2 * len(splits.get("validation", ()))
        yield from _steps(get, get("max_epochs"), cached=count * batch["image"][0].numel())  # a byte per value
        yield "disk", _disk(folder, _bytes_on_disk(get))
        if splits.get("validation"):
            with _one_class():
                get("validate#evaluator").run()
            yield "validation", "one batch: ok"
    finally:
        workflow.finalize()


def _shorten(config: dict[str, Any], steps: Mapping[str, int]) -> None:
    """Few steps, data sets that read only what is asked for, a trainer without the handlers that write, no progress."""
    for section, count in steps.items():
        for engine in ("trainer", "evaluator"):
            if engine in config.get(section, {}):
                config[section][engine]["epoch_length"] = count
    if "train" in steps:
        config["train"]["trainer"] |= {"max_epochs": 1, "train_handlers": None}
    for component in _components(config):
        if component["_target_"] == "CacheDataset":
            component |= {"cache_rate": 0.0, "progress": False}
        elif component["_target_"].endswith(".SliceCacheDataset"):  # the number of slices is known after reading
            component["progress"] = False
        elif component["_target_"].endswith(".Progress"):
            component["_disabled_"] = True


def _components(config: Any) -> Iterator[dict[str, Any]]:
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        for value in list(config.values()):
            yield from _components(value)
    elif isinstance(config, list):
        for value in config:
            yield from _components(value)


def _describe(items: Sequence[Mapping[str, Any]]) -> str:
    abnormal, masks = sum(item["label"] for item in items), sum("mask" in item for item in items)
    groups = len({item["group"] for item in items})
    text = f"{len(items)} images of {groups} groups"
    return text + (f", {abnormal} abnormal, {masks} with a mask" if abnormal else "")


def _first_batch(items: Sequence[Any], get: Any) -> Any:
    from monai.data import DataLoader, Dataset

    size = get("batch_size")
    return next(iter(DataLoader(Dataset(items[:size], get("validate#preprocessing")), batch_size=size)))


def _shape(batch: Mapping[str, Any]) -> str:
    images = batch["image"]
    return f"{tuple(images.shape)}, values {images.min():.3g} to {images.max():.3g}"


def _device(get: Any) -> str:
    import torch

    from monai_rdad.networks.precision import supports_bfloat16

    device = torch.device(get("device"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    precision = get("precision")
    if precision == "auto":
        precision = "bf16" if supports_bfloat16(device.type) else "fp32"
    return f"{device} ({name}), precision {precision}"


def _network(get: Any) -> str:
    network = get("network_def")
    total = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return (
        f"{get('encoder')} with weights '{get('weights')}'; {total / 1e6:.1f} million parameters, "
        f"{trained / 1e6:.1f} of them trained"
    )


def _steps(get: Any, max_epochs: int, cached: int) -> Iterator[tuple[str, str]]:
    """A few steps of the trainer itself, timed; ``cached`` bytes will be held in memory by a training."""
    import torch
    from ignite.engine import Events

    trainer = get("train#trainer")
    device = torch.device(get("device"))
    times, losses = [time.monotonic()], []

    def note(engine: Any) -> None:
        losses.append(engine.state.output["loss"].item())  # waits for the device
        times.append(time.monotonic())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    if not all(map(math.isfinite, losses)):
        raise ValueError(
            f"The loss is {losses} after {len(losses)} steps. Check the intensities of the images, lr and precision."
        )
    step = (times[-1] - times[1]) / (len(times) - 2)
    length = len(get("train#dataloader"))
    yield "steps", f"loss {losses[0]:.4g}, then {losses[-1]:.4g}; {duration(step)} per step, reading included"
    yield (
        "time",
        f"about {duration(step * length)} per epoch of {length} steps, {duration(step * length * max_epochs)} for "
        f"{max_epochs} epochs; less once all images are in memory, which takes {_size(cached)}",
    )
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peak = torch.cuda.max_memory_reserved(device)
        yield "memory", f"{_size(peak)} on the device, {_size(free)} of {_size(total)} are still free"
    elif resident := _peak_memory():
        yield "memory", f"{_size(resident)} for these steps"


def _peak_memory() -> int | None:
    """Largest resident size of this process in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _bytes_on_disk(get: Any) -> int:
    """Of model.pt and checkpoint.pt; one checkpoint is there while the next one is written."""
    import torch

    network = sum(t.nbytes for t in get("network_def").state_dict().values())
    state = get("optimizer").state_dict()["state"]
    optimizer = sum(t.nbytes for entry in state.values() for t in entry.values() if isinstance(t, torch.Tensor))
    return network + 2 * (network + optimizer)


def _disk(folder: Path, needed: int) -> str:
    existing = folder
    while not existing.is_dir():
        if existing.exists():
            raise NotADirectoryError(f"{existing} is a file: nothing can be written to {folder}. Choose another --out.")
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"{existing} cannot be written to. Choose another --out.")
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(f"{folder} needs {_size(needed)}, but only {_size(free)} are free. Choose another --out.")
    return f"{folder} takes {_size(needed)} of {_size(free)} free"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}"


def _trained(
    name: str | os.PathLike[str], settings: dict[str, Any], training: ConfigWorkflow
) -> Iterator[tuple[str, str]]:
    """Evaluation of one batch and prediction of one image, where a trained network is."""
    from monai_rdad.handlers import load_settings

    folder = Path(settings["ckpt_dir"])
    if not (folder / "model.json").is_file():
        yield "trained", f"no network in {folder} yet: evaluation and prediction were not tried"
        return
    found, method = load_settings(folder)["method"], training.parser.get("settings")["method"]
    if found != method:
        yield "trained", f"{folder} holds a trained {found}, which a training of {method} replaces"
        return
    splits = training.parser.get_parsed_content("datalists")
    item = next(item for items in (splits.get("testing"), splits["training"]) if items for item in items)
    if splits.get("testing"):
        workflow = open_bundle(name, "evaluate", settings | {"tracking_uri": "none", "bootstrap": 0})
        _run(workflow, {"validate": 1})
        yield "evaluation", "one batch: ok"
    else:
        yield "evaluation", "not tried: the manifest has no testing images"
    predicting = {key: value for key, value in settings.items() if key not in ("dataset_dir", "manifest", "manifests")}
    _run(open_bundle(name, "infer", predicting | {"input": str(item["image"])}), {})
    yield "prediction", f"{item['name']}: ok"
    yield "trained", f"{folder} holds a trained network; a training replaces it"


def _run(workflow: ConfigWorkflow, steps: Mapping[str, int]) -> None:
    _shorten(workflow.parser.get(), steps)
    try:
        workflow.initialize()
        with _one_class():
            workflow.run()
    finally:
        workflow.finalize()


@contextmanager
def _one_class() -> Iterator[None]:
    """One batch may hold normal images only, which is no news."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Image metrics need both classes")
        yield
