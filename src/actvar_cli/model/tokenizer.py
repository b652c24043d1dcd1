"""The tokenizer: a convolutional autoencoder around the multi-scale quantiser.

Layer for layer the network of VQGAN (arXiv 2012.09841) that VAR publishes, with its state-dict keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.config import TokenizerConfig
from actvar_cli.model.products import fitted, widened
from actvar_cli.model.quantizer import MultiScaleQuantizer
from actvar_cli.model.winograd import Conv, Conv3x3


class Norm(nn.GroupNorm):
    """Group normalisation as published; its weights may have fewer bits than what it reads."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, in the type of ``x``."""
        return F.group_norm(x, self.num_groups, widened(self.weight, x), widened(self.bias, x), self.eps)


class ResBlock(nn.Module):
    """Two normalised convolutions with a skip."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(c_in), Conv3x3(c_in, c_out)
        self.norm2, self.conv2 = Norm(c_out), Conv3x3(c_out, c_out)
        self.nin_shortcut = Conv(c_in, c_out, kernel_size=1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H, W)."""
        # Maps of full size are many: fresh memory for each would cost more than the arithmetic.
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return self.nin_shortcut(x) + h  # type: ignore[no-any-return]


class SpatialAttention(nn.Module):
    """One head of self-attention over all positions of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.qkv = Conv(channels, 3 * channels, kernel_size=1)
        self.proj_out = Conv(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        q, k, v = (t.flatten(2).transpose(1, 2).unsqueeze(1) for t in self.qkv(self.norm(x)).chunk(3, dim=1))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Strided convolution, padded right and below as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Double height and width."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Level(nn.Module):
    """The blocks of one resolution, attention only at the lowest, and the way to the next resolution if any."""

    def __init__(self, widths: Sequence[int], attention: bool) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None
        pairs = list(itertools.pairwise(widths))
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairs)
        self.attn = nn.ModuleList(SpatialAttention(b) for _, b in pairs) if attention else nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks, each followed by attention where the level has it, then resize."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        resize = self.downsample or self.upsample
        return resize(x) if resize else x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = SpatialAttention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Image (B, in_channels, S, S) to latent (B, z_channels, side, side)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = Conv3x3(config.in_channels, config.ch)
        self.down = nn.ModuleList()
        width = config.ch
        for i, out in enumerate(widths):
            last = i == len(widths) - 1
            level = Level([width] + [out] * config.num_res_blocks, attention=last)
            if not last:
                level.downsample = Downsample(out)
            self.down.append(level)
            width = out
        self.mid = Middle(width)
        self.norm_out = Norm(width)
        self.conv_out = Conv3x3(width, config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch of images in [-1, 1]."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h)), inplace=True))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latent (B, z_channels, side, side) to image (B, in_channels, S, S), not clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        width = widths[-1]
        self.conv_in = Conv3x3(config.z_channels, width)
        self.mid = Middle(width)
        levels: list[Level] = []
        for i in reversed(range(len(widths))):
            level = Level([width] + [widths[i]] * (config.num_res_blocks + 1), attention=i == len(widths) - 1)
            if i:
                level.upsample = Upsample(widths[i])
            levels.insert(0, level)
            width = widths[i]
        self.up = nn.ModuleList(levels)
        self.norm_out = Norm(width)
        self.conv_out = Conv3x3(width, config.in_channels)

    def forward(self, z: Tensor) -> Tensor:
        """Decode a batch of latents."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h), inplace=True))  # type: ignore[no-any-return]


class Tokenizer(nn.Module):
    """The multi-scale VQVAE of VAR: images to tokens of every scale, tokens to images."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = MultiScaleQuantizer(config)
        self.quant_conv = Conv3x3(config.z_channels, config.z_channels)
        self.post_quant_conv = Conv3x3(config.z_channels, config.z_channels)

    def latent(self, images: Tensor) -> Tensor:
        """The continuous latent (B, z, side, side) of images (B, C, S, S) in [-1, 1]."""
        return self.quant_conv(self.encoder(images))  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """Tokens of every scale, each (B, pn * pn), for images (B, C, S, S) in [-1, 1]."""
        return self.quantize.encode(self.latent(images))

    def decode_latent(self, f_hat: Tensor) -> Tensor:
        """The image (B, C, S, S) in [-1, 1] and float32 of a quantised latent."""
        z = fitted(self.post_quant_conv(f_hat), self.decoder.conv_in.weight).to(memory_format=torch.channels_last)
        return self.decoder(z).float().clamp(-1, 1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode(self, tokens: Sequence[Tensor]) -> Tensor:
        """The image (B, C, S, S) in [-1, 1] of the tokens of every scale."""
        return self.decode_latent(self.quantize.accumulate(tokens)[-1])

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Cut joined tokens (B, L) into one tensor per scale."""
        return list(tokens.split([pn * pn for pn in self.config.patch_nums], dim=1))
