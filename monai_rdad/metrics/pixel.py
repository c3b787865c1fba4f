# SPDX-License-Identifier: Apache-2.0
"""Pixel-level figures, streamed into histograms whose size does not depend on the number of images.

The bin of a value is its float32 bit pattern without the lowest bits. Bit patterns of non-negative floats are ordered
like the floats, so this needs no value range in advance: the bins are logarithmic, with 4096 steps per octave, i.e. a
relative width of at most 2.4e-4, whether a map lives near 1e-5 or near 5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_rdad.metrics import curves

__all__ = ["AUPRO_LIMIT", "PIXEL_METRICS", "PixelAccumulator", "PixelHistogram", "pixel_curve_figures"]

AUPRO_LIMIT = 0.3
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "aupro_0.3", "oracle_dice")

_MANTISSA_BITS = 12
# Cosine distances in float32 are rounding noise below 2^-24; the upper end is far above any sum of distances.
_SMALLEST, _LARGEST = np.float32(2.0**-24), np.float32(2.0**16)
_ROUNDING = 1e-4  # 1 - cos may fall below 0 by rounding (bfloat16 included); anything lower is not a distance
_GROUP_COARSENING = 2  # bits: 1024 steps per octave are ample for intervals
_COARSEST = 20  # bits: a single bin for every float32
_GROUP_BYTES = 128 << 20


class PixelHistogram:
    """Three histograms over consecutive bins: normal pixels, abnormal pixels, abnormal pixels by region.

    In the third each abnormal pixel weighs 1 / (size of its connected region), so that the weights of a region sum to 1
    and AUPRO needs nothing but cumulative sums.

    Attributes:
        first: number of the first bin.
        counts: float (3, bins).
    """

    def __init__(self, first: int, counts: NDArray[np.floating[Any]]) -> None:
        self.first = first
        self.counts = counts

    @classmethod
    def from_map(cls, anomaly_map: NDArray[np.float32], mask: NDArray[np.uint8]) -> PixelHistogram | None:
        """Histogram of one map.

        Regions are connected through edges and corners (8-connectivity in 2D, scikit-image's default), which keeps thin
        diagonal structures in one piece.

        Args:
            anomaly_map: finite, not negative, any number of spatial axes.
            mask: same shape; 0 normal, 1 abnormal, anything else unknown, which is ignored.

        Returns:
            the histogram, or None if every pixel is unknown.
        """
        bits = np.clip(anomaly_map, _SMALLEST, _LARGEST, dtype=np.float32).view(np.uint32)
        keys = (bits >> (23 - _MANTISSA_BITS)).astype(np.intp).ravel()
        abnormal = mask == 1
        is_known = abnormal | (mask == 0)
        known = keys if is_known.all() else keys[is_known.ravel()]
        if known.size == 0:
            return None
        first = int(known.min())
        span = int(known.max()) - first + 1
        counts = np.zeros((3, span))
        counts[0] = np.bincount(known - first, minlength=span)
        where = np.flatnonzero(abnormal)
        if where.size:
            regions, _ = ndimage.label(abnormal, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
            region = regions.ravel()[where]
            where_key = keys[where] - first
            counts[1] = np.bincount(where_key, minlength=span)
            counts[2] = np.bincount(where_key, weights=1.0 / np.bincount(region)[region], minlength=span)
            counts[0] -= counts[1]
        return cls(first, counts)

    @staticmethod
    def lower_edges(bins: NDArray[np.integer[Any]], bits: int = 0) -> NDArray[np.float32]:
        """Smallest value of each bin, by its number in a histogram coarsened by ``bits``."""
        return (bins.astype(np.uint32) << np.uint32(23 - _MANTISSA_BITS + bits)).view(np.float32)

    def above(self, threshold: float) -> NDArray[np.float64]:
        """Sums (3,) of the bins from that of ``threshold`` on."""
        key = int(np.float32(threshold).view(np.uint32) >> (23 - _MANTISSA_BITS))
        return np.asarray(self.counts[:, max(key - self.first, 0) :].sum(1), dtype=np.float64)

    def add(self, other: PixelHistogram) -> None:
        """Add another histogram with bins of the same width in place."""
        first = min(self.first, other.first)
        end = max(self.first + self.counts.shape[1], other.first + other.counts.shape[1])
        if end - first != self.counts.shape[1]:
            counts = np.zeros((3, end - first), dtype=self.counts.dtype)
            counts[:, self.first - first :][:, : self.counts.shape[1]] = self.counts
            self.first, self.counts = first, counts
        self.counts[:, other.first - first :][:, : other.counts.shape[1]] += other.counts

    def coarsened(self, bits: int) -> PixelHistogram:
        """Copy in float32 with 2**bits neighbouring bins merged into one."""
        first = self.first >> bits
        end = (self.first + self.counts.shape[1] - 1 >> bits) + 1
        counts = np.zeros((3, end - first << bits), dtype=np.float32)
        counts[:, self.first - (first << bits) :][:, : self.counts.shape[1]] = self.counts
        for _ in range(bits):  # much faster than a sum over a short last axis
            counts = counts[:, ::2] + counts[:, 1::2]
        return PixelHistogram(first, counts)


class PixelAccumulator:
    """Pixel metrics over a stream of maps, in bounded memory.

    One fine histogram of everything gives the figures (at most 40 octaves x 4096 bins, 4 MB). One coarser histogram per
    group is kept for the bootstrap; whenever those exceed `group_bytes` together, their bins are merged in pairs.

    Args:
        group_bytes: memory for the histograms of all groups.
        by_group: whether to keep them at all.

    Attributes:
        images: number of maps with known pixels.
    """

    def __init__(self, by_group: bool = True, group_bytes: int = _GROUP_BYTES) -> None:
        self.by_group = by_group
        self.group_bytes = group_bytes
        self.images = 0
        self.total: PixelHistogram | None = None
        self.groups: dict[str, PixelHistogram] = {}
        self.coarsening = _GROUP_COARSENING
        self._bytes = 0

    @property
    def regions(self) -> int:
        """Number of connected abnormal regions seen."""
        return 0 if self.total is None else round(float(self.total.counts[2].sum()))

    @property
    def nbytes(self) -> int:
        """Memory of all histograms in bytes."""
        return self._bytes + (0 if self.total is None else self.total.counts.nbytes)

    def update(
        self, anomaly_map: NDArray[np.float32], mask: NDArray[np.uint8], group: str = "", name: str = ""
    ) -> None:
        """Take one map in.

        Args:
            anomaly_map: float (H, W) or (H, W, D), not negative.
            mask: same shape; 0 normal, 1 abnormal, 255 unknown (ignored).
            group: patient, scan or slide.
            name: the image's name for error messages.

        Raises:
            ValueError: if the shapes differ or the map is not finite or clearly negative.
        """
        if anomaly_map.shape != mask.shape:
            raise ValueError(
                f"Map and mask of {name!r} differ in shape: {anomaly_map.shape} and {mask.shape}; resize both alike."
            )
        lowest, highest = anomaly_map.min(), anomaly_map.max()  # both are NaN if one value is
        if not (lowest >= -_ROUNDING and np.isfinite(highest)):
            raise ValueError(
                f"The anomaly map of {name!r} spans {lowest:g} to {highest:g}: it has to be finite and not negative."
            )
        histogram = PixelHistogram.from_map(anomaly_map, mask)
        if histogram is None:
            return
        self.images += 1
        if self.by_group:
            self._add_group(group, histogram.coarsened(self.coarsening))
        self._add_total(histogram)

    def merge(self, other: PixelAccumulator) -> None:
        """Take everything in that another accumulator, of another process, has seen."""
        self.images += other.images
        if other.total is not None:
            self._add_total(PixelHistogram(other.total.first, other.total.counts.copy()))
        self._coarsen(max(other.coarsening - self.coarsening, 0))
        for group, histogram in other.groups.items():
            self._add_group(group, histogram.coarsened(self.coarsening - other.coarsening))

    def compute(self) -> dict[str, float]:
        """The figures `PIXEL_METRICS`, pooled over all known pixels; empty without any normal or abnormal pixel."""
        if self.total is None or not (self.total.counts.sum(1) > 0).all():
            return {}
        return {k: float(v) for k, v in pixel_curve_figures(self.total.counts).items()}

    def dense_groups(self, max_bins: int = 8192) -> tuple[list[str], NDArray[np.float32]]:
        """Names of the groups, sorted, and their histograms over common bins: float32 (groups, 3, bins)."""
        names = sorted(self.groups)
        if not names:
            return [], np.zeros((0, 3, 0), dtype=np.float32)
        bins = max(1, min(max_bins, self.group_bytes // (12 * len(names))))
        parts = [self.groups[n] for n in names]
        first, last = min(h.first for h in parts), max(h.first + h.counts.shape[1] - 1 for h in parts)
        bits = next(b for b in range(33) if (last >> b) - (first >> b) < bins or b == 32)
        dense = np.zeros((len(names), 3, (last >> bits) - (first >> bits) + 1), dtype=np.float32)
        for row, histogram in zip(dense, parts, strict=True):
            coarse = histogram.coarsened(bits)
            row[:, coarse.first - (first >> bits) :][:, : coarse.counts.shape[1]] = coarse.counts
        return names, dense

    def _add_total(self, histogram: PixelHistogram) -> None:
        if self.total is None:
            self.total = histogram
        else:
            self.total.add(histogram)

    def _add_group(self, group: str, histogram: PixelHistogram) -> None:
        before = 0
        if group in self.groups:
            before = self.groups[group].counts.nbytes
            self.groups[group].add(histogram)
        else:
            self.groups[group] = histogram
        self._bytes += self.groups[group].counts.nbytes - before
        while self._bytes > self.group_bytes and self.coarsening < _COARSEST:
            self._coarsen(1)

    def _coarsen(self, bits: int) -> None:
        if bits:
            self.groups = {name: h.coarsened(bits) for name, h in self.groups.items()}
            self.coarsening += bits
            self._bytes = sum(h.counts.nbytes for h in self.groups.values())


def pixel_curve_figures(counts: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float64]]:
    """The figures `PIXEL_METRICS`, each of shape (...), from histograms (..., 3, bins) as in `PixelHistogram.counts`.

    `pixel_auroc` and `pixel_ap` pool all pixels; `aupro_0.3` is the area under per-region overlap up to a
    false-positive rate of 0.3, divided by 0.3; `oracle_dice` is the Dice of all pixels pooled, at the threshold that is
    best for these very masks.
    """
    normal, abnormal, by_region = counts[..., 0, :], counts[..., 1, :], counts[..., 2, :]
    return {
        "pixel_auroc": curves.auroc(normal, abnormal),
        "pixel_ap": curves.average_precision(normal, abnormal),
        "aupro_0.3": curves.aupro(normal, by_region, AUPRO_LIMIT),
        "oracle_dice": curves.best_f1(normal, abnormal)[0],
    }
