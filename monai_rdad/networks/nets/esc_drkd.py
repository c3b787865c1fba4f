# SPDX-License-Identifier: Apache-2.0
"""ESC-DRKD: reverse distillation with projected skip connections."""

# No postponed annotations: the class of this file is compiled by TorchScript.
from typing import List, Optional  # noqa: UP035

import torch
from torch import Tensor, nn

from monai_rdad.features import FeaturePairs
from monai_rdad.networks.blocks.projection import FeatureProjection
from monai_rdad.networks.blocks.residual import init_convolutions, residual_stage
from monai_rdad.networks.encoders.resnet import RESNETS, FrozenEncoder
from monai_rdad.networks.encoders.weights import load_encoder_weights
from monai_rdad.networks.nets.rd4ad import build_student
from monai_rdad.networks.precision import PRECISIONS, mixed_precision
from monai_rdad.utils import one_of

__all__ = ["ESCDRKD"]


class ESCDRKD(nn.Module):
    """Enhanced skip connection-based direct reverse distillation (Ge et al., Neurocomputing 651, 2025, 130994).

    With f_l the teacher's maps and psi_l their projections, the student is ``o3 = g3(start)``, ``o2 = g2(o3 + psi3)``
    and ``o1 = g1(o2 + psi2)``. In training, psi sees a corrupted image and learns to give the clean one's maps; the
    start and the targets come from the clean image. In use, all comes from the one image there is.

    A skip at the finest level is not published in full: the abstract speaks of every level, the release trains psi1 and
    never uses it. Ours, with ``skips=3``, is one more residual block at that resolution, ``o1 = g0(g1(o2 + psi2) +
    psi1)``.

    Args:
        encoder: teacher, one of :data:`~monai_rdad.networks.encoders.resnet.RESNETS`.
        weights: of the teacher, see :func:`~monai_rdad.networks.encoders.weights.load_encoder_weights`.
        start: what the decoder starts from: "stage4", the teacher's fourth stage itself, as published, or "bottleneck",
            RD4AD's trained embedding of the first three, for weights that have no fourth stage.
        skips: number of levels with a skip connection, coarsest first: 0, 2 (as published) or 3. Projections of the
            others are not built.
        precision: "auto", "bf16" or "fp32", see :func:`~monai_rdad.networks.precision.mixed_precision`.

    Raises:
        ValueError: an argument is none of these.
    """

    def __init__(
        self,
        encoder: str = "wide_resnet50_2",
        weights: str = "imagenet",
        start: str = "bottleneck",
        skips: int = 2,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        one_of("start", start, ("stage4", "bottleneck"))
        if skips not in (0, 2, 3):
            raise ValueError(f"skips must be 0, 2 or 3, not {skips}.")
        self.precision = one_of("precision", precision, PRECISIONS)
        self.teacher = FrozenEncoder(encoder, stages=4 if start == "stage4" else 3)
        load_encoder_weights(self.teacher, encoder, weights)
        bottleneck, self.decoder = build_student(encoder)
        self.bottleneck = bottleneck if start == "bottleneck" else None
        spec = RESNETS[encoder]
        # finest first, as all lists of maps
        self.projections = nn.ModuleList(FeatureProjection(spec.channels(level)) for level in range(4 - skips, 4))
        self.refine: Optional[nn.Sequential] = None  # noqa: UP045
        if skips == 3:
            self.refine = residual_stage(spec.block, spec.channels(1), spec.width, 1, 1, spec.width_per_group)
            init_convolutions(self.refine)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def pairs(self, image: Tensor, corrupted: Optional[Tensor]) -> FeaturePairs:  # noqa: UP045
        """The computation itself, in the precision of the caller's context."""
        maps = self.teacher(image.contiguous(memory_format=torch.channels_last))
        targets = maps[:3]
        embedding = maps[-1]
        if self.bottleneck is not None:
            embedding = self.bottleneck(targets[0], targets[1], targets[2])
        sources = targets
        if corrupted is not None and len(self.projections) > 0:
            sources = self.teacher(corrupted.contiguous(memory_format=torch.channels_last), 3)
        first = 3 - len(self.projections)
        projected: List[Tensor] = []  # noqa: UP006
        for i, projection in enumerate(self.projections):
            projected.append(projection(sources[first + i]))

        map3 = self.decoder.stage3(embedding)
        if len(projected) == 0:
            map2 = self.decoder.stage2(map3)
            map1 = self.decoder.stage1(map2)
        else:
            map2 = self.decoder.stage2(map3 + projected[-1])
            map1 = self.decoder.stage1(map2 + projected[-2])
        if self.refine is not None:
            map1 = self.refine(map1 + projected[0])
        predictions = [map1, map2, map3]
        if corrupted is not None:
            return FeaturePairs(targets + targets[first:], predictions + projected)
        return FeaturePairs(targets, predictions)

    def forward(self, image: Tensor, corrupted: Optional[Tensor] = None) -> FeaturePairs:  # noqa: UP045
        """Teacher and student maps of an image.

        Args:
            image: float (B, 1 or 3, H, W) in [0, 1], H and W multiples of 32.
            corrupted: the same with a synthetic anomaly; training only.

        Returns:
            Three pairs of maps, at a quarter, an eighth and a sixteenth of the resolution. With a corrupted image, a
            pair for each skip connection follows: the projection of the corrupted image's map, to be compared with the
            clean image's.
        """
        if torch.jit.is_scripting():
            return self.pairs(image, corrupted)
        with mixed_precision(image.device, self.precision):
            return self.pairs(image, corrupted)
