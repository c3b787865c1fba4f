# SPDX-License-Identifier: Apache-2.0
"""What readers have said about the images of a MONAI Label datastore, and which image comes next."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

from monai_rdad.utils import root_cause

__all__ = ["Datastore", "next_image", "normal_images", "score_images", "unread", "unscored", "verdict"]

logger = logging.getLogger(__name__)

FINAL = "final"  # MONAI Label's tag of a label that a reader has saved
SCORES = "anomaly"  # key of an image's info: {model: {"score": ..., "version": ...}}
NORMAL = "normal"  # key of an image's info: true or false


class Datastore(Protocol):
    """The methods of MONAI Label's ``Datastore`` that are used here."""

    def list_images(self) -> list[str]: ...  # noqa: D102
    def get_unlabeled_images(self) -> list[str]: ...  # noqa: D102
    def get_image_info(self, image_id: str) -> dict[str, Any]: ...  # noqa: D102
    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None: ...  # noqa: D102
    def get_image_uri(self, image_id: str) -> str: ...  # noqa: D102
    def get_label_by_image_id(self, image_id: str, tag: str) -> str: ...  # noqa: D102
    def get_label_uri(self, label_id: str, label_tag: str) -> str: ...  # noqa: D102
    def refresh(self) -> None: ...  # noqa: D102


def verdict(datastore: Datastore, image_id: str) -> Literal["normal", "abnormal"] | None:
    """What a reader said about an image; None if nobody has read it.

    "normal" is an image whose info says ``{"normal": true}``, or whose final label map is empty. ``{"normal": false}``
    and any other final label, also one that cannot be read, are "abnormal".
    """
    said = datastore.get_image_info(image_id).get(NORMAL)
    if isinstance(said, bool):
        return "normal" if said else "abnormal"
    label = datastore.get_label_by_image_id(image_id, FINAL)
    if not label:
        return None
    return "normal" if _is_empty(datastore.get_label_uri(label, FINAL)) else "abnormal"


def normal_images(datastore: Datastore) -> list[str]:
    """Ids of the images that readers call normal."""
    return [image for image in datastore.list_images() if verdict(datastore, image) == "normal"]


def unread(datastore: Datastore) -> list[str]:
    """Ids of the images without a final label and without a word on being normal."""
    images = datastore.get_unlabeled_images()
    return [image for image in images if not isinstance(datastore.get_image_info(image).get(NORMAL), bool)]


def unscored(datastore: Datastore, model: str, version: str) -> list[str]:
    """Ids of the unread images without a score of this version of a model."""
    return [image for image in unread(datastore) if _scored(datastore, image, model).get("version") != version]


def score_images(
    datastore: Datastore, model: str, version: str, score: Callable[[str], dict[str, Any]]
) -> dict[str, int]:
    """Score the unread images and write each result to the info of its image.

    Args:
        datastore: of the images.
        model: name of the model.
        version: of its weights.
        score: from an image's path to {"score": number, ...}.

    Returns:
        How many were "scored", and how many "failed"; these get a "score" of None, with the reason in "error".
    """
    counts = {"scored": 0, "failed": 0}
    for image in unscored(datastore, model, version):
        try:
            result = score(datastore.get_image_uri(image))
            counts["scored"] += 1
        except (ValueError, OSError, RuntimeError) as error:
            result = {"score": None, "error": str(root_cause(error))}
            counts["failed"] += 1
            logger.warning("an image could not be scored; the reason is in its info")
        # What others have written meanwhile: this may take long, and may run in a process of its own.
        datastore.refresh()
        scores = dict(datastore.get_image_info(image).get(SCORES) or {})
        datastore.update_image_info(image, {SCORES: scores | {model: result | {"version": version}}})
    return counts


def next_image(datastore: Datastore, model: str, strategy: str) -> dict[str, Any] | None:
    """The unread image with the highest score; images that a client got before come after all others, oldest first.

    Args:
        datastore: of the images.
        model: whose scores count.
        strategy: name under which MONAI Label writes when an image was given to a client.

    Returns:
        {"id", "anomaly_score"}, or None if every image has been read. Images without a score come last.
    """

    def order(image: str) -> tuple[int, float, str]:
        info = datastore.get_image_info(image)
        served = (info.get("strategy") or {}).get(strategy, {}).get("ts", 0)
        score = _scored(datastore, image, model).get("score")
        return int(served), -score if score is not None else math.inf, image

    images = unread(datastore)
    if not images:
        return None
    first = min(images, key=order)
    return {"id": first, "anomaly_score": _scored(datastore, first, model).get("score")}


def _scored(datastore: Datastore, image: str, model: str) -> dict[str, Any]:
    return dict((datastore.get_image_info(image).get(SCORES) or {}).get(model) or {})


def _is_empty(path: str) -> bool:
    import SimpleITK

    try:
        return not SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).any()
    except RuntimeError:
        logger.warning("a final label cannot be read; its image counts as abnormal")
        return False
