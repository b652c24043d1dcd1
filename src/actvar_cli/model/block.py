"""One transformer block: AdaLN, attention, FFN; with experts and a token gate where the model has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.attention import Fill, SelfAttention
from actvar_cli.model.cache import KVCache
from actvar_cli.model.config import ModelConfig
from actvar_cli.model.counters import WorkCounter, is_exact
from actvar_cli.model.experts import FFN, ExpertFFN
from actvar_cli.model.guidance import over_tokens
from actvar_cli.model.kernels.usable import preferred
from actvar_cli.model.places import InPlace, Places, Uneven, alike
from actvar_cli.model.products import Linear, fitted
from actvar_cli.model.router import router_of, straight_through
from actvar_cli.model.token_gate import Reconstruction, gate_of, previous_update, previous_updates

if TYPE_CHECKING:
    from actvar_cli.model.kernels.norms import Update


@dataclass
class Decisions:
    """What one block decided in a teacher-forced pass: ``on`` (B, L, E) and ``keep`` (B, L), floating, or ``None``.

    ``scores`` (B, L, E) are the router's, ``gate`` (B, L) the token gate's, without gradient; ``keep`` is 1 at scales
    without a gate, whatever it says.
    """

    on: Tensor | None = None
    scores: Tensor | None = None
    keep: Tensor | None = None
    gate: Tensor | None = None

    def at(self, cut: Tensor, gated: Tensor) -> Decisions:
        """What the same scores decide where they must exceed ``cut`` (L,); ``gated`` (L,) as in `TeacherForced`."""
        assert self.scores is not None
        keep = None if self.gate is None else ((self.gate > cut) | ~gated).float()
        return Decisions((self.scores > cut[:, None]).float(), self.scores, keep, self.gate)


@dataclass
class Record:
    """What one block did to the picked positions: each (n, C).

    ``h`` is the block's input after AdaLN, ``h_ffn`` the FFN's input after AdaLN, ``gain`` the FFN's g2, ``update``
    what is added when the token is computed, by the block or, where a gate skips that alone, by its attention,
    ``known`` the same of the scale before at the same place, (n, 0) if its reconstruction does not read that, ``out``
    what comes of it.
    """

    h: Tensor
    h_ffn: Tensor
    gain: Tensor
    update: Tensor
    known: Tensor
    out: Tensor


@dataclass
class TeacherForced:
    """A pass over a whole known sequence: everything is computed, decisions are masks that let gradients through.

    ``bias`` (1, 1, L, L) hides later scales; ``scales`` (L,) is the scale of each position, ``gated`` (L,) whether it
    has a token gate; ``threshold`` (L,) is what scores must exceed there, ``None`` leaves all experts on and all tokens
    computed. ``pick`` (n,), indices into the flattened (B, L), asks for a `Record` of these positions from every block.
    ``strength`` (L, 1) is that of guidance, as a share of the one that was learned; ``None`` is the original model,
    which has not. ``dial`` is the threshold as one number, before the offsets of the scales. ``before`` are keys and
    values of every block for scales that are not part of the pass, which is of the others alone: (B, H, n, d) each.
    """

    bias: Tensor
    scales: Tensor
    gated: Tensor
    threshold: Tensor | None = None
    temperature: float = 1.0
    pick: Tensor | None = None
    strength: Tensor | None = None
    dial: float | None = None
    before: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    decisions: list[Decisions] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


@dataclass
class Sampling:
    """One scale of sampling: keys and values in ``cache``; what is not needed is skipped for real.

    With ``kernels`` all blocks are computed by those for GPUs; ``update`` is what is still to be added to the tokens,
    which they do with the next AdaLN.
    """

    cache: KVCache
    scale: int
    threshold: float | None = None
    counter: WorkCounter | None = None
    kernels: bool = False
    update: Update | None = None


class Block(nn.Module):
    """Map (R, l, C) to (R, l, C): ``x += g1 attn(AdaLN(x))``, then ``x += g2 ffn(AdaLN(x))``."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        arch = config.transformer
        self.index, self.dim, self.eps = index, arch.embed_dim, arch.norm_eps
        self.patch_nums = config.tokenizer.patch_nums
        self.attn = SelfAttention(arch, index)
        if config.experts:
            self.ffn: FFN = ExpertFFN(arch, config.experts_in(index))
            self.router = router_of(config, index)
        else:
            self.ffn = FFN(arch)
        if arch.shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, arch.embed_dim) / arch.embed_dim**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), Linear(arch.embed_dim, 6 * arch.embed_dim))
        self.gated_scales = config.token_gate.scales_of(index) if config.token_gate else ()
        self.from_previous = self.from_neighbours = self.skips_attention = self.rebuilds_kv = False
        if config.token_gate and self.gated_scales:
            gate, dim = config.token_gate, arch.embed_dim
            self.token_gate = gate_of(config)
            self.reconstruction = Reconstruction(dim, dim, gate.rank, gate.reconstruction)
            self.from_previous = self.reconstruction.from_previous
            self.from_neighbours = self.reconstruction.from_neighbours
            self.skips_attention = gate.skips == "attention"
            if gate.kv_rank:
                # The mean of keys and values is that of the mean: with neighbours, the map is of how these differ.
                self.kv_reconstruction = Reconstruction(dim, 2 * dim, gate.kv_rank, "low-rank")
                self.rebuilds_kv = True

    def condition(self, cond: Tensor) -> Tensor:
        """The AdaLN parameters (R, 6, C): g1, g2, 1 + scale1, 1 + scale2, shift1, shift2; float32.

        ``cond`` is the class embedding (R, C), or with shared AdaLN its projection (R, 1, 6, C).
        """
        if hasattr(self, "ada_gss"):
            made = (self.ada_gss + cond).squeeze(1)
        else:
            rows = fitted(cond.unsqueeze(1), self.attn.q_bias)
            made = self.ada_lin(rows).squeeze(1).float().unflatten(1, (6, self.dim))
        gains, scales, shifts = made.split(2, dim=1)
        return torch.cat((gains, scales + 1, shifts), dim=1)

    def normalise(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """AdaLN: layer norm without affine, then ``scale`` (which is around 1) and ``shift``."""
        return torch.addcmul(shift, F.layer_norm(x, (self.dim,), eps=self.eps), scale)

    def forward(self, x: Tensor, ada: Tensor, context: TeacherForced | Sampling) -> Tensor:
        """``x`` (R, l, C), ``ada`` (R, 6, C) from `condition`; (R, 6, l, C) where it differs by position."""
        if isinstance(context, TeacherForced):
            return self._teacher_forced(x, ada, context)
        if context.kernels:
            from actvar_cli.model.kernels import block

            return block.sample(self, x, ada, context)
        return self._sample(x, ada, context)

    def by_kernels(self) -> bool:
        """Whether the kernels for GPUs can sample this block, where it is."""
        return self.ffn.fits_kernels and not is_exact() and preferred(self.attn.q_bias)

    def _teacher_forced(self, x: Tensor, ada: Tensor, context: TeacherForced) -> Tensor:
        g1, g2, scale1, scale2, shift1, shift2 = over_tokens(ada)
        made = Decisions()
        h = self.normalise(x, scale1, shift1)
        fill = None
        places: dict[int, InPlace] = {}
        if context.threshold is not None and self.gated_scales:
            # The gate's decision is hard and carries no gradient: see docs/method.md, "What the gate learns from".
            made.gate = self.token_gate(h, context.scales).detach()
            keep = (made.gate > context.threshold) | ~context.gated
            made.keep = keep.to(x.dtype)
            keep_at = self._by_scale(keep)
            places = {scale: InPlace(keep_at[scale], self.patch_nums[scale]) for scale in self.gated_scales}
            fill = self._fill_sequence(h, places) if self.rebuilds_kv else None
        before = context.before[self.index] if context.before else None
        middle = y = x + g1 * self.attn(h, bias=context.bias, fill=fill, before=before)
        if places and self.skips_attention:
            y = self._stand_in(x, y, h, places)
        h2 = self.normalise(y, scale2, shift2)
        if context.threshold is None or not isinstance(self.ffn, ExpertFFN):
            y = y + g2 * self.ffn(h2)
        else:
            scores = self.router(h2).float()
            made.scores = scores.detach()
            made.on = straight_through(scores, context.threshold[:, None], context.temperature).to(h2.dtype)
            y = y + g2 * self.ffn(h2, made.on)
        if context.pick is not None:
            out = middle if self.skips_attention else y
            update = out - x
            previous = previous_updates(update, self.patch_nums) if self.from_previous else update[..., :0]
            parts = (h, h2, g2.expand_as(x), update, previous, out)
            context.records.append(Record(*(t.detach().flatten(0, 1)[context.pick].float() for t in parts)))
        if places and not self.skips_attention:
            y = self._stand_in(x, y, h, places)
        context.decisions.append(made)
        return y  # type: ignore[no-any-return]

    def _stand_in(self, x: Tensor, y: Tensor, h: Tensor, places: dict[int, InPlace]) -> Tensor:
        """``y``, what a whole sequence ``x`` became, with stand-ins for what was not kept at scales with ``places``.

        Each scale's are made from what the scale before really added, or those around that are computed.
        """
        before, out, h_at = (self._by_scale(whole) for whole in (x, y, h))
        for scale, here in places.items():
            previous = None
            if self.from_previous:
                sides = self.patch_nums[scale - 1 : scale + 1]
                previous = previous_update(out[scale - 1] - before[scale - 1], *sides)
            rebuilt = self.rebuilt(h_at[scale], here, out[scale] - before[scale], previous)
            out[scale] = here.together(out[scale], before[scale] + rebuilt)
        return torch.cat(out, dim=1)

    def _fill_sequence(self, h: Tensor, places: dict[int, InPlace]) -> Fill:
        """What replaces the keys and values of a whole sequence where they are not kept."""
        h_at = self._by_scale(h)
        fills = {scale: self.fill(h_at[scale], here) for scale, here in places.items()}

        def fill(kv: Tensor) -> Tensor:
            return torch.cat(
                [fills[s](part) if s in fills else part for s, part in enumerate(self._by_scale(kv))], dim=1
            )

        return fill

    def _by_scale(self, x: Tensor) -> list[Tensor]:
        """The scales of a whole sequence ``x`` (R, L, …)."""
        return list(x.split([pn * pn for pn in self.patch_nums], dim=1))

    def fill(self, h: Tensor, places: Places) -> Fill:
        """What makes the keys and values of all tokens of one scale from those of the kept ones."""
        net: Reconstruction = self.kv_reconstruction
        if not self.from_neighbours:
            made = net(places.of_rest(h))
            return lambda kv: places.together(kv, made)
        made = net(h, None, places.beside)
        return lambda kv: places.together(kv, places.mean(kv) + made)

    def rebuilt(self, h: Tensor, places: Places, update: Tensor | None, previous: Tensor | None) -> Tensor:
        """What stands in for the update of the rest of the tokens ``h`` (R, l, C) of a scale.

        For the kinds that read it, ``update`` is of those kept, and ``previous`` (R, l, C) of the scale before.
        """
        net: Reconstruction = self.reconstruction
        if self.from_neighbours:
            assert update is not None
            return net(h, places.mean(update), places.beside)  # type: ignore[no-any-return]
        return net(places.of_rest(h), None if previous is None else places.of_rest(previous))  # type: ignore[no-any-return]

    def _sample(self, x: Tensor, ada: Tensor, context: Sampling) -> Tensor:
        g1, g2, scale1, scale2, shift1, shift2 = over_tokens(ada)
        h = self.normalise(x, scale1, shift1)
        keep = None
        if context.threshold is not None and context.scale in self.gated_scales:
            keep = self.token_gate(h, context.scale, above=context.threshold)
            if context.counter:
                context.counter.gate(self.index, context.scale, keep)
        tokens = kept = x.shape[0] * x.shape[1]
        if keep is None or bool(keep.all()):
            middle = torch.addcmul(x, g1, self.attn(h, cache=context.cache))
            out = self._with_ffn(middle, g2, scale2, shift2, context)
        else:
            side = self.patch_nums[context.scale]
            places: Places
            apart: tuple[Tensor, ...]
            if self.token_gate.alike and not is_exact():
                places = alike(tuple(keep[0].tolist()), side, keep.device)
                kept, apart = len(x) * len(places.kept), (g1, g2, scale2, shift2)
            else:
                places = Uneven(keep, side)
                kept = len(places.kept)
                # One gather of all AdaLN parameters, as wide rows, is much faster than one for each.
                apart = ada[:, [0, 1, 3, 5]].flatten(1).index_select(0, places.kept // x.shape[1]).chunk(4, dim=1)
            fill = self.fill(h, places) if self.rebuilds_kv else None
            before = places.of_kept(x)
            y = torch.addcmul(before, apart[0], self.attn(h, cache=context.cache, places=places, fill=fill))
            if not self.skips_attention:
                y = self._with_ffn(y, apart[1], apart[2], apart[3], context)
            rebuilt = self.rebuilt(h, places, y - before, self.previous(context))
            out = middle = places.together(y, places.of_rest(x) + rebuilt)
            if self.skips_attention:
                out = self._with_ffn(middle, g2, scale2, shift2, context)
        if context.counter:
            context.counter.attention(self.index, context.scale, kept, tokens - kept, context.cache.length)
        if self.from_previous and context.scale + 1 in self.gated_scales:
            context.cache.updates[self.index] = (middle if self.skips_attention else out) - x
        return out

    def previous(self, context: Sampling) -> Tensor | None:
        """The update of the scale before at the places of this one, (R, l, C), where it is read."""
        if not self.from_previous:
            return None
        before = context.cache.updates[self.index]
        return previous_update(before, *self.patch_nums[context.scale - 1 : context.scale + 1])

    def _with_ffn(self, y: Tensor, gain: Tensor, scale: Tensor, shift: Tensor, context: Sampling) -> Tensor:
        """``y`` (…, C) with the FFN's update; AdaLN's ``gain``, ``scale`` and ``shift`` fit it."""
        h = self.normalise(y, scale, shift)
        return torch.addcmul(y, gain, self._ffn(h, context))

    def _ffn(self, h: Tensor, context: Sampling) -> Tensor:
        on = None
        if context.threshold is not None and isinstance(self.ffn, ExpertFFN):
            on = self.router(h, above=context.threshold)
        if context.counter:
            context.counter.experts(self.index, context.scale, h.shape[:-1].numel(), on)
        return self.ffn(h) if on is None else self.ffn(h, on)  # type: ignore[no-any-return]
