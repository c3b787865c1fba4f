# SPDX-License-Identifier: Apache-2.0
"""What a benchmark's file asks for, checked before anything runs, and the state of each of its runs."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from monai_rdad.apps.bundle import STAGES, find_bundle, open_bundle
from monai_rdad.metrics import IMAGE_METRICS, PIXEL_METRICS
from monai_rdad.networks.encoders import find_embedded_weights
from monai_rdad.utils import file_sha256

__all__ = ["DataSet", "Method", "Plan", "Run", "check_plan", "evaluation_settings", "read_plan", "training_settings"]

ENTRIES = ("name", "out", "seeds", "data", "methods", "settings", "metrics", "processes", "keep_models", "tracking_uri")
DEFAULT_METRICS = ("image_auroc", "image_ap", "pixel_auroc", "aupro_0.3")
# Settings that the runner sets itself, and where they belong instead.
OWN = {
    "bundle_root": "'out'",
    "ckpt_dir": "'out'",
    "output_dir": "'out'",
    "dataset_dir": "'data'",
    "manifest": "'data'",
    "seed": "'seeds'",
    "tracking_uri": "'tracking_uri' of the file",
    "resume": "nothing: an interrupted run is resumed",
    "split": "nothing: the split 'testing' is evaluated",
}
NEUTRAL = ("device", "num_workers")  # settings that a finished run does not depend on
RUN, STARTED, TRAINED, FAILED, LOG = "run.json", "settings.json", "training.json", "failed.json", "log.txt"


@dataclass(frozen=True)
class DataSet:
    """A data set of a benchmark.

    Attributes:
        name: in results.
        dataset_dir: folder of the images.
        manifest: its manifest.
        sha256: of the manifest; None if there is none here, where only tables are wanted.
        settings: of the bundles, for this data set.
    """

    name: str
    dataset_dir: Path
    manifest: Path
    sha256: str | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A method of a benchmark.

    Attributes:
        name: in results.
        bundle: folder of its bundle.
        settings: of the bundle, for this method.
        config_files: further configuration files, merged on top of the bundle's.
    """

    name: str
    bundle: Path
    settings: dict[str, Any]
    config_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        method: that is trained.
        data: that it is trained and evaluated on.
        seed: of the training.
        folder: of all its files.
        settings: of the bundle, without those of :data:`OWN`.
    """

    method: Method
    data: DataSet
    seed: int
    folder: Path
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """For people: method, data set and seed."""
        return f"{self.method.name} {self.data.name} seed {self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """All that its result depends on, apart from the code."""
        files = {Path(file).name: _text_sha256(self.method.bundle, file) for file in self.method.config_files}
        settings = {"weights": _bundle_file(self.method, "train").get("weights")} | self.settings  # also a default
        identity = {
            "bundle": self.method.bundle.resolve().name,
            "config_files": files,
            "settings": {key: value for key, value in settings.items() if key not in NEUTRAL},
            "seed": self.seed,
            "manifest_sha256": self.data.sha256,
        }
        return dict(json.loads(json.dumps(identity)))

    def read(self, name: str) -> dict[str, Any] | None:
        """Content of one of its JSON files, None if there is none."""
        path = self.folder / name
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def changes(self) -> list[str]:
        """What differs between the run that its folder holds, finished or not, and the one that is wanted."""
        found = self.read(RUN) or self.read(STARTED)
        if found is None:
            return []
        old, new = _flat(found["identity"]), _flat(self.identity)
        if new.get("manifest_sha256") is None:
            new["manifest_sha256"] = old.get("manifest_sha256")
        keys = [key for key in [*old, *(k for k in new if k not in old)] if old.get(key) != new.get(key)]
        return [f"{key.removeprefix('settings.')}: {old.get(key)} before, now {new.get(key)}" for key in keys]

    def state(self) -> str:
        """One of "done", "changed", "failed", "interrupted" and "waiting"."""
        if self.changes():
            return "changed"
        for name, state in ((RUN, "done"), (FAILED, "failed"), (STARTED, "interrupted")):
            if (self.folder / name).is_file():
                return state
        return "waiting"


@dataclass(frozen=True)
class Plan:
    """A benchmark.

    Attributes:
        name: of the benchmark.
        text: of its file.
        out: folder of the results.
        seeds: of the trainings.
        data: data sets by name.
        methods: methods by name.
        metrics: those that the tables show.
        settings: of the bundles, for all runs.
        processes: how many runs at a time.
        keep_models: whether the weights of a finished run stay.
        tracking_uri: of MLflow; "none" for no tracking.
    """

    name: str
    text: str
    out: Path
    seeds: tuple[int, ...]
    data: dict[str, DataSet]
    methods: dict[str, Method]
    metrics: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    keep_models: bool = True
    tracking_uri: str = "none"

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that every method soon has a figure on every data set."""
        return [
            Run(
                method,
                data,
                seed,
                self.out / "runs" / method.name / data.name / f"seed{seed}",
                self.settings | data.settings | method.settings,
            )
            for seed in self.seeds
            for data in self.data.values()
            for method in self.methods.values()
        ]


def read_plan(path: Path) -> Plan:
    """Read the file of a benchmark and check its form.

    Relative paths in it are relative to the current folder, as on the command line.

    Args:
        path: YAML file; the user guide describes it.

    Raises:
        FileNotFoundError: no such file, or no such bundle.
        ValueError: not the form of a benchmark; names the entry.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    content = _mapping(content, "", ENTRIES)
    for key in ("out", "data", "methods"):
        if not content.get(key):
            raise ValueError(f"{path}: '{key}' is missing.")
    out = Path(str(content["out"])).expanduser()
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int and s >= 0 for s in seeds):
        raise ValueError(f"{path}: 'seeds' must be a list of whole numbers from 0, it is {seeds}.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{path}: a seed stands twice in {seeds}.")
    processes = content.get("processes", 1)
    if type(processes) is not int or processes < 1:
        raise ValueError(f"{path}: 'processes' must be a whole number from 1, it is {processes}.")
    metrics = content.get("metrics", list(DEFAULT_METRICS))
    if not isinstance(metrics, list) or not metrics:
        raise ValueError(f"{path}: 'metrics' must be a list.")
    for metric in metrics:
        _check_name("metric", str(metric), (*IMAGE_METRICS, *PIXEL_METRICS), "metrics: ")
    keep_models = content.get("keep_models", True)
    if type(keep_models) is not bool:
        raise ValueError(f"{path}: 'keep_models' must be true or false, it is {keep_models}.")
    uri = content.get("tracking_uri")
    if uri is None:
        uri = f"sqlite:///{(out / 'mlruns.db').absolute()}"
    data = {name: _data_set(name, entry) for name, entry in _named(content["data"], "data")}
    return Plan(
        name=str(content.get("name", path.stem)),
        text=text,
        out=out,
        seeds=tuple(seeds),
        data=data,
        methods={name: _method(name, entry) for name, entry in _named(content["methods"], "methods")},
        metrics=tuple(map(str, metrics)),
        settings=_settings(content, ""),
        processes=processes,
        keep_models=keep_models,
        tracking_uri=str(uri),
    )


def check_plan(plan: Plan) -> dict[str, dict[str, int]]:
    """Check all that can be checked before a run starts: settings, weights, every image of every data set.

    Returns:
        of each data set the numbers of training images, test images and abnormal test images.

    Raises:
        FileNotFoundError: a folder, manifest or weights file is missing.
        ManifestError: a manifest or an image cannot be used.
        ValueError: a setting that a bundle does not have, or a data set that has nothing to train or evaluate.
    """
    from monai_rdad.data import load_manifest

    for method in plan.methods.values():
        if "holdout" in _bundle_file(method, "train"):
            raise ValueError(
                f"methods: {method.name}: a few-shot method is trained on several data sets and judged with supports "
                "of another, which a benchmark does not do. See scripts/study_fewshot.py."
            )
    for run in {(run.method.name, run.data.name): run for run in plan.runs()}.values():
        where = f"{run.method.name} on {run.data.name}"
        try:
            parser = open_bundle(run.method.bundle, "train", training_settings(run), run.method.config_files).parser
            open_bundle(run.method.bundle, "evaluate", run.settings, run.method.config_files)
            if (weights := str(parser.get("weights"))) == "embedded":
                find_embedded_weights(str(parser.get("encoder")))
        except (ValueError, OSError) as error:
            raise type(error)(f"{where}: {error}") from error
        if Path(weights).suffix and weights[0] not in "$@" and not Path(weights).expanduser().is_file():
            raise FileNotFoundError(f"{where}: there is no weights file {weights}.")
    counts = {}
    for name, data in plan.data.items():
        on_error = (plan.settings | data.settings).get("on_error", "raise")
        splits = load_manifest(data.manifest, data.dataset_dir, on_error, required=("training", "testing"))
        abnormal = sum(item["label"] for item in splits["testing"])
        if abnormal in (0, len(splits["testing"])):
            raise ValueError(f"data: {name}: its testing split needs normal and abnormal images.")
        counts[name] = {split: len(splits[split]) for split in ("training", "testing")} | {"abnormal": abnormal}
    return counts


def training_settings(run: Run) -> dict[str, Any]:
    """Settings of the training: those of the run that are not the evaluation's alone."""
    training, evaluation = (_bundle_file(run.method, stage) for stage in ("train", "evaluate"))
    return {key: value for key, value in run.settings.items() if key in training or key not in evaluation}


def evaluation_settings(run: Run) -> dict[str, Any]:
    """Settings of the evaluation: those of the run, but what the training has recorded is taken from its record."""
    texts = {key: value for key, value in _bundle_file(run.method, "evaluate").items() if isinstance(value, str)}
    return run.settings | {key: value for key, value in texts.items() if key == "weights" or "@trained" in value}


def _bundle_file(method: Method, stage: str) -> dict[str, Any]:
    """The entries of the configuration file that a stage adds."""
    file = method.bundle / "configs" / f"{STAGES[stage][-1]}.yaml"
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently keep the last, and reads 1e-4 as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _check_name(kind: str, name: str, choices: Iterable[str], where: str) -> None:
    choices = list(choices)
    if name not in choices:
        near = difflib.get_close_matches(name, choices, 1)
        hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(choices)}."
        raise ValueError(f"{where}There is no {kind} '{name}'. {hint}")


def _mapping(value: Any, where: str, known: Iterable[str]) -> dict[str, Any]:
    """A mapping with nothing but known keys."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where or 'The file'} must be a mapping of {', '.join(known)}.")
    for key in value:
        _check_name("entry", str(key), known, f"{where}: " if where else "")
    return dict(value)


def _named(value: Any, where: str) -> list[tuple[str, Any]]:
    """Entries whose names can be those of folders."""
    if not isinstance(value, Mapping):
        raise ValueError(f"'{where}' must be a mapping of names.")
    for name in value:
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise ValueError(f"{where}: the name '{name}' may have letters, digits, '_', '-' and '.' only.")
    return [(str(name), {} if entry is None else entry) for name, entry in value.items()]


def _settings(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    settings = entry.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where}'settings' must be a mapping.")
    for key, value in settings.items():
        if key in OWN:
            raise ValueError(f"{where}settings: '{key}' is not set here but by {OWN[key]}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}settings: '{key}' is {value}.")
    return {str(key): value for key, value in settings.items()}


def _data_set(name: str, value: Any) -> DataSet:
    where = f"data: {name}: "
    entry = _mapping(value, where.removesuffix(": "), ("dataset_dir", "manifest", "phantoms", "settings"))
    if ("phantoms" in entry) == ("dataset_dir" in entry):
        raise ValueError(f"{where}give 'dataset_dir', a folder of images, or 'phantoms', a kind of built-in ones.")
    if "phantoms" in entry:
        from monai_rdad.data import phantom_tasks

        kinds = dict(task.split("=", 1) for task in phantom_tasks())
        _check_name("kind of phantoms", str(entry["phantoms"]), kinds, where)
        manifest = Path(kinds[str(entry["phantoms"])])
        folder = manifest.parent
    else:
        folder = Path(str(entry["dataset_dir"])).expanduser()
        manifest = Path(str(entry.get("manifest", folder / "manifest.json"))).expanduser()
    sha256 = file_sha256(manifest) if manifest.is_file() else None
    return DataSet(name, folder, manifest, sha256, _settings(entry, where))


def _method(name: str, value: Any) -> Method:
    where = f"methods: {name}: "
    entry = _mapping(value, where.removesuffix(": "), ("bundle", "settings", "config_files"))
    files = entry.get("config_files") or []
    if not isinstance(files, list):
        raise ValueError(f"{where}'config_files' must be a list.")
    bundle = find_bundle(str(entry.get("bundle", name)))
    return Method(name, bundle, _settings(entry, where), tuple(map(str, files)))


def _text_sha256(bundle: Path, file: str) -> str | None:
    paths = (Path(file).expanduser(), bundle / "configs" / file)
    return next((file_sha256(path) for path in paths if path.is_file()), None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
