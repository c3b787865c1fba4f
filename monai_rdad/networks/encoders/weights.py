# SPDX-License-Identifier: Apache-2.0
"""Where the pretrained weights of an encoder come from, and how they are checked."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_rdad.utils import file_sha256

__all__ = [
    "DINOV2",
    "EMBEDDED",
    "IMAGENET",
    "find_dinov2_weights",
    "find_embedded_weights",
    "find_imagenet_weights",
    "load_encoder_weights",
    "read_weights",
]

# torchvision's files (BSD-3-Clause), ImageNet-1k, "IMAGENET1K_V1": the ones that the methods were published with.
# SHA-256, in full or, where only that is published, the leading digits that torchvision puts into the file's name.
_BASE_URL = "https://download.pytorch.org/models/"
IMAGENET: dict[str, tuple[str, str]] = {
    "resnet18": ("resnet18-f37072fd.pth", "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"),
    "resnet34": ("resnet34-b627a593.pth", "b627a593"),
    "resnet50": ("resnet50-0676ba61.pth", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a"),
    "wide_resnet50_2": ("wide_resnet50_2-95faca4d.pth", "95faca4d"),
}

# Meta's files (Apache-2.0), DINOv2 with registers. Meta publishes no hash; this one is the file's own, as several
# independent users of it state it.
_DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/"
DINOV2: dict[str, tuple[str, str]] = {
    "vit_small_dinov2_reg4": (
        "dinov2_vits14_reg4_pretrain.pth",
        "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb",
    ),
}

# Ours (Apache-2.0), beside this file: stages 1 to 3, trained on procedural images alone (docs/embedded_teacher.md).
EMBEDDED: dict[str, tuple[str, str]] = {
    "resnet18": ("resnet18_procedural.safetensors", "4a3e69f7d9796a83fb9aef6180860070eb69fb005cc3bcbfe952b77e7a9183fc"),
}


def _check_hash(path: Path, sha256: str, remedy: str = "delete it and fetch it again") -> None:
    actual = file_sha256(path)
    if not actual.startswith(sha256):
        raise ValueError(
            f"Weights file {path} has SHA-256 {actual}, expected {sha256}{'...' if len(sha256) < 64 else ''}. "
            f"It is damaged or another one: {remedy}."
        )


def find_embedded_weights(encoder: str) -> Path:
    """Path of the weights that the package brings for an encoder: no download, stages 1 to 3.

    Args:
        encoder: one of :data:`EMBEDDED`.

    Raises:
        FileNotFoundError, ValueError: unknown encoder, or a file that is missing or has the wrong hash.
    """
    if encoder not in EMBEDDED:
        raise ValueError(
            f"No weights are embedded for encoder '{encoder}', only for: {', '.join(EMBEDDED)}. Choose `--weights "
            "imagenet` (a download), a path, or `--weights none`."
        )
    name, sha256 = EMBEDDED[encoder]
    path = Path(__file__).with_name(name)
    if not path.is_file():
        raise FileNotFoundError(f"The embedded weights {path} are missing: install the package again.")
    _check_hash(path, sha256, "install the package again")
    return path


def find_imagenet_weights(encoder: str) -> Path:
    """Path of torchvision's ImageNet weights of an encoder, checked, downloaded if needed.

    Looked for in the folder that the environment variable ``MONAI_RDAD_WEIGHTS`` names, then in torch hub's cache.

    Args:
        encoder: one of :data:`IMAGENET`.

    Raises:
        ValueError: unknown encoder, or a file with the wrong hash.
        RuntimeError: the file is not there and cannot be downloaded.
    """
    if encoder not in IMAGENET:
        raise ValueError(f"No ImageNet weights are known for encoder '{encoder}', only for: {', '.join(IMAGENET)}.")
    return _find(_BASE_URL, *IMAGENET[encoder], f"ImageNet weights of {encoder}")


def find_dinov2_weights(encoder: str) -> Path:
    """Path of Meta's DINOv2 weights of an encoder; otherwise as :func:`find_imagenet_weights`.

    Args:
        encoder: one of :data:`DINOV2`.
    """
    if encoder not in DINOV2:
        raise ValueError(f"No DINOv2 weights are known for encoder '{encoder}', only for: {', '.join(DINOV2)}.")
    return _find(_DINOV2_URL, *DINOV2[encoder], f"DINOv2 weights of {encoder}")


def _find(base_url: str, name: str, sha256: str, what: str) -> Path:
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    folders = [Path(os.environ["MONAI_RDAD_WEIGHTS"])] if os.environ.get("MONAI_RDAD_WEIGHTS") else []
    for folder in [*folders, hub]:
        if (folder / name).is_file():
            _check_hash(folder / name, sha256)
            return folder / name
    hub.mkdir(parents=True, exist_ok=True)
    try:
        # writes to a temporary name, checks the hash, then renames
        torch.hub.download_url_to_file(base_url + name, str(hub / name), hash_prefix=sha256)
    except OSError as error:
        raise RuntimeError(
            f"Cannot download the {what} ({error}). Without a network, fetch {base_url}{name} "
            f"(SHA-256 {sha256}{'...' if len(sha256) < 64 else ''}) elsewhere and put it into {hub} or into the folder "
            "named by MONAI_RDAD_WEIGHTS; or choose a path or, for resnet18, `--weights embedded`."
        ) from error
    return hub / name


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """State dict of a ``.safetensors``, ``.pt`` or ``.pth`` file; never unpickles anything but tensors.

    A file named as torchvision names its own, ``<name>-<8 or more hex digits>.pth``, must have that SHA-256.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: wrong hash, or the file holds no state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"Weights '{path}' are neither a known name (embedded, imagenet, dinov2, none) nor an existing file. "
            "Check the spelling."
        )
    if match := re.search(r"-([0-9a-f]{8,64})$", file.stem):
        _check_hash(file, match.group(1))
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"Weights file {file} cannot be read as tensors. Give a state dict saved by safetensors or torch.save."
        ) from error
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"Weights file {file} holds no state dict (a mapping of names to tensors).")
    return state


def load_encoder_weights(module: nn.Module, encoder: str, weights: str) -> None:
    """Loads pretrained weights into an encoder, strictly for all that the encoder builds.

    Tensors of stages and heads that are not built are ignored; everything that is built must be there.

    Args:
        module: the encoder.
        encoder: its name, used by the names below.
        weights: "embedded" (the package's own), "imagenet" (torchvision's files) or "dinov2" (Meta's), both by URL and
            SHA-256, "none" (keep the random ones) or a path.

    Raises:
        FileNotFoundError, RuntimeError, ValueError: as :func:`find_imagenet_weights` and :func:`read_weights`, and if a
            tensor is missing or has another shape.
    """
    if weights == "none":
        return
    known = {"embedded": find_embedded_weights, "imagenet": find_imagenet_weights, "dinov2": find_dinov2_weights}
    path = known[weights](encoder) if weights in known else Path(weights)
    state = read_weights(path)
    own = module.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    shapes = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or shapes:
        what = f"lacks {missing[0]}" if missing else f"has another shape for {shapes[0]}"
        raise ValueError(
            f"Weights file {path} does not fit encoder '{encoder}': it {what} "
            f"({len(missing) + len(shapes)} such tensors). Choose the file of this encoder, or settings that need "
            "no more than the file holds; the fourth stage is in ImageNet's weights (`--weights imagenet`)."
        )
    # num_batches_tracked plays no part in eval mode and is missing in older files
    module.load_state_dict({k: state.get(k, v) for k, v in own.items()})
