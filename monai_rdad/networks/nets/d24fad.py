# SPDX-License-Identifier: Apache-2.0
"""D2-4FAD: dual distillation for few-shot anomaly detection."""

# No postponed annotations: the class of this file is compiled by TorchScript.
import math
from typing import List, Optional, Tuple  # noqa: UP035

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_rdad.features import FeaturePairs
from monai_rdad.networks.blocks.matching import align, nearest, unit
from monai_rdad.networks.blocks.whitening import Whitening
from monai_rdad.networks.encoders.resnet import RESNETS, FrozenEncoder
from monai_rdad.networks.encoders.weights import load_encoder_weights
from monai_rdad.networks.nets.rd4ad import build_student
from monai_rdad.networks.precision import PRECISIONS, full_precision, mixed_precision
from monai_rdad.utils import one_of

__all__ = ["D24FAD"]


class D24FAD(nn.Module):
    r"""Teacher, mirrored student, and supports to compare with (Dong et al., ICLR 2026, arXiv 2603.01713).

    A query is compared, position by position, with K normal images of the same organ, its supports. In training the
    student learns to reconstruct the teacher (teacher-student distillation) and to make query and supports alike
    (student self-distillation), each support with a learned weight per scale. Afterwards the supports of an organ that
    was never trained on are set once by :meth:`set_support`; a query then costs one forward pass.

    :math:`w_k`, the weights of the supports at a scale, are a softmax over K of the similarity of the query's student
    map o to a 1x1 convolution :math:`\phi` of the support's.

    Args:
        encoder: teacher, one of :data:`~monai_rdad.networks.encoders.resnet.RESNETS`.
        weights: of the teacher, see :func:`~monai_rdad.networks.encoders.weights.load_encoder_weights`.
        start: what the student starts from: "stage4", the teacher's fourth stage (published), or "bottleneck", the
            one-class embedding of RD4AD, for teachers whose weights end at stage 3.
        weighting: how K supports become one comparison. "distances": average of the K cosine distances with weights
            :math:`w_k` (paper); "features": distance to the average of features (authors' release); "none": average of
            distances with equal weights; "nearest": smallest distance at each position.
        logits: "published": :math:`\langle o(q), \phi(o(s_k)) \rangle / \sqrt{C}`, which grows with the number of
            positions; "normalised": mean over positions of the cosine, divided by ``temperature``.
        temperature: of the normalised logits.
        stop_gradient: the branch that the self-distillation does not change: "none" (published), "support", "query", or
            "both", which leaves it the weights of the supports alone.
        window: reach in positions of the coarsest map, twice and four times as many on the finer ones, in which the
            best match of a query's position is looked for in each support; 0 compares at the same position (published),
            None looks everywhere.
        pooled: average the finest maps over 2 x 2 positions before they are matched.
        compare: features that the map compares: "student" (published); "teacher"; "whitened", the teacher's in the
            measure of how normal images of the training tasks differ from their supports, see
            :class:`~monai_rdad.networks.blocks.whitening.Whitening`. The training compares those of the student.
        whole_maps: self-distillation by one cosine of whole maps (published) instead of one per position.
        reconstruction: add the distance between the query's teacher and student maps, as RD4AD has it, to the map.
        precision: "auto", "bf16" or "fp32", see :func:`~monai_rdad.networks.precision.mixed_precision`.
        support: file of :func:`~monai_rdad.networks.support.save_support` to start with, for export.

    Attributes:
        entropy: of the weights in the last training step as a fraction of log K, mean over scales; 1 without weights.
        spread: variance over the batch of the student's unit vectors in the last training step, mean over scales; near
            0, the student has become a constant.

    Raises:
        ValueError: unknown option, or a negative window.
    """

    STARTS = ("stage4", "bottleneck")
    WEIGHTINGS = ("distances", "features", "none", "nearest")
    LOGITS = ("published", "normalised")
    STOPS = ("none", "support", "query", "both")
    COMPARISONS = ("student", "teacher", "whitened")

    map1: Tensor
    map2: Tensor
    map3: Tensor
    key1: Tensor
    key2: Tensor
    key3: Tensor
    entropy: Tensor
    spread: Tensor

    def __init__(
        self,
        encoder: str = "wide_resnet50_2",
        weights: str = "imagenet",
        start: str = "stage4",
        weighting: str = "distances",
        logits: str = "normalised",
        temperature: float = 0.1,
        stop_gradient: str = "none",
        window: int | None = 0,
        pooled: bool = False,
        compare: str = "student",
        whole_maps: bool = False,
        reconstruction: bool = False,
        precision: str = "auto",
        support: str | None = None,
    ) -> None:
        super().__init__()
        self.precision = one_of("precision", precision, PRECISIONS)
        self.weighting = one_of("weighting", weighting, self.WEIGHTINGS)
        self.logits = one_of("logits", logits, self.LOGITS)
        self.stop_gradient = one_of("stop_gradient", stop_gradient, self.STOPS)
        self.compare = one_of("compare", compare, self.COMPARISONS)
        self.still_query, self.still_support = stop_gradient in ("query", "both"), stop_gradient in ("support", "both")
        self.whole_maps, self.pooled = whole_maps, pooled
        if (window is not None and window < 0) or temperature <= 0:
            raise ValueError(f"window is {window} and temperature {temperature}: at least 0 and above 0 are needed.")
        self.windows = [-1, -1, -1] if window is None else [(2 if pooled else 4) * window, 2 * window, window]
        self.temperature = temperature
        self.reconstruction = reconstruction
        self.teacher = FrozenEncoder(encoder, stages=4 if one_of("start", start, self.STARTS) == "stage4" else 3)
        load_encoder_weights(self.teacher, encoder, weights)
        bottleneck, self.decoder = build_student(encoder)
        self.bottleneck = bottleneck if start == "bottleneck" else None
        self.decoder_channels = [RESNETS[encoder].channels(stage) for stage in (1, 2, 3)]
        self.whitening = None
        if compare == "whitened":
            self.whitening = nn.ModuleList([Whitening(c) for c in self.decoder_channels])
        # what the map reads of the student decides whether a query has to pass through it
        self.needs_student = compare == "student" or reconstruction or weighting in ("distances", "features")
        self.keys = None
        if weighting in ("distances", "features"):
            convolutions = [nn.Conv2d(c, c, 1) for c in self.decoder_channels]
            for convolution in convolutions:
                nn.init.dirac_(convolution.weight)  # begins as the plain similarity of the two maps
                nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            self.keys = nn.ModuleList(convolutions)
        # Not in the state dict: supports change from organ to organ and have a file of their own.
        for name in ("map1", "map2", "map3", "key1", "key2", "key3"):
            self.register_buffer(name, torch.zeros(0), persistent=False)
        self.register_buffer("entropy", torch.zeros(()), persistent=False)
        self.register_buffer("spread", torch.zeros(()), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.support_weights_hash: str | None = None
        self.register_load_state_dict_post_hook(_check_support)
        if support is not None:
            from monai_rdad.networks.support import load_support

            load_support(support, self, check=False)

    def train(self, mode: bool = True) -> "D24FAD":
        """As usual; training forgets the supports, whose features would no longer be those of the weights."""
        if mode:
            self.clear_support()
        return super().train(mode)

    def clear_support(self) -> None:
        """Forget the supports."""
        self.support_weights_hash = None
        for name in ("map1", "map2", "map3", "key1", "key2", "key3"):
            setattr(self, name, getattr(self, name).new_zeros(0))

    @torch.no_grad()
    def set_support(self, images: Tensor) -> None:
        """Compute and keep the features of the supports for all later queries.

        The network is put into evaluation mode: features of a batch that its batch norms see would depend on the batch.

        Args:
            images: float (K, 1 or 3, H, W) in [0, 1], normal images of one organ, of the size of the queries.
        """
        self.eval()
        with mixed_precision(images.device, self.precision):
            teacher, student = self.encode(images)
        with full_precision(images.device):
            maps = self.compared(teacher, student)
            keys = self.support_keys([x[None] for x in student])
        self.map1, self.map2, self.map3 = [x[None] for x in maps]
        self.key1, self.key2, self.key3 = keys
        self.support_weights_hash = None

    def encode(self, image: Tensor) -> Tuple[List[Tensor], List[Tensor]]:  # noqa: UP006
        """Three maps of the teacher and of the student; the teacher's twice where nothing reads the student's."""
        maps = self.teacher(image.contiguous(memory_format=torch.channels_last))
        if not (self.training or self.needs_student):
            return maps[:3], maps[:3]
        embedding = maps[-1] if self.bottleneck is None else self.bottleneck(maps[0], maps[1], maps[2])
        return maps[:3], self.decoder(embedding)

    def pool(self, maps: List[Tensor]) -> List[Tensor]:  # noqa: UP006
        """The maps (N, C, H, W) that are matched, with ``pooled`` the finest at half its resolution."""
        return [F.avg_pool2d(maps[0].float(), 2), maps[1], maps[2]] if self.pooled else maps

    def compared(self, teacher: List[Tensor], student: List[Tensor]) -> List[Tensor]:  # noqa: UP006
        """The features (N, C, H, W) that are matched."""
        if self.training or self.compare == "student":
            return self.pool(student)
        maps = self.pool(teacher)
        if self.whitening is None:
            return maps
        white: List[Tensor] = []  # noqa: UP006
        for i, whiten in enumerate(self.whitening):
            white.append(whiten(maps[i]))
        return white

    def support_keys(self, student: List[Tensor]) -> List[Tensor]:  # noqa: UP006
        """The supports' student maps (B, K, C, H, W) after phi; empty tensors without learned weights."""
        keys: List[Tensor] = []  # noqa: UP006
        if self.keys is None:
            for s in student:
                keys.append(s.new_zeros(0))
        else:
            for i, convolution in enumerate(self.keys):
                s = student[i]
                keys.append(convolution(s.float().flatten(0, 1)).view(s.shape))
        return keys

    def support_weights(self, query: Tensor, key: Tensor, count: int) -> Tensor:
        """Weights (B, K) of the supports at one scale."""
        if self.keys is None:
            return torch.full((query.shape[0], count), 1.0 / count, device=query.device)
        if self.logits == "published":
            logits = (query.float()[:, None] * key).sum([2, 3, 4]) / math.sqrt(query.shape[1])
        else:
            logits = (unit(query, [1])[:, None] * unit(key, [2])).sum(2).mean([2, 3]) / self.temperature
        return logits.softmax(1)

    def pair(self, query: Tensor, support: Tensor, weights: Tensor, window: int) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """Two maps whose cosine distance at each position is that of the query to its weighted supports."""
        whole = self.training and self.whole_maps
        if self.weighting == "nearest":
            target, prediction = nearest(query, support, window), query
        elif self.weighting == "features":
            target, prediction = (weights[:, :, None, None, None] * align(query, support, window)).sum(1), query
        else:
            # The cosine of [sqrt(w_k) a]_k and [sqrt(w_k) b_k]_k, a and b_k of unit length, is the mean of the cosines
            # of a and b_k with weights w_k: of vectors or of whole maps.
            dims = [-3, -2, -1] if whole else [-3]
            root = weights.clamp_min(1e-12).sqrt()[:, :, None, None, None]
            target = (root * unit(align(query, support, window), dims)).flatten(1, 2)
            return target, (root * unit(query, dims)[:, None]).flatten(1, 2)
        if self.training and not whole:  # the loss takes one cosine: of unit vectors it is the mean over positions
            target, prediction = unit(target, [1]), unit(prediction, [1])
        return target, prediction

    def match(
        self,
        teacher: List[Tensor],  # noqa: UP006
        student: List[Tensor],  # noqa: UP006
        support: List[Tensor],  # noqa: UP006
        keys: List[Tensor],  # noqa: UP006
    ) -> FeaturePairs:
        """Pairs of a query's maps with the supports' ones (B or 1, K, C, H, W), in float32."""
        queries = self.compared(teacher, student)
        targets: List[Tensor] = []  # noqa: UP006
        predictions: List[Tensor] = []  # noqa: UP006
        for i in range(len(student)):
            query, o = queries[i], student[i]
            if self.training and self.still_query:
                query, o = query.detach(), o.detach()
            weights = self.support_weights(o, keys[i], support[i].shape[1])
            if not torch.jit.is_scripting() and self.training:
                self.observe(i, o, weights)
            target, prediction = self.pair(query, support[i], weights, self.windows[i])
            targets.append(target)
            predictions.append(prediction)
        if self.training or self.reconstruction:
            targets = targets + teacher
            predictions = predictions + student
        return FeaturePairs(targets, predictions)

    def episode(self, image: Tensor, support: Tensor) -> FeaturePairs:
        """Query and supports in one pass."""
        b, k = support.shape[0], support.shape[1]
        teacher, student = self.encode(torch.cat([image, support.flatten(0, 1)]))
        if torch.jit.is_scripting():
            return self.divide(teacher, student, b, k)
        with full_precision(image.device):
            return self.divide(teacher, student, b, k)

    def divide(self, teacher: List[Tensor], student: List[Tensor], b: int, k: int) -> FeaturePairs:  # noqa: UP006
        """Pairs from the maps of b queries followed by those of their k supports each."""
        if not torch.jit.is_scripting() and self.training and self.whitening is not None:
            self.learn_whitening(teacher, b, k)
        own = [x[b:].detach() if self.still_support else x[b:] for x in student]
        keys = self.support_keys([x.unflatten(0, [b, k]) for x in own])
        maps = [x.unflatten(0, [b, k]) for x in self.compared([x[b:] for x in teacher], own)]
        return self.match([x[:b] for x in teacher], [x[:b] for x in student], maps, keys)

    @torch.jit.unused
    @torch.no_grad()
    def learn_whitening(self, teacher: List[Tensor], b: int, k: int) -> None:  # noqa: UP006
        """Takes in how the teacher's features of b queries differ from their matches in k supports each."""
        assert self.whitening is not None
        for i, x in enumerate(self.pool(teacher)):
            whiten = self.whitening[i]
            assert isinstance(whiten, Whitening)
            whiten.update(nearest(x[:b], x[b:].unflatten(0, [b, k]), self.windows[i]), x[:b])

    @torch.jit.unused
    @torch.no_grad()
    def observe(self, scale: int, student: Tensor, weights: Tensor) -> None:
        """Statistics of a training step at one scale, for whoever watches."""
        entropy = -(weights * weights.clamp_min(1e-12).log()).sum(1).mean() / math.log(max(weights.shape[1], 2))
        spread = unit(student, [1]).var(0, unbiased=False).sum(0).mean()
        if scale == 0:
            self.entropy.zero_()
            self.spread.zero_()
        self.entropy += entropy / len(self.decoder_channels)
        self.spread += spread / len(self.decoder_channels)

    def query(self, image: Tensor) -> FeaturePairs:
        """A query against the supports that were set."""
        if self.map1.numel() == 0:
            raise ValueError("D24FAD has no supports to compare with: call set_support(images), or pass `support`.")
        teacher, student = self.encode(image)
        if self.map3.shape[3:] != student[2].shape[2:]:
            raise ValueError("The image has another size than the supports: resize it, or set supports of its size.")
        maps, keys = [self.map1, self.map2, self.map3], [self.key1, self.key2, self.key3]
        if torch.jit.is_scripting():
            return self.match(teacher, student, maps, keys)
        with full_precision(image.device):
            return self.match(teacher, student, maps, keys)

    def forward(self, image: Tensor, support: Optional[Tensor] = None) -> FeaturePairs:  # noqa: UP045
        """Maps of queries beside those of their supports.

        Args:
            image: float (B, 1 or 3, H, W) in [0, 1], H and W multiples of 32.
            support: float (B, K, 1 or 3, H, W), the supports of each query; without it those of :meth:`set_support`.

        Returns:
            Three pairs of the supports' maps (targets) and the query's (predictions), at a quarter, an eighth and a
            sixteenth of the resolution; in training, and with ``reconstruction``, followed by three pairs of the
            query's teacher and student maps.

        Raises:
            ValueError: no supports, or supports of another size.
        """
        if torch.jit.is_scripting():
            return self.query(image) if support is None else self.episode(image, support)
        with mixed_precision(image.device, self.precision):
            return self.query(image) if support is None else self.episode(image, support)


def _check_support(module: D24FAD, incompatible_keys: object) -> None:
    """Supports that were computed with other weights than those just loaded are no supports."""
    if module.support_weights_hash is not None:
        from monai_rdad.networks.support import check_weights

        check_weights(module)
