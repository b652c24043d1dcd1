"""The next-scale transformer of VAR, dense or compressed.

Source: VAR (arXiv 2404.02905). State-dict keys are the published ones; what actvar adds has keys of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.block import Block, Sampling, TeacherForced
from actvar_cli.model.cache import KVCache
from actvar_cli.model.config import EVERYTHING, ModelConfig
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.delta import Delta, Weights, using
from actvar_cli.model.guidance import GuidanceEmbedding, GuidedContext, blend, guidance_by_position, over_tokens
from actvar_cli.model.products import Linear, fitted, product_dtype


class HeadNorm(nn.Module):
    """AdaLN before the head."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def condition(self, cond: Tensor, strength: float | Tensor | None) -> tuple[Tensor, ...]:
        """Scale and shift (R, 1, C), or (R, l, C) where ``strength`` differs by position; arguments as `forward`."""
        return over_tokens(blend(self.ada_lin(cond).unflatten(-1, (2, self.dim)), strength))

    def forward(self, x: Tensor, cond: Tensor, strength: float | Tensor | None = None) -> Tensor:
        """``x`` (R, l, C) and the class embedding ``cond`` (R, C), or with a ``strength`` (R, 2, C), see `blend`."""
        scale, shift = self.condition(cond, strength)
        out: Tensor = F.layer_norm(x, (self.dim,), eps=self.eps) * (scale + 1) + shift
        return out


class SharedAdaLin(nn.Module):
    """AdaLN projection shared by all blocks: SiLU, then Linear, under the published key ``shared_ada_lin.1``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.add_module("1", Linear(dim, 6 * dim))
        self.dim = dim

    def forward(self, cond: Tensor) -> Tensor:
        """Class embedding (R, C) to (R, 1, 6, C)."""
        linear: Linear = self.get_submodule("1")  # type: ignore[assignment]
        rows = fitted(F.silu(cond).unsqueeze(1), linear.weight)
        return linear(rows).to(cond.dtype).unflatten(2, (6, self.dim))  # type: ignore[no-any-return]


class VAR(nn.Module):
    """Class-conditional next-scale prediction over the tokens of a multi-scale tokenizer."""

    lvl_1L: Tensor
    attn_bias_for_masking: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        arch, tok = config.transformer, config.tokenizer
        dim, length = arch.embed_dim, tok.num_tokens
        std = (1 / dim / 3) ** 0.5
        self.word_embed = nn.Linear(tok.z_channels, dim)
        self.class_emb = nn.Embedding(arch.num_classes + 1, dim)
        self.pos_start = nn.Parameter(torch.empty(1, tok.patch_nums[0] ** 2, dim))
        self.pos_1LC = nn.Parameter(torch.empty(1, length, dim))
        self.lvl_embed = nn.Embedding(len(tok.patch_nums), dim)
        for weight in (self.class_emb.weight, self.pos_start, self.pos_1LC, self.lvl_embed.weight):
            nn.init.trunc_normal_(weight, std=std)
        if arch.shared_aln:
            self.shared_ada_lin = SharedAdaLin(dim)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(arch.depth))
        if config.guidance:
            self.guidance = GuidanceEmbedding(arch.num_classes, len(tok.patch_nums), dim)
            if config.guidance.context:
                self.guided_context = GuidedContext(config)
        if config.delta:
            self.delta = Delta(self.blocks, len(config.delta.thresholds))
        self.head_nm = HeadNorm(dim, arch.norm_eps)
        self.head = Linear(dim, tok.vocab_size)
        self.derive_buffers()

    def derive_buffers(self) -> None:
        """Make the buffers that follow from the config; a model built without storage needs this after loading."""
        tok = self.config.tokenizer
        scales = torch.cat([torch.full((pn * pn,), i) for i, pn in enumerate(tok.patch_nums)])
        self.register_buffer("lvl_1L", scales[None], persistent=False)
        visible = scales[:, None] >= scales[None, :]
        bias = torch.zeros(tok.num_tokens, tok.num_tokens).masked_fill(~visible, -torch.inf)
        self.register_buffer("attn_bias_for_masking", bias[None, None], persistent=False)
        for block in self.blocks:
            block.attn.zero_k_bias = torch.zeros(self.config.transformer.embed_dim)  # type: ignore[union-attr]

    @property
    def stack(self) -> list[Block]:
        """The blocks in order, as a list that knows their type."""
        return list(self.blocks)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the blocks' weights."""
        return self.stack[0].attn.mat_qkv.weight.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """The type of keys and values: that of the blocks' products, here and now."""
        device = self.pos_start.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return product_dtype(self.stack[0].attn.mat_qkv.weight)

    def by_kernels(self) -> bool:
        """Whether sampling is done by the kernels for GPUs: all of it, since each block leaves the next one a sum."""
        return all(block.by_kernels() for block in self.stack)

    def weights(self, threshold: float | None) -> Weights | None:
        """The blocks' weights at ``threshold``, to be used inside `using`; ``None`` where they are the same at all."""
        delta = self.config.delta
        return self.delta.weights(self, threshold, delta.thresholds) if delta else None

    def gated_positions(self) -> Tensor:
        """Which positions (L,) of the sequence belong to a scale with a token gate."""
        scales = self.config.token_gate.scales if self.config.token_gate else ()
        return torch.isin(self.lvl_1L[0], torch.tensor(scales, dtype=torch.long, device=self.lvl_1L.device))

    def positions(self) -> Tensor:
        """Position plus scale embedding of the whole sequence, (1, L, C)."""
        return self.lvl_embed(self.lvl_1L) + self.pos_1LC  # type: ignore[no-any-return]

    def conditions(self, cond: Tensor) -> list[Tensor]:
        """AdaLN parameters (R, 6, C) of every block for the class embeddings (R, C); constant over the scales.

        (R, 2, C), without and with guidance, becomes (R, 2, 6, C), for `blend`.
        """
        flat = cond.flatten(0, -2)
        shared = self.shared_ada_lin(flat) if self.config.transformer.shared_aln else flat
        return [block.condition(shared).unflatten(0, cond.shape[:-1]) for block in self.stack]

    def logits(self, x: Tensor, cond: Tensor, strength: float | Tensor | None = None) -> Tensor:
        """Head in float32: (R, l, C) to (R, l, vocab); ``cond`` and ``strength`` as `HeadNorm` takes them."""
        return self.head(self.head_nm(x.float(), cond, strength).float()).float()  # type: ignore[no-any-return]

    def teacher_forced(
        self,
        threshold: float | None = None,
        *,
        temperature: float = 1.0,
        pick: Tensor | None = None,
        cfg: float | None = None,
        before: Sequence[tuple[Tensor, Tensor]] = (),
        whole: bool = False,
    ) -> TeacherForced:
        """A context for `forward` on this model; the fields are explained in `TeacherForced`.

        With a threshold, a model that has learned guidance predicts what guidance of strength ``cfg`` would
        (``None``: what it learned); without one it is the original model. With the keys and values ``before``, see
        `TeacherForced`, it goes on after as many positions, and must be ``whole``: that leaves nothing out, and asks
        neither routers nor token gates.
        """
        assert whole or not before
        learned, strength = self.config.guidance, None
        if learned and threshold is not None:
            cfg = learned.cfg if cfg is None else cfg
            strength = guidance_by_position(self.config, cfg, self.lvl_1L.device) / learned.cfg
        cut = None
        if threshold is not None and not whole:
            offsets = torch.tensor(self.config.scale_offsets, device=self.lvl_1L.device)
            cut = threshold - offsets[self.lvl_1L[0]]
        first = before[0][0].shape[2] if before else 0
        return TeacherForced(
            self.attn_bias_for_masking[:, :, first:],
            self.lvl_1L[0, first:],
            self.gated_positions()[first:],
            cut,
            temperature,
            pick,
            None if strength is None else strength[first:],
            threshold,
            list(before),
        )

    def embed(self, labels: Tensor, var_input: Tensor, strength: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first block's input (B, L, C) for a whole sequence, and what `conditions` takes; see `forward`.

        ``strength`` (L, 1) is that of guidance, for a model that has learned it; of the last l positions, (l, 1), it
        gives the input of these alone.
        """
        cond = self.class_emb(labels)
        start = cond.unsqueeze(1) + self.pos_start
        x = torch.cat((start, self.word_embed(var_input.float()).to(start.dtype)), 1) + self.positions()
        if strength is None:
            return x, cond
        last = slice(len(self.lvl_1L[0]) - len(strength), None)
        x = x[:, last] + strength * self.guidance.scales[self.lvl_1L[0, last]]
        return x, self.guidance.conditions(cond, labels)

    def forward(
        self,
        labels: Tensor,
        var_input: Tensor,
        context: TeacherForced | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """Teacher-forced logits (B, L, vocab), or of those positions that ``context`` is about.

        ``labels`` (B,) with ``num_classes`` standing for "no class"; ``var_input`` (B, L - first, z) from
        `MultiScaleQuantizer.teacher_forcing_input`. ``context`` sets thresholds and collects decisions; ``hidden``
        collects the output (B, L, C) of every block.
        """
        context = context or self.teacher_forced()
        x, cond = self.embed(labels, var_input, context.strength)
        with using(self.weights(context.dial)):
            for block, ada in zip(self.blocks, self.conditions(cond), strict=True):
                x = block(x, blend(ada, context.strength), context)
                if hidden is not None:
                    hidden.append(x)
        return self.logits(x, cond, context.strength)

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for ``rows`` sequences."""
        arch = self.config.transformer
        shape = (arch.depth, rows, arch.num_heads, self.config.tokenizer.num_tokens, arch.head_dim)
        return KVCache(torch.empty((2, *shape), dtype=self.cache_dtype, device=self.pos_start.device))

    def scale_logits(
        self,
        x: Tensor,
        cond: Tensor,
        ada: list[Tensor],
        cache: KVCache,
        scale: int,
        *,
        threshold: float | None = None,
        counter: WorkCounter | None = None,
        strength: float | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Logits (R, l, vocab) of one scale from its embedded input ``x`` (R, l, C), extending ``cache``.

        With a ``strength`` of guidance, ``cond`` and ``ada`` are without and with it. ``out`` is room for the logits;
        it is only used by kernels for GPUs.
        """
        cache.begin_scale(x.shape[1])
        cut = None
        if threshold is not None and threshold > EVERYTHING:
            cut = threshold - self.config.scale_offsets[scale]
        context = Sampling(cache, scale, cut, counter, kernels=counter is None and self.by_kernels())
        if strength is not None:
            x = x + strength * self.guidance.scales[scale]
        for block, parameters in zip(self.blocks, ada, strict=True):
            x = block(x, blend(parameters, strength), context)
        if context.kernels:
            from actvar_cli.model.kernels.head import logits

            return logits(self, x, context.update, cond, strength, out)
        return self.logits(x, cond, strength)
