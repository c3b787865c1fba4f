# SPDX-License-Identifier: Apache-2.0
"""Anomaly map, score and decision for one picture, with nothing but numpy, Pillow and onnxruntime.

    python onnx_inference.py model.onnx image.png --map map.png

The model comes from ``monai-rdad export``; everything else that is needed stands in its metadata. Not for clinical use.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def read_picture(path: str, channels: int) -> NDArray[Any]:
    """The pixels (channels, height, width) of a picture file: uint8, or float32 if it holds more than bytes."""
    image = Image.open(path)
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits, always grey
        pixels = np.asarray(image, np.float32)[None]
    else:
        image = image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")
        pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    if channels == 1 and len(pixels) == 3:
        luminance = np.array([0.299, 0.587, 0.114], np.float32)
        pixels = np.rint(np.tensordot(luminance, pixels.astype(np.float32), 1))[None].astype(np.uint8)
    return np.repeat(pixels, 3, 0) if channels == 3 and len(pixels) == 1 else pixels


def normalize(pixels: NDArray[Any], rule: dict[str, Any]) -> NDArray[np.float32]:
    """Intensities to [0, 1] by the preset that the model was trained with (``rule`` is its metadata's "input")."""
    preset = rule["intensity"]
    if preset == "auto":
        preset = "8bit" if pixels.dtype == np.uint8 else "percentile"
    if preset == "8bit":
        low, high = 0.0, 255.0
    elif preset == "ct":
        level, width = rule["window"]
        low, high = level - width / 2, level + width / 2
    else:
        smallest = float(pixels.min())
        foreground = pixels[pixels > smallest]
        if not foreground.size:
            raise ValueError("the picture is constant")
        low, high = (float(value) for value in np.percentile(foreground, rule["percentiles"]))
        low, high = (low, high) if high > low else (smallest, high)
    values = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(values, 0, 1).astype(np.float32)


def p_value(score: float, calibration: dict[str, Any], stratum: str = "") -> float:
    """Conformal p-value of a score among those of normal images; images of one patient count together as one."""
    known = calibration["strata"][stratum]
    groups = np.asarray(known["groups"])
    sizes = np.bincount(groups)
    above = np.asarray(known["scores"]) >= score
    count = np.count_nonzero(sizes)
    return min((1 + float((above / sizes[groups]).sum())) / (count + 1), 1.0)


def area_threshold(calibration: dict[str, Any], alpha: float, stratum: str = "") -> float:
    """Map value above which at most the fraction ``alpha`` of a normal image lies, on average."""
    known = calibration["strata"][stratum]
    n = len(set(known["groups"]))
    risk = (n * np.asarray(known["area"]["fractions"]) + 1) / (n + 1)
    allowed = np.flatnonzero(risk <= alpha + 1e-9)
    return float(known["area"]["values"][allowed[0]]) if allowed.size else math.inf


def main() -> None:
    """Print score and decision, write the map."""
    parser = argparse.ArgumentParser(description="Apply an exported detector to a picture. Not for clinical use.")
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--map", help="PNG to write: 16 bits, map value = pixel / 65535 * max_value")
    parser.add_argument("--alpha", type=float, default=0.05, help="false-positive rate of images")
    parser.add_argument("--area-alpha", type=float, default=0.01, help="fraction of a normal image above the threshold")
    parser.add_argument("--stratum", default="", help="scanner or site, if the calibration has such")
    arguments = parser.parse_args()

    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    metadata = {key: json.loads(value) for key, value in properties.items()}

    image = normalize(read_picture(arguments.image, metadata["input"]["channels"]), metadata["input"])
    anomaly_map, scores, model_map = session.run(["map", "score", "model_map"], {"image": image[None]})
    result: dict[str, Any] = {"method": metadata["method"], "score": float(scores[0])}

    calibration = metadata["calibration"]
    if calibration is not None and not calibration["volumes"]:
        if arguments.stratum not in calibration["strata"]:
            known = ", ".join(name for name in calibration["strata"] if name) or "none"
            parser.error(f"stratum '{arguments.stratum}' was not calibrated; known: {known}")
        p = p_value(float(scores[0]), calibration, arguments.stratum)
        threshold = area_threshold(calibration, arguments.area_alpha, arguments.stratum)
        area = float((model_map >= threshold).mean())
        result |= {"p_value": p, "abnormal": int(p <= arguments.alpha + 1e-9), "area": area}
    print(json.dumps(result))

    if arguments.map:
        scale = metadata["max_value"]
        info = PngInfo()
        info.add_text("monai_rdad max_value", repr(scale))
        grey = np.rint(np.clip(anomaly_map[0, 0] / scale, 0, 1) * 65535).astype(np.uint16)
        Image.fromarray(grey).save(arguments.map, pnginfo=info)


if __name__ == "__main__":
    main()
