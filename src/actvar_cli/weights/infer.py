"""Which architecture a plain state dict has, told from its keys and shapes.

What no shape tells (the epsilon of the layer norms, the residual ratio of the tokenizer) is as published.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from actvar_cli.errors import InputError
from actvar_cli.model.config import TokenizerConfig, TransformerConfig

SCHEDULES: tuple[tuple[int, ...], ...] = (
    (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    (1, 2, 3, 4, 6, 8),
)
"""Patch numbers in use: published for 256 px and for 512 px; `var-fashion`."""

PUBLISHED_HEAD_DIM = 64


def _shape(tensors: Mapping[str, Tensor], key: str, dims: int, file: str) -> tuple[int, ...]:
    if key not in tensors:
        raise InputError(f"{file}: tensor {key!r} is missing: not a complete VAR")
    shape = tuple(tensors[key].shape)
    if len(shape) != dims:
        raise InputError(f"{file}: tensor {key!r} has shape {shape}, expected {dims} dimensions")
    if 0 in shape:
        raise InputError(f"{file}: tensor {key!r} has shape {shape}: it is empty")
    return shape


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(m[1]) for key in tensors if (m := re.match(pattern, key))]
    return max(found, default=-1) + 1


def infer_patch_nums(tensors: Mapping[str, Tensor], file: str) -> tuple[int, ...]:
    """Tokens along one side of every scale: from the scale of each position if stored, else by known schedules."""
    _, length, _ = _shape(tensors, "pos_1LC", 3, file)
    scales, _ = _shape(tensors, "lvl_embed.weight", 2, file)
    if "lvl_1L" in tensors:
        stored = tensors["lvl_1L"].flatten()
        counts = [int((stored == scale).sum()) for scale in range(scales)]
        sides = tuple(math.isqrt(n) for n in counts)
        if [s * s for s in sides] != counts or sum(counts) != length or len(stored) != length:
            raise InputError(f"{file}: 'lvl_1L' does not describe square scales of {length} tokens")
        return sides
    for schedule in SCHEDULES:
        if len(schedule) == scales and sum(pn * pn for pn in schedule) == length:
            return schedule
    raise InputError(
        f"{file}: {length} tokens in {scales} scales fit no known patch numbers; "
        "keep the buffer 'lvl_1L' in the state dict, it tells them"
    )


def infer_transformer(tensors: Mapping[str, Tensor], file: str) -> TransformerConfig:
    """Depth, width, heads, classes, FFN ratio, kind of AdaLN and of attention."""
    classes, dim = _shape(tensors, "class_emb.weight", 2, file)
    depth = _count(tensors, r"blocks\.(\d+)\.")
    hidden, _ = _shape(tensors, "blocks.0.ffn.fc1.weight", 2, file)
    l2_norm = "blocks.0.attn.scale_mul_1H11" in tensors
    if l2_norm:
        heads = _shape(tensors, "blocks.0.attn.scale_mul_1H11", 4, file)[1]
    elif dim % PUBLISHED_HEAD_DIM == 0:
        heads = dim // PUBLISHED_HEAD_DIM
    else:
        raise InputError(f"{file}: width {dim} is no multiple of {PUBLISHED_HEAD_DIM}: the number of heads is unknown")
    return TransformerConfig(
        depth=depth,
        embed_dim=dim,
        num_heads=heads,
        num_classes=classes - 1,
        mlp_ratio=hidden / dim,
        shared_aln="shared_ada_lin.1.weight" in tensors,
        attn_l2_norm=l2_norm,
    )


def infer_tokenizer(tensors: Mapping[str, Tensor], patch_nums: tuple[int, ...], file: str) -> TokenizerConfig:
    """Widths and levels of the autoencoder, codebook and residual convolutions."""
    ch, in_channels, _, _ = _shape(tensors, "encoder.conv_in.weight", 4, file)
    levels = _count(tensors, r"encoder\.down\.(\d+)\.")
    widths = [_shape(tensors, f"encoder.down.{i}.block.0.conv2.weight", 4, file)[0] for i in range(levels)]
    vocab, channels = _shape(tensors, "quantize.embedding.weight", 2, file)
    return TokenizerConfig(
        vocab_size=vocab,
        z_channels=channels,
        ch=ch,
        ch_mult=tuple(w // ch for w in widths),
        num_res_blocks=_count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        in_channels=in_channels,
        patch_nums=patch_nums,
        share_quant_resi=_count(tensors, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
    )
