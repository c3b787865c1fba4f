# SPDX-License-Identifier: Apache-2.0
"""Finding a method's bundle and running it in this process; nothing heavy is imported before a bundle is opened."""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_rdad.utils import installed_folder, one_of

if TYPE_CHECKING:
    from monai.bundle import ConfigParser, ConfigWorkflow

__all__ = [
    "STAGES",
    "BundleRun",
    "default_root",
    "find_bundle",
    "find_configs",
    "method_names",
    "open_bundle",
    "run_bundle",
]

STAGES = {
    "train": ("train",),
    "evaluate": ("train", "evaluate"),
    "calibrate": ("train", "evaluate", "calibrate"),
    "infer": ("inference",),
}
"""What a bundle does, and the configuration files that are merged for it, as in the README's commands."""

_CONFIGS = "configs"
_MARK = "metadata.json"  # what makes a folder a bundle


@dataclass(frozen=True)
class BundleRun:
    """A finished run.

    Attributes:
        name: of the bundle.
        workflow: the MONAI workflow, whose ``parser`` holds every object of the configuration.
        metrics: of the evaluation; of a training, those of its last validation, if it had one.
    """

    name: str
    workflow: ConfigWorkflow
    metrics: dict[str, float] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """Value or object of the configuration under an id, for instance "ckpt_dir" or "train#trainer"."""
        return self.workflow.parser.get_parsed_content(name)


def _places() -> list[Path]:
    """Folders that hold bundles: the current one's, that of the repository or the installation."""
    return [Path("bundles"), installed_folder("bundles")]


def _is_bundle(folder: Path) -> bool:
    return (folder / _CONFIGS / _MARK).is_file()


def method_names() -> list[str]:
    """Names of the methods whose bundles are at hand, sorted."""
    found = {folder.name for place in _places() if place.is_dir() for folder in place.iterdir() if _is_bundle(folder)}
    if _is_bundle(Path()):
        found.add(Path.cwd().name)
    return sorted(found)


def find_bundle(name: str | os.PathLike[str]) -> Path:
    """Folder of a bundle.

    Args:
        name: a method, looked for in ``./bundles``, as the current folder, in the repository of an editable
            installation and in ``share/monai_rdad/bundles`` of the environment; or a bundle's folder.

    Raises:
        FileNotFoundError: there is none; the message lists the methods at hand.
    """
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if not os.path.dirname(text) and text != "..":  # a name
        candidates = [place / text for place in _places()]
        if Path.cwd().name == text:
            candidates.insert(1, Path())
        candidates.append(folder)
    else:
        candidates = [folder]
    for candidate in candidates:
        if _is_bundle(candidate):
            return candidate
    near = difflib.get_close_matches(text, method_names(), 1)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    raise FileNotFoundError(
        f"There is no bundle '{text}'.{guess} Methods: {', '.join(method_names()) or 'none'}; "
        f"or give a folder that holds {_CONFIGS}/{_MARK}."
    )


def default_root(bundle: Path) -> Path:
    """Where a run writes if it is not told: into the bundle below the current folder, else into ``./<method>``."""
    folder = bundle.resolve()
    return bundle if folder.is_relative_to(Path.cwd()) else Path(folder.name)


def find_configs(
    bundle: Path, stage: str, config_files: Sequence[str | os.PathLike[str]] = ()
) -> tuple[list[Path], list[Path]]:
    """The files of a bundle's stage, and further ones.

    Args:
        bundle: its folder.
        stage: one of :data:`STAGES`.
        config_files: paths; a name without a folder may be one of the bundle's own.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: no such stage.
    """
    one_of("stage", stage, tuple(STAGES))
    configs = bundle / _CONFIGS
    files = [configs / f"{part}.yaml" for part in STAGES[stage]]
    if not all(file.is_file() for file in files):
        raise FileNotFoundError(f"{bundle.resolve().name} has no stage '{stage}': there is no {files[-1]}.")
    return files, [_config_file(file, configs) for file in config_files]


def open_bundle(
    name: str | os.PathLike[str],
    stage: str,
    overrides: Mapping[str, Any] | None = None,
    config_files: Sequence[str | os.PathLike[str]] = (),
) -> ConfigWorkflow:
    """The workflow of a bundle's stage, with every setting in place and nothing made yet.

    The files of :data:`STAGES`, then ``config_files``, then ``overrides``; later ones win. Ids with "#" or "::" reach
    into nested entries, values starting with "$", "@" or "%" mean what they mean in MONAI. MONAI itself takes ids that
    nothing knows without a word; here they are errors.

    Args:
        name: of the method, or folder of the bundle.
        stage: one of :data:`STAGES`.
        overrides: settings by id. ``bundle_root``, the folder to write to, defaults to :func:`default_root`.
        config_files: further YAML or JSON files; a name without a folder, such as ``paper.yaml``, may be one of the
            bundle's own.

    Raises:
        FileNotFoundError: no such bundle or file, or the bundle lacks this stage.
        ValueError: no such stage, or a setting that neither the bundle has nor anything refers to.
    """
    bundle = find_bundle(name)
    configs = bundle / _CONFIGS
    files, extra = find_configs(bundle, stage, config_files)
    settings = dict(overrides or {})

    from monai.bundle import ConfigWorkflow

    with _quiet():
        workflow = ConfigWorkflow(
            workflow_type="infer" if stage == "infer" else "train",
            config_file=[str(file) for file in files],
            meta_file=str(configs / _MARK),
            logging_file=False,
        )
    workflow.parser["bundle_root"] = str(default_root(bundle))
    if "config_dir" in workflow.parser:  # for MLflow; it is not in another bundle_root
        workflow.parser["config_dir"] = str(configs)
    for file in extra:
        _merge_file(workflow.parser, file, configs)
    config = workflow.parser.get()
    used = {*_references(config), *_references(settings)}
    for key in settings:
        if (wrong := _unknown(key, config)) and _normal(key) not in used:
            raise ValueError(wrong)
    workflow.parser.update(settings)
    return workflow


def run_bundle(
    name: str | os.PathLike[str],
    stage: str,
    overrides: Mapping[str, Any] | None = None,
    config_files: Sequence[str | os.PathLike[str]] = (),
) -> BundleRun:
    """Run a bundle's stage in this process, as ``python -m monai.bundle run`` does it.

    Logging is left as it is. The bundle's ``finalize`` runs after an error, too.

    Args:
        name: of the method, or folder of the bundle.
        stage: "train", "evaluate", "calibrate" or "infer".
        overrides: settings by id, see :func:`open_bundle`.
        config_files: further files of settings.

    Raises:
        FileNotFoundError, ValueError: see :func:`open_bundle`.
        Exception: what the bundle's command raises, wrapped by MONAI; ``monai_rdad.utils.root_cause`` finds the start.
    """
    workflow = open_bundle(name, stage, overrides, config_files)
    try:
        workflow.initialize()
        workflow.run()
        engine = workflow.parser.get_parsed_content("evaluator" if stage == "infer" else "validate#evaluator")
        metrics = dict(engine.state.metrics)
    except BaseException:
        with suppress(Exception):  # the first error is the one to show
            workflow.finalize()
        raise
    workflow.finalize()
    return BundleRun(find_bundle(name).resolve().name, workflow, metrics)


def _config_file(file: str | os.PathLike[str], configs: Path) -> Path:
    path = Path(file).expanduser()
    for candidate in (path, configs / path) if len(path.parts) == 1 else (path,):
        if candidate.is_file():
            return candidate
    own = ", ".join(sorted(p.name for p in configs.glob("*.yaml")))
    raise FileNotFoundError(f"There is no configuration file {path}. The bundle has {own}.")


def _merge_file(parser: ConfigParser, file: Path, configs: Path) -> None:
    """Merge a file of settings; those that only other stages have are left out, so that one file serves all stages."""
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    content = ConfigParser.load_config_file(str(file))
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no settings: it must be a mapping.")
    used = {*_references(parser.get()), *_references(content)}
    for key, value in content.items():
        name = key.removeprefix("+")
        wrong = _unknown(name, parser.get())
        if not wrong or _normal(name) in used:
            merge_kv(parser, key, value)
        elif all(_unknown(name, other) for other in _stages(configs)):
            raise ValueError(f"{file}: {wrong}")


def _stages(configs: Path) -> Iterator[dict[str, Any]]:
    from monai.bundle import ConfigParser

    for parts in STAGES.values():
        files = [configs / f"{part}.yaml" for part in parts]
        if all(file.is_file() for file in files):
            yield ConfigParser.load_config_files([str(file) for file in files])


def _normal(name: str) -> str:
    return name.replace("::", "#")


def _unknown(name: str, config: Any) -> str:
    """Why an id is none of a configuration's, empty if it is one.

    A new entry of a component (what has a "_target_") is an argument for it, and its own business.
    """
    parts = _normal(name).split("#")
    for depth, part in enumerate(parts):
        choices: list[str] = []
        if isinstance(config, Mapping):
            if part in config:
                config = config[part]
                continue
            if "_target_" in config and depth == len(parts) - 1:
                return ""
            choices = sorted(str(key) for key in config if key != "_meta_")
        elif isinstance(config, list):
            if part.isdigit() and int(part) < len(config):
                config = config[int(part)]
                continue
            choices = [str(i) for i in range(len(config))]
        near = difflib.get_close_matches(part, choices, 1)
        if near:
            meant = "#".join([*parts[:depth], near[0], *parts[depth + 1 :]])
            return f"There is no setting '{name}'. Did you mean '{meant}'?"
        above = f" in '{'#'.join(parts[:depth])}'" if depth else ""
        return f"There is no setting '{name}'. There are{above}: {', '.join(choices) or 'none'}."
    return ""


def _references(content: Any) -> Iterator[str]:
    """Ids that the texts of a configuration refer to, with "#"."""
    from monai.bundle import ReferenceResolver

    if isinstance(content, Mapping):
        for value in content.values():
            yield from _references(value)
    elif isinstance(content, list):
        for value in content:
            yield from _references(value)
    elif isinstance(content, str):
        yield from map(_normal, ReferenceResolver.match_refs_pattern(content))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that MONAI says on every start and that nobody who asked for this bundle can act on."""
    from monai.bundle import workflows

    logger = workflows.logger
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
            yield
    finally:
        logger.setLevel(level)
