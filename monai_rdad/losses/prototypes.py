# SPDX-License-Identifier: Apache-2.0
"""The loss of DNP-ConFormer: reconstruction, alignment of tokens and prototypes, diversity of the prototypes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from monai_rdad.features import FeaturePairs
from monai_rdad.losses.distillation import cosine_distance
from monai_rdad.losses.mining import soft_mining

__all__ = ["PrototypeLoss", "alignment_loss", "diversity_loss", "prototype_similarity"]


def prototype_similarity(tokens: Tensor, prototypes: Tensor) -> Tensor:
    """Cosines (B, N, M), float32, of tokens (B, N, C) and the prototypes (B, M, C) of the same image."""
    return normalize(tokens.float(), dim=2) @ normalize(prototypes.float(), dim=2).transpose(1, 2)


def alignment_loss(similarity: Tensor) -> Tensor:
    """Distance of tokens to their nearest prototype, in which a small cluster counts as much as a large one.

    Per image the mean of 1 - cosine over the tokens of each prototype, then the mean over the prototypes that have any.
    In the authors' release empty prototypes count as zero, so that the loss of a collapsed assignment is 1/M of that of
    a balanced one with the same distances.

    Args:
        similarity: cosines (B, N, M).

    Returns:
        Scalar in [0, 2].
    """
    best, nearest = similarity.max(dim=2)
    members = one_hot(nearest, similarity.shape[2]).to(similarity.dtype)
    counts = members.sum(1)
    means = ((1 - best)[:, :, None] * members).sum(1) / counts.clamp_min(1)
    return (means.sum(1) / (counts > 0).sum(1)).mean()


def diversity_loss(similarity: Tensor, prototypes: Tensor, temperature: float = 0.1) -> Tensor:
    r"""How far the prototypes are from being different and from sharing the tokens equally; 0 is ideal.

    Two terms, because each alone has a collapsed minimum. The mean squared cosine of pairs of prototypes keeps them
    apart, but says nothing about which tokens come to them. The usage, :math:`\bar p`, is the mean over all tokens of
    the batch of softmax(cosine / temperature); :math:`KL(uniform \| \bar p) / \ln M` grows without bound as a prototype
    is forgotten and has a gradient for it, but identical prototypes are used equally.

    Args:
        similarity: cosines (B, N, M) of tokens and prototypes.
        prototypes: (B, M, C).
        temperature: of the soft assignment.

    Returns:
        Scalar, at least 0.
    """
    m = similarity.shape[2]
    unit = normalize(prototypes.float(), dim=2)
    gram = unit @ unit.transpose(1, 2)
    off_diagonal = gram.square() * (1 - torch.eye(m, device=gram.device))
    separation = off_diagonal.sum((1, 2)).mean() / (m * (m - 1))
    # the logarithm of the mean without the underflow of the probabilities themselves
    log_usage = (similarity / temperature).log_softmax(2).flatten(0, 1).logsumexp(0)
    log_usage = log_usage - math.log(similarity.shape[0] * similarity.shape[1])
    imbalance = (-log_usage.mean() - math.log(m)) / math.log(m)
    return separation + imbalance


class PrototypeLoss(nn.Module):
    r"""Reconstruction + alignment + diversity (Li et al., arXiv 2508.19573, with a diversity term that is one).

    The reconstruction is the mean over groups of 1 - cosine of whole maps, with :func:`soft_mining`. The paper
    announces a diversity constraint; its release computes and never uses it, and no gradient of the alignment reaches a
    prototype without tokens.

    Args:
        alignment: factor of :func:`alignment_loss`, 0.2 in the paper; 0 for none.
        diversity: factor of :func:`diversity_loss`; 0 for none.
        mining: exponent of the soft mining, 3 in the paper; 0 for none.
        temperature: of the soft assignment in the diversity.

    Raises:
        ValueError: a temperature that is not positive, or pairs without tokens and prototypes.
    """

    def __init__(
        self, alignment: float = 0.2, diversity: float = 0.2, mining: float = 3.0, temperature: float = 0.1
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}, it must be above 0.")
        self.alignment = alignment
        self.diversity = diversity
        self.mining = mining
        self.temperature = temperature

    def forward(self, pairs: FeaturePairs, labels: Tensor | None = None) -> Tensor:
        """Scalar loss; ``labels`` are not used, they are part of MONAI's calling convention."""
        if pairs.tokens is None or pairs.prototypes is None:
            raise ValueError("The prototype loss needs a network with tokens and prototypes, such as DNP.")
        groups = [
            cosine_distance(t, soft_mining(t, p, self.mining)).mean()
            for t, p in zip(pairs.targets, pairs.predictions, strict=True)
        ]
        loss = torch.stack(groups).mean()
        similarity = prototype_similarity(pairs.tokens, pairs.prototypes)
        if self.alignment:
            loss = loss + self.alignment * alignment_loss(similarity)
        if self.diversity:
            loss = loss + self.diversity * diversity_loss(similarity, pairs.prototypes, self.temperature)
        return loss
