# SPDX-License-Identifier: Apache-2.0
"""Draws docs/images/label_volume.png from what a running label server answers about a phantom volume.

python scripts/label_figure.py --server http://127.0.0.1:8000 --model scrd --out docs/images/label_volume.png
"""

from __future__ import annotations

import argparse
import json
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from monai_rdad.data import phantom_dataset
from monai_rdad.transforms import ReadImage, ReadMask
from monai_rdad.visualize.overlay import overlay
from monai_rdad.visualize.reduce import color_scale

EDGE, ROWS = 240, 3  # px of a tile; slices: low, that with the highest score, high


def post(url: str, image: Path, suffix: str = "") -> Path | dict:
    """The answer to an image that is sent along: a file, or JSON."""
    boundary = "monai-rdad"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{image.name}"\r\n\r\n'
    body = head.encode() + image.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
        content = answer.read()
    if not suffix:
        return dict(json.loads(content))
    path = Path(tempfile.mkdtemp()) / f"answer{suffix}"
    path.write_bytes(content)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="scrd")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    folder = Path(phantom_dataset())
    volume = folder / "volumes" / "lesion_000.nii.gz"
    url = f"{arguments.server}/infer/{arguments.model}"
    scores = post(f"{url}?output=json", volume)
    label = post(f"{url}?output=image", volume, ".nii.gz")
    heat_map = post(f"{url}_heatmap?output=image", volume, ".nii.gz")
    print(json.dumps(scores, indent=2))

    image = np.asarray(ReadImage()(volume), np.float32)[0]
    values = np.asarray(ReadImage()(heat_map))[0]
    marked = np.asarray(ReadMask()(label))[0]
    truth = np.asarray(ReadMask()(folder / "masks" / "volumes" / volume.name))[0]
    pixels = image / image.max()
    vmin, vmax = color_scale([values])
    rows = [1, int(values.max((0, 1)).argmax()), values.shape[-1] - 2]
    titles = ("image", "true lesion", "label map of the server", "heat map of the server")
    sheet = Image.new("RGB", (len(titles) * EDGE, ROWS * EDGE + 24), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * EDGE + 6, 4), title, fill="black", font_size=15)
    nothing = np.zeros(values.shape[:2], np.float32)
    for row, k in enumerate(rows):
        picture = pixels[..., k]
        tiles = (
            overlay(picture, nothing, 0, 1),
            overlay(picture, nothing, 0, 1, mask=truth[..., k]),
            overlay(picture, nothing, 0, 1, mask=marked[..., k]),
            overlay(picture, values[..., k], vmin, vmax),
        )
        for column, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile).resize((EDGE, EDGE)), (column * EDGE, 24 + row * EDGE))
        draw.text((6, 24 + row * EDGE + 4), f"slice {k}", fill="white", font_size=14)
    sheet.save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
