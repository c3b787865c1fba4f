# SPDX-License-Identifier: Apache-2.0
"""How much faster is AUPRO from streamed histograms than the loop over thresholds that the releases run?

Per repeat both see the same maps: ours as `PixelAccumulator` (which also gives pixel AUROC, AP and Dice), the other as
200 thresholds, with connected components and a loop over regions at each. CPU time of this process, one thread:

    OMP_NUM_THREADS=1 python benchmarks/bench_metrics.py --maps 20 --size 256 --repeats 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops

from monai_rdad.metrics import PixelAccumulator

Maps = NDArray[np.float32]
Masks = NDArray[np.uint8]


def make_maps(count: int, size: int, seed: int) -> tuple[Maps, Masks]:
    """Smooth maps of cosine-distance size that respond, imperfectly, to a few blobs in every second mask."""
    generator = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(generator.normal(size=(count, size, size)), (0, 6, 6))
    blobs = ndimage.gaussian_filter(generator.normal(size=(count, size, size)), (0, 8, 8))
    masks = blobs > 2.2 * blobs.std()
    masks[::2] = False
    lesions = ndimage.gaussian_filter(masks.astype(np.float32), (0, 4, 4))
    maps = 0.05 * np.exp(noise / noise.std() * 0.6 + 1.5 * lesions)
    return maps.astype(np.float32), masks.astype(np.uint8)


def aupro_by_thresholds(maps: Maps, masks: Masks, thresholds: int = 200, limit: float = 0.3) -> float:
    """AUPRO by thresholding all maps, finding the regions and visiting each of them, once per threshold."""
    points = []
    normal = masks == 0
    for threshold in np.linspace(maps.min(), maps.max(), thresholds, endpoint=False):
        positive = maps > threshold
        overlaps = []
        for prediction, mask in zip(positive, masks, strict=True):
            for region in regionprops(label(mask)):
                rows, columns = region.coords.T
                overlaps.append(prediction[rows, columns].sum() / region.area)
        points.append(((positive & normal).sum() / normal.sum(), np.mean(overlaps)))
    fpr, pro = np.array([*points[::-1], (1.0, 1.0)]).T
    fpr, pro = np.concatenate([[0.0], fpr]), np.concatenate([[0.0], pro])
    inside = fpr < limit
    x, y = np.append(fpr[inside], limit), np.append(pro[inside], np.interp(limit, fpr, pro))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit)


def aupro_by_histogram(maps: Maps, masks: Masks) -> float:
    """AUPRO as the handler computes it, group histograms included."""
    pixels = PixelAccumulator()
    for i, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels.update(anomaly_map, mask, group=str(i))
    return pixels.compute()["aupro_0.3"]


def cpu_seconds(function: Callable[[Maps, Masks], float], maps: Maps, masks: Masks, calls: int) -> tuple[float, float]:
    """Mean CPU time of some calls, and the result."""
    start = time.process_time()
    for _ in range(calls):
        result = function(maps, masks)
    return (time.process_time() - start) / calls, result


def main() -> None:
    """Print times and ratios; fail if the smallest ratio is below the promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--at_least", type=float, default=50.0, help="smallest ratio that counts as success")
    args = parser.parse_args()
    ratios = []
    for seed in range(args.repeats):
        maps, masks = make_maps(args.maps, args.size, seed)
        fast, ours = cpu_seconds(aupro_by_histogram, maps, masks, calls=10)
        slow, theirs = cpu_seconds(aupro_by_thresholds, maps, masks, calls=1)
        ratios.append(slow / fast)
        print(
            f"repeat {seed}: {slow:.2f} s by thresholds, {1000 * fast:.1f} ms by histograms, ratio {slow / fast:.0f}; "
            f"AUPRO {theirs:.4f} and {ours:.4f}"
        )
    print(f"ratio min/median/max: {min(ratios):.0f} / {np.median(ratios):.0f} / {max(ratios):.0f}")
    if min(ratios) < args.at_least:
        raise SystemExit(f"AUPRO is less than {args.at_least:g} times faster than the loop over thresholds")


if __name__ == "__main__":
    main()
