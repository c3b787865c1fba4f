# SPDX-License-Identifier: Apache-2.0
"""The support file of a few-shot network: features of normal images of one organ, with what they belong to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_rdad.utils import atomic_path

__all__ = ["check_weights", "load_support", "save_support", "support_images", "weights_hash"]

FORMAT = "monai_rdad support 1"
MAPS = ("map1", "map2", "map3")
KEYS = ("key1", "key2", "key3")


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and values of a state dict, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def save_support(path: str | os.PathLike[str], network: Any, images: Mapping[str, str]) -> Path:
    """Write the supports that were set in a network to a ``.safetensors`` file, complete or not at all.

    Args:
        path: of the file.
        network: a :class:`~monai_rdad.networks.nets.D24FAD` after ``set_support``.
        images: names of the images, in the order in which they were set, and the SHA-256 of their files.

    Raises:
        ValueError: the network has no supports, or not as many as there are names.
    """
    from safetensors.torch import save_file

    count = network.map1.shape[1] if network.map1.numel() else 0
    if count == 0 or count != len(images):
        raise ValueError(f"the network has {count} supports, {len(images)} images are named. Call set_support first.")
    size = [16 * n for n in network.map3.shape[3:]]  # of the images: the third map has a sixteenth of their resolution
    metadata = {
        "format": FORMAT,
        "images": json.dumps(dict(images)),
        "shots": str(count),
        "image_size": json.dumps(size),
        "compare": network.compare,
        "weights_sha256": weights_hash(network),
    }
    tensors = {name: getattr(network, name).detach().cpu().contiguous() for name in (*MAPS, *KEYS)}
    with atomic_path(path) as temporary:
        save_file({k: v for k, v in tensors.items() if v.numel()}, temporary, metadata)
    return Path(path)


def support_images(path: str | os.PathLike[str]) -> dict[str, str]:
    """Names and SHA-256 of the images in a support file, in their order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no support file.
    """
    return dict(json.loads(_read(path)[0]["images"]))


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a support file."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no support file {path}. Give a folder with 2 to 8 normal images as support.")
    try:
        with safe_open(os.fspath(path), "pt") as file:
            content = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a support file ({error}). Make it anew from the images.") from error
    if content.get("format") != FORMAT or not set(MAPS) <= set(tensors):
        raise ValueError(f"{path} is no support file of this package. Make one from a folder of normal images.")
    return content, tensors


def load_support(path: str | os.PathLike[str], network: Any, check: bool = True) -> dict[str, Any]:
    """Set the supports of a network from a file of :func:`save_support`.

    Args:
        path: of the file.
        network: a :class:`~monai_rdad.networks.nets.D24FAD` with the weights that the supports were computed with.
        check: compare the weights now; without it they are compared when the network loads weights.

    Returns:
        "images" (name -> SHA-256), "shots", "image_size" [H, W], "compare", "weights_sha256".

    Raises:
        FileNotFoundError: no such file.
        ValueError: no support file, or one of other weights, another comparison or weighting.
    """
    content, tensors = _read(path)
    if content["compare"] != network.compare:
        raise ValueError(
            f"{path} holds features for compare '{content['compare']}', the network has '{network.compare}'. Make it "
            "anew from the images."
        )
    for i, name in enumerate(MAPS):
        if tensors[name].ndim != 5 or tensors[name].shape[2] != network.decoder_channels[i]:
            raise ValueError(f"{path} belongs to another encoder. Make it anew from the images.")
    if tensors["map1"].shape[3] != (2 if network.pooled else 4) * tensors["map3"].shape[3]:
        raise ValueError(f"{path} was made with another setting of 'pooled'. Make it anew from the images.")
    if network.keys is not None and not set(KEYS) <= set(tensors):
        raise ValueError(f"{path} was made without learned weights, the network has them. Make it anew.")
    device = next(network.parameters()).device
    for name in (*MAPS, *KEYS):
        setattr(network, name, tensors[name].to(device) if name in tensors else torch.zeros(0, device=device))
    network.support_weights_hash = content["weights_sha256"]
    if check:
        check_weights(network)
    return {
        "images": json.loads(content["images"]),
        "shots": int(content["shots"]),
        "image_size": json.loads(content["image_size"]),
        "compare": content["compare"],
        "weights_sha256": content["weights_sha256"],
    }


def check_weights(network: Any) -> None:
    """Supports from a file have to be those of the network's weights.

    Raises:
        ValueError: they are not; the supports are forgotten.
    """
    actual = weights_hash(network)
    if network.support_weights_hash != actual:
        expected = str(network.support_weights_hash)
        network.clear_support()
        raise ValueError(
            f"The supports were computed with other weights ({expected[:12]}..., now {actual[:12]}...). Make the "
            "support file anew from the images, or load the model it belongs to."
        )
