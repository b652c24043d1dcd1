"""A block's step of sampling on a GPU: what `Block` does, in few passes, and without the host having to wait for it.

All shapes are known beforehand: tokens that are left out stay where they are, and tiles of them are skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.guidance import over_tokens
from actvar_cli.model.kernels.ffn import TILE, picked_linear
from actvar_cli.model.kernels.norms import Update, split_heads, sum_adaln
from actvar_cli.model.kernels.tiles import Tiles, tiles_of
from actvar_cli.model.places import InPlace
from actvar_cli.model.products import linear
from actvar_cli.model.router import NoRouter

if TYPE_CHECKING:
    from actvar_cli.model.attention import Fill, SelfAttention
    from actvar_cli.model.block import Block, Sampling
    from actvar_cli.model.cache import KVCache


def sample(block: Block, x: Tensor, ada: Tensor, context: Sampling) -> Tensor:
    """``x`` (R, l, C) after ``block`` at one scale of sampling, but for what ``context.update`` then holds.

    ``ada`` is (R, 6, C). What the last block left in ``context.update`` is added first.
    """
    g1, g2, scale1, scale2, shift1, shift2 = over_tokens(ada)
    dtype = block.attn.mat_qkv.weight.dtype
    x, h = sum_adaln(x, context.update, scale1, shift1, block.eps, dtype)
    context.update = None
    keep = picked = fill = places = None
    if context.threshold is not None and context.scale in block.gated_scales:
        keep = block.token_gate(h, context.scale, above=context.threshold)
        picked = tiles_of(keep.flatten().unsqueeze(1), TILE)
        places = InPlace(keep, block.patch_nums[context.scale])
        fill = block.fill(h, places) if block.rebuilds_kv else None
    update = Update(g1, block.attn(h, cache=context.cache, fill=fill, kernels=True, picked=picked))
    if places and block.skips_attention:
        update = _with_stand_ins(block, x, x, update, h, places, context)
        keep = picked = places = None
    y, h2 = sum_adaln(x, update, scale2, shift2, block.eps, dtype)
    update = Update(g2, _ffn(block, h2, context, keep, picked))
    context.update = _with_stand_ins(block, x, y, update, h, places, context) if places else update
    if block.from_previous and context.scale + 1 in block.gated_scales:
        after = y if block.skips_attention else sum_adaln(y, context.update, scale1, shift1, block.eps, dtype)[0]
        context.cache.updates[block.index] = after - x
    return y


def _with_stand_ins(
    block: Block, x: Tensor, y: Tensor, update: Update, h: Tensor, places: InPlace, context: Sampling
) -> Update:
    """The ``update`` of ``y`` for tokens that are kept; others become ``x`` plus what is rebuilt."""
    whole = None
    if block.from_neighbours:
        whole = update.gain * update.added if y is x else y - x + update.gain * update.added
    rebuilt = block.rebuilt(h, places, whole, block.previous(context))
    return Update(update.gain, update.added, places.keep, x, rebuilt)


def attend(attn: SelfAttention, h: Tensor, cache: KVCache, picked: Tiles | None, fill: Fill | None) -> Tensor:
    """Attention of ``h`` (R, l, C) over the cache; with ``picked``, of those in its tiles; the rest is anything.

    With ``fill`` it makes keys and values of all tokens from those in the tiles.
    """
    dim, weight = h.shape[-1], attn.mat_qkv.weight
    v_bias: Tensor = attn.v_bias
    if picked is None:
        q, kv = linear(h, weight).split([dim, 2 * dim], -1)
    elif fill is not None:
        # What fills in goes without another bias.
        bias = torch.cat((attn.zero_k_bias, attn.zero_k_bias, v_bias))
        made = picked_linear(h.flatten(0, 1), picked, weight, bias).unflatten(0, h.shape[:2])
        q, kv, v_bias = made[..., :dim], fill(made[..., dim:]).to(made.dtype), attn.zero_k_bias
    else:
        # The bias is added with the others.
        q = picked_linear(h.flatten(0, 1), picked, weight[:dim], attn.zero_k_bias).view_as(h)
        kv = linear(h, weight[dim:])
    keys, values, first = cache.room(attn.index)
    gain = attn.scale_mul_1H11 if attn.l2_norm else None
    queries = split_heads(q, kv, attn.q_bias, v_bias, gain, keys, values, first)
    k, v = cache.filled(attn.index)
    out = F.scaled_dot_product_attention(queries.transpose(1, 2), k, v, scale=attn.scale).transpose(1, 2).flatten(2)
    if picked is None:
        return attn.proj(out)  # type: ignore[no-any-return]
    return picked_linear(out.flatten(0, 1), picked, attn.proj.weight, attn.proj.bias).view_as(h)


def _ffn(block: Block, h: Tensor, context: Sampling, keep: Tensor | None, picked: Tiles | None) -> Tensor:
    """The FFN's update of ``h`` (R, l, C); of tokens not to ``keep`` (R, l), or not ``picked``, it is anything."""
    if context.threshold is None or not isinstance(block.ffn, ExpertFFN):
        return block.ffn(h)  # type: ignore[no-any-return]
    if isinstance(block.router, NoRouter):
        return block.ffn(h) if picked is None else block.ffn(h, picked)  # type: ignore[no-any-return]
    on = block.router(h, above=context.threshold)
    return block.ffn(h, on if keep is None else on & keep.unsqueeze(-1))  # type: ignore[no-any-return]
