# SPDX-License-Identifier: Apache-2.0
"""Prototypes of an image, and a decoder that can speak of nothing else."""

# No postponed annotations: the classes of this file are compiled by TorchScript.
from typing import List  # noqa: UP035

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

__all__ = ["PrototypeAttention", "PrototypeDecoder", "PrototypeExtractor", "mlp"]


def mlp(width: int) -> nn.Sequential:
    """Two linear layers with a GELU between them and four times the width inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def init_linears(module: nn.Module) -> None:
    """Xavier uniform and zeros.

    Without residuals around the attention, what distinguishes one token from another fades from block to block. With
    the smaller truncated normal of vision transformers it fades faster, and the decoder takes longer to predict more
    than the mean.
    """
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


class PrototypeExtractor(nn.Module):
    """Learnable queries that gather an image's tokens into a few prototypes (arXiv 2508.19573).

    One block of cross-attention and MLP, both with residuals. The queries start as a standard normal and not near zero:
    the prototypes of an untrained network are then different from each other.

    Args:
        width: channels of a token.
        prototypes: number M of prototypes.
        heads: of the attention.
    """

    def __init__(self, width: int, prototypes: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(1, prototypes, width))
        self.norm_queries = nn.LayerNorm(width)
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_mlp = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        # without bias: it would shift all scores of a query alike, and the softmax would not see it
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.mlp = mlp(width)
        init_linears(self)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) to prototypes (B, M, C), float32."""
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        memory = self.norm_tokens(tokens)
        q, k, v = self.split(self.q(self.norm_queries(queries))), self.split(self.k(memory)), self.split(self.v(memory))
        gathered = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        prototypes = queries + self.out(gathered)
        return prototypes + self.mlp(self.norm_mlp(prototypes))


class PrototypeAttention(nn.Module):
    """Each token as a non-negative combination of prototypes: ReLU of scaled cosines instead of a softmax.

    A token that resembles no prototype gets nothing, where a softmax would still hand out a sum of one.

    Args:
        width: channels of a token.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def weights(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """Non-negative weights (B, heads, N, M) of the prototypes for each token."""
        q = normalize(self.split(self.q(tokens)).float(), dim=3)
        k = normalize(self.split(self.k(prototypes)).float(), dim=3)
        return torch.relu(self.scale * (q @ k.transpose(2, 3)))

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        """(B, N, C) and (B, M, C) to (B, N, C)."""
        combined = self.weights(tokens, prototypes) @ self.split(self.v(prototypes))
        return self.out(combined.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width, eps=1e-6)
        self.norm_prototypes = nn.LayerNorm(width, eps=1e-6)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.attention = PrototypeAttention(width, heads)
        self.mlp = mlp(width)

    def forward(self, tokens: Tensor, prototypes: Tensor) -> Tensor:
        # no residual around the attention: the token itself must not pass, only what prototypes can say of it
        rebuilt = self.attention(self.norm_tokens(tokens), self.norm_prototypes(prototypes)).float()
        return rebuilt + self.mlp(self.norm_mlp(rebuilt))


class PrototypeDecoder(nn.Module):
    """Blocks of attention to prototypes, without a residual around it, and MLP (arXiv 2508.19573).

    Args:
        width: channels of a token.
        heads: of the attention.
        blocks: number of blocks.
    """

    def __init__(self, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(blocks)])
        init_linears(self)

    def forward(self, tokens: Tensor, prototypes: Tensor) -> List[Tensor]:  # noqa: UP006
        """Tokens (B, N, C) after each block, float32, for prototypes (B, M, C)."""
        outputs: List[Tensor] = []  # noqa: UP006
        for block in self.blocks:
            tokens = block(tokens, prototypes)
            outputs.append(tokens)
        return outputs
