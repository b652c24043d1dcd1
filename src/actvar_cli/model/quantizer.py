"""Multi-scale residual quantisation: a latent map becomes token maps of rising size, and back.

Source: VAR (arXiv 2404.02905), algorithms 1 and 2. State-dict keys are the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.config import TokenizerConfig


def enlarged(h: Tensor, side: int) -> Tensor:
    """Bicubic interpolation of ``h`` (B, z, pn, pn) to (B, z, side, side)."""
    if not h.is_cuda:
        return F.interpolate(h, size=(side, side), mode="bicubic")
    # A GPU is many times slower at it than at the product that it amounts to.
    weights = _interpolation(h.shape[-1], side, h.device)
    return (h.flatten(2) @ weights).unflatten(2, (side, side))  # type: ignore[no-any-return]


@cache
def _interpolation(pn: int, side: int, device: torch.device) -> Tensor:
    """What (pn * pn) numbers are multiplied with to be enlarged, (pn * pn, side * side)."""
    with torch.inference_mode(False):
        units = torch.eye(pn * pn, device=device).unflatten(1, (1, pn, pn))
        return F.interpolate(units, size=(side, side), mode="bicubic").flatten(1)


class Phi(nn.Conv2d):
    """The residual convolution after up-sampling: ``(1 - r) * h + r * conv(h)``."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.ratio = ratio

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, z, h, w) to the same shape."""
        return h.mul(1 - self.ratio) + super().forward(h).mul(self.ratio)


class SharedPhi(nn.Module):
    """Holds the shared residual convolutions under the published key ``quant_resi.qresi_ls``."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(config.z_channels, config.quant_resi) for _ in range(config.share_quant_resi))


class MultiScaleQuantizer(nn.Module):
    """Codebook, residual convolutions and the walk over the scales."""

    ema_vocab_hit_SV: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.z_channels)
        self.quant_resi = SharedPhi(config)
        # Part of the published state dict; sampling and encoding never read it.
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(config.patch_nums), config.vocab_size))

    def phi(self, scale: int) -> nn.Module:
        """The residual convolution that serves ``scale``."""
        return self.quant_resi.qresi_ls[self.config.phi_index(scale)]

    def nearest(self, z: Tensor) -> Tensor:
        """Indices (N,) of the codes nearest to the rows of ``z`` (N, z_channels) in Euclidean distance."""
        codes = self.embedding.weight.detach()
        distance = z.square().sum(1, keepdim=True) + codes.square().sum(1)
        distance.addmm_(z, codes.T, alpha=-2, beta=1)
        return distance.argmin(1)

    def contribution(self, h: Tensor, scale: int) -> Tensor:
        """What one scale adds to the latent: (B, z, pn, pn) enlarged to the last scale, then phi."""
        side = self.config.patch_nums[-1]
        if scale != len(self.config.patch_nums) - 1:
            h = enlarged(h, side)
        return self.phi(scale)(h)  # type: ignore[no-any-return]

    def lookup(self, tokens: Tensor, scale: int) -> Tensor:
        """Codes (B, z, pn, pn) of one scale's tokens (B, pn * pn)."""
        pn = self.config.patch_nums[scale]
        return self.embedding(tokens).transpose(1, 2).reshape(len(tokens), -1, pn, pn)  # type: ignore[no-any-return]

    def next_input(self, f_hat: Tensor, scale: int) -> Tensor:
        """The latent so far as (B, pn * pn, z) for ``scale``: resized by area, as the transformer reads it."""
        pn = self.config.patch_nums[scale]
        return F.interpolate(f_hat, size=(pn, pn), mode="area").flatten(2).transpose(1, 2)

    def residual_targets(self, f: Tensor, scale: int) -> Tensor:
        """The vectors (B * pn * pn, z) that ``scale`` has to encode, from what remains of the latent."""
        pn = self.config.patch_nums[scale]
        if scale != len(self.config.patch_nums) - 1:
            f = F.interpolate(f, size=(pn, pn), mode="area")
        return f.permute(0, 2, 3, 1).reshape(-1, self.config.z_channels)

    @torch.no_grad()
    def encode(self, f: Tensor) -> list[Tensor]:
        """Tokens of every scale, each (B, pn * pn), for a latent ``f`` (B, z, side, side)."""
        rest = f.clone()
        tokens: list[Tensor] = []
        for scale in range(len(self.config.patch_nums)):
            index = self.nearest(self.residual_targets(rest, scale)).view(len(f), -1)
            rest = rest - self.contribution(self.lookup(index, scale), scale)
            tokens.append(index)
        return tokens

    def accumulate(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The latent after each scale, each (B, z, side, side) and float32."""
        side = self.config.patch_nums[-1]
        f_hat = self.embedding.weight.new_zeros(len(tokens[0]), self.config.z_channels, side, side)
        out: list[Tensor] = []
        for scale, index in enumerate(tokens):
            f_hat = f_hat + self.contribution(self.lookup(index, scale), scale)
            out.append(f_hat)
        return out

    def teacher_forcing_input(self, tokens: Sequence[Tensor]) -> Tensor:
        """The transformer's input (B, L - first, z) for known tokens: every scale sees the ones before it."""
        latents = self.accumulate(tokens[:-1])
        return torch.cat([self.next_input(f, scale + 1) for scale, f in enumerate(latents)], dim=1)
