"""The model's own count of the work it does, from the tokens and experts that were active.

Everything is in MACs (multiply-accumulates of matrix products and convolutions; additions, norms and activations are
not counted, as usual). FLOPs = 2 x MACs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from actvar_cli.model.config import BY_TOKEN, ModelConfig

PARTS = ("embed", "adaln", "attention", "ffn", "router", "token_gate", "reconstruction", "head")
"""What the transformer's work is divided into."""


_exact = False


@contextmanager
def exactly() -> Iterator[None]:
    """Inside, nothing is computed but what was asked for, which is then what a counter of products sees."""
    global _exact
    before, _exact = _exact, True
    try:
        yield
    finally:
        _exact = before


def is_exact() -> bool:
    """Whether work is being counted, see `exactly`."""
    return _exact


def attention_macs(config: ModelConfig, computed: int, skipped: int, length: int) -> int:
    """MACs of one block's attention: all four projections and the products for computed tokens, K and V for skipped.

    The latter unless they are made by a `TokenGateConfig.kv_rank`.
    """
    dim = config.transformer.embed_dim
    projected = skipped if not (config.token_gate and config.token_gate.kv_rank) else 0
    return computed * (4 * dim * dim + 2 * dim * length) + projected * 2 * dim * dim


def ffn_macs(config: ModelConfig, token_experts: int, experts: int) -> int:
    """MACs of ``token_experts`` pairs of a token and an active one of the FFN's ``experts`` (1: of a dense FFN)."""
    return token_experts * 2 * config.transformer.embed_dim * (config.transformer.hidden_dim // experts)


def router_macs(config: ModelConfig, tokens: int, experts: int) -> int:
    """MACs of scoring ``experts`` experts for each of ``tokens`` tokens."""
    if not config.experts or config.experts.router not in BY_TOKEN:
        return 0
    return tokens * config.experts.router_dim * (config.transformer.embed_dim + experts)


def gate_macs(config: ModelConfig, tokens: int) -> int:
    """MACs of the token gate."""
    if not config.token_gate or config.token_gate.kind != "learned":
        return 0
    return tokens * config.token_gate.gate_dim * (config.transformer.embed_dim + 1)


def reconstruction_macs(config: ModelConfig, skipped: int, computed: int) -> int:
    """MACs of standing in for ``skipped`` tokens of a scale, of which ``computed`` others are computed."""
    gate = config.token_gate
    if not gate:
        return 0
    # What neighbours say is told apart from what they are by the first half of the map, of all tokens.
    read = skipped + computed if skipped and gate.reads_neighbours else skipped
    update = (read + skipped) * gate.rank if "low-rank" in gate.reconstruction else 0
    return config.transformer.embed_dim * (update + (read + 2 * skipped) * gate.kv_rank)


def adaln_macs(config: ModelConfig, rows: int) -> int:
    """MACs of the AdaLN parameters of all blocks for ``rows`` sequences, computed once per image."""
    dim = config.transformer.embed_dim
    return rows * 6 * dim * dim * (1 if config.transformer.shared_aln else config.transformer.depth)


def head_macs(config: ModelConfig, rows: int, tokens: int) -> int:
    """MACs of the head for ``tokens`` tokens in ``rows`` sequences, its AdaLN included."""
    dim = config.transformer.embed_dim
    return tokens * dim * config.tokenizer.vocab_size + rows * 2 * dim * dim


def embed_macs(config: ModelConfig, tokens: int) -> int:
    """MACs of the input embedding."""
    return tokens * config.tokenizer.z_channels * config.transformer.embed_dim


def dense_macs(config: ModelConfig, images: int = 1) -> int:
    """MACs of the original transformer for sampling ``images`` images with CFG (two rows each), no token skipped.

    The first scale's input is the class embedding and takes no product.
    """
    plain = config.dense
    rows, seen, total = 2 * images, 0, adaln_macs(config, 2 * images)
    for scale, pn in enumerate(config.tokenizer.patch_nums):
        tokens = pn * pn * rows
        seen += pn * pn
        block = attention_macs(plain, tokens, 0, seen) + ffn_macs(plain, tokens, 1)
        total += config.transformer.depth * block + head_macs(config, rows, tokens)
        # Both rows of an image read the same tokens, so the embedding is computed once for the pair.
        total += embed_macs(config, pn * pn * images) if scale else 0
    return total


class WorkCounter:
    """Collects, while sampling, what was computed: MACs by part and scale, densities by block and scale."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.images = 0
        self.macs: dict[tuple[str, int], int] = defaultdict(int)
        self.tokens: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
        self.pairs: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])

    def begin_image(self, rows: int, images: int) -> None:
        """Count what is done once per image."""
        self.images += images
        self.macs["adaln", 0] += adaln_macs(self.config, rows)

    def frame(self, scale: int, rows: int, tokens: int, embedded: int) -> None:
        """Count embedding (of ``embedded`` tokens) and head (of ``tokens`` tokens) of one scale."""
        self.macs["embed", scale] += embed_macs(self.config, embedded)
        self.macs["head", scale] += head_macs(self.config, rows, tokens)

    def gate(self, block: int, scale: int, keep: Tensor) -> None:
        """Count one block's token gate, which decided ``keep`` (rows, tokens)."""
        self.macs["token_gate", scale] += gate_macs(self.config, int(keep.numel()))

    def attention(self, block: int, scale: int, computed: int, skipped: int, length: int) -> None:
        """Count one block's attention, and the reconstruction of what was skipped."""
        # While a profiler traces the sampling, sizes come as tensors: whole numbers keep the sums exact and portable.
        computed, skipped, length = int(computed), int(skipped), int(length)
        self.tokens[block, scale][0] += computed
        self.tokens[block, scale][1] += computed + skipped
        self.macs["attention", scale] += attention_macs(self.config, computed, skipped, length)
        self.macs["reconstruction", scale] += reconstruction_macs(self.config, skipped, computed)

    def experts(self, block: int, scale: int, tokens: int, on: Tensor | None) -> None:
        """Count one block's FFN over ``tokens`` tokens with the experts ``on`` (tokens, E); ``None`` is all of them."""
        count = self.config.experts_in(block)
        active = tokens * count if on is None else int(on.sum())
        self.pairs[block, scale][0] += active
        self.pairs[block, scale][1] += tokens * count
        self.macs["ffn", scale] += ffn_macs(self.config, active, count)
        if on is not None:
            self.macs["router", scale] += router_macs(self.config, tokens, count)

    @property
    def total(self) -> int:
        """MACs of all images counted."""
        return sum(self.macs.values())

    @property
    def cost(self) -> float:
        """The work as a share of the dense model's."""
        return self.total / dense_macs(self.config, self.images)

    def by_part(self) -> dict[str, float]:
        """MACs per image of each part."""
        return {p: sum(v for (part, _), v in self.macs.items() if part == p) / self.images for p in PARTS}

    def by_scale(self) -> list[float]:
        """MACs per image of each scale."""
        scales = range(len(self.config.tokenizer.patch_nums))
        return [sum(v for (_, scale), v in self.macs.items() if scale == s) / self.images for s in scales]

    def density(self, kind: str) -> list[list[float]]:
        """Active share of ``tokens`` or ``experts`` by block (outer) and scale (inner).

        The experts' share is of the tokens that were computed; it is 0 where none was.
        """
        source = {"tokens": self.tokens, "experts": self.pairs}[kind]
        scales = range(len(self.config.tokenizer.patch_nums))
        table = [[source[b, s] for s in scales] for b in range(self.config.transformer.depth)]
        return [[on / total if total else 0.0 for on, total in row] for row in table]
