# SPDX-License-Identifier: Apache-2.0
"""The vision transformer of DINOv2 with registers, with the parameter names of its official weights."""

# No postponed annotations: the classes of this file are compiled by TorchScript.
from typing import List, NamedTuple  # noqa: UP035

import torch
from torch import Tensor, nn

from monai_rdad.networks.precision import full_precision

__all__ = ["VITS", "ViTEncoder", "ViTSpec"]


class ViTSpec(NamedTuple):
    """Shape of one vision transformer.

    Args:
        width: channels of a token.
        heads: of the self-attention.
        patch: edge of a patch in pixels.
        registers: number of register tokens.
        grid: edge, in patches, of the images that its position embedding was trained for.
    """

    width: int
    heads: int
    patch: int = 14
    registers: int = 4
    grid: int = 37


VITS: dict[str, ViTSpec] = {"vit_small_dinov2_reg4": ViTSpec(384, 6)}


class _PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.ls1 = _LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)
        self.ls2 = _LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViTEncoder(nn.Module):
    """Blocks 0 to 9 of a DINOv2 transformer (Oquab et al., TMLR 2024) with registers (Darcet et al., ICLR 2024).

    Takes images in [0, 1] and applies the ImageNet normalisation itself. The two last blocks and the last norm, which
    nobody reads, are not built; names of parameters are those of the official weights, which load as they are.

    Args:
        name: one of :data:`VITS`.
        blocks: number of blocks to build.
        first: block from which on the patch tokens are returned.

    Attributes:
        level_channels: channels of the maps that the forward returns.
        group_channels: channels of the two groups that are reconstructed.
        stride: image pixels per token, along one axis.

    Raises:
        ValueError: unknown name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, blocks: int = 10, first: int = 2) -> None:
        super().__init__()
        if name not in VITS:
            raise ValueError(f"Unknown encoder '{name}'. Choose one of: {', '.join(VITS)}.")
        spec = VITS[name]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.grid = spec.grid
        self.first = first
        self.prefix = 1 + spec.registers
        self.stride = spec.patch
        self.level_channels = (spec.width,) * (blocks - first)
        self.group_channels = (spec.width, spec.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + spec.grid**2, spec.width))
        self.register_tokens = nn.Parameter(torch.zeros(1, spec.registers, spec.width))
        self.patch_embed = _PatchEmbed(spec.patch, spec.width)
        self.blocks = nn.ModuleList([_Block(spec.width, spec.heads) for _ in range(blocks)])
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.register_tokens):
            nn.init.normal_(token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position embedding (1, 1 + rows * columns, width), bicubic with anti-aliasing as in the official model."""
        patches = self.pos_embed[:, 1:].view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        size = [rows, columns]
        patches = nn.functional.interpolate(patches, size, mode="bicubic", align_corners=False, antialias=True)
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)

    def embed(self, x: Tensor) -> Tensor:
        """Patches of an image as tokens, with their positions (B, 1 + N, width)."""
        patches = self.patch_embed(x)
        positions = self.positions(patches.shape[2], patches.shape[3])
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return tokens + positions

    def forward(self, x: Tensor) -> List[Tensor]:  # noqa: UP006
        """Patch tokens after each block from ``first`` on, as maps.

        Args:
            x: image in [0, 1], float (B, 1 or 3, H, W), H and W multiples of the patch; one channel is repeated.

        Returns:
            One map (B, width, H / patch, W / patch) per block, float32.
        """
        rows, columns = x.shape[2] // self.stride, x.shape[3] // self.stride
        x = (x - self.mean) / self.std
        if torch.jit.is_scripting():
            x = self.embed(x)
        else:
            with full_precision(x.device):  # as in the ResNets' stem: rounding here spreads into all blocks
                x = self.embed(x)
        x = torch.cat([x[:, :1], self.register_tokens.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
        levels: List[Tensor] = []  # noqa: UP006
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i >= self.first:
                levels.append(x[:, self.prefix :].transpose(1, 2).reshape(x.shape[0], -1, rows, columns))
        return levels

    def groups(self, levels: List[Tensor]) -> List[Tensor]:  # noqa: UP006
        """What is reconstructed: the mean of the first half of the levels and that of the second."""
        half = len(levels) // 2
        return [torch.stack(levels[:half]).mean(0), torch.stack(levels[half:]).mean(0)]
