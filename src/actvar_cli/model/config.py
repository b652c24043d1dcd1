"""What a model is made of: the architecture of the tokenizer, the transformer and what actvar adds to it.

The values are those a published checkpoint implies (arXiv 2404.02905); an artefact stores them as JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticKnownError

FORMAT_VERSION = 1
"""Version of the stored configuration; raised when an old reader could misread a new file."""

LAST_SEED = 2**32 - 1
"""The largest seed: what is drawn from it for batches stays within 64 bits."""

PositiveInt = Annotated[int, Field(ge=1)]


class Frozen(BaseModel):
    """A value that is checked once and never changes; unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerConfig(Frozen):
    """Architecture of the multi-scale VQVAE; the defaults are the published ``vae_ch160v4096z32``."""

    vocab_size: PositiveInt = 4096
    z_channels: PositiveInt = 32
    ch: PositiveInt = 160
    ch_mult: tuple[PositiveInt, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: PositiveInt = 2
    in_channels: PositiveInt = 3
    patch_nums: tuple[PositiveInt, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    quant_resi: float = Field(default=0.5, ge=0.0, le=1.0)
    share_quant_resi: PositiveInt = 4

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.patch_nums) != sorted(set(self.patch_nums)):
            raise ValueError(f"patch_nums must rise: {self.patch_nums}")
        if len(self.patch_nums) < 2:
            raise ValueError("patch_nums needs at least two scales")
        if self.ch % 32:
            raise ValueError(f"ch must be a multiple of 32 (group norm), not {self.ch}")
        return self

    @property
    def downsample(self) -> int:
        """Pixels per latent cell, along one side."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def image_size(self) -> int:
        """Side of the decoded image, in pixels."""
        return self.downsample * self.patch_nums[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens of one image, all scales together."""
        return sum(pn * pn for pn in self.patch_nums)

    def phi_index(self, scale: int) -> int:
        """Which shared residual convolution serves ``scale``: the one whose tick is nearest."""
        k = self.share_quant_resi
        margin = 1 / 3 / k if k == 4 else 1 / 2 / k
        # A middle scale lies exactly between two ticks: the published choice depends on numpy's rounding.
        ticks = np.linspace(margin, 1 - margin, k)
        return int(np.argmin(np.abs(ticks - scale / (len(self.patch_nums) - 1))))


class TransformerConfig(Frozen):
    """Architecture of the next-scale transformer; depth, width and so on as published."""

    depth: PositiveInt
    embed_dim: PositiveInt
    num_heads: PositiveInt
    num_classes: PositiveInt = 1000
    mlp_ratio: float = Field(default=4.0, gt=0)
    shared_aln: bool = False
    attn_l2_norm: bool = True
    norm_eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        return self

    @property
    def hidden_dim(self) -> int:
        """Neurons of one FFN."""
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.embed_dim // self.num_heads


RouterKind = Literal["learned", "relative", "static", "random", "none"]
"""How the experts of a token are scored; see `model.router`."""

BY_TOKEN: tuple[RouterKind, ...] = ("learned", "relative")
"""The routers that look at the token, and take products to do so."""

GateKind = Literal["learned", "grid", "static", "position", "deviation"]
"""How a token gate scores a token; see `model.token_gate`."""

SkippedPart = Literal["block", "attention"]
"""What a skipped token goes without: the whole block, or its attention."""

ReconstructionKind = Literal[
    "low-rank", "constant", "identity", "previous", "previous+low-rank", "neighbours", "neighbours+low-rank"
]
"""What stands in for the update of a skipped token; see `model.token_gate`."""


AtLeastTwo = Annotated[int, Field(ge=2)]


def _one_error(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Of the complaints about a number and those about a list, what fits what was given."""
    try:
        return check(value)
    except ValidationError as error:
        found = error.errors()[-1 if isinstance(value, list | tuple) else 0]
        raise PydanticKnownError(found["type"], found.get("ctx")) from error  # type: ignore[arg-type]


NumExperts = Annotated[AtLeastTwo | tuple[AtLeastTwo, ...], WrapValidator(_one_error)]
"""How many experts every FFN has, or the FFN of each block."""


class ExpertsConfig(Frozen):
    """How every FFN is split: ``num_experts`` groups of equal size behind a router of ``router_dim`` neurons.

    ``num_experts`` is one number, or one for each block. ``scale_offsets`` are added to the scores of router and token
    gate, one for each scale; none are all 0.
    """

    num_experts: NumExperts
    router_dim: PositiveInt
    method: str = "kmeans"
    router: RouterKind = "learned"
    scale_offsets: tuple[float, ...] = ()

    def __str__(self) -> str:
        """``8 experts``, or ``8, 8, 4 experts``."""
        counts = self.num_experts if isinstance(self.num_experts, tuple) else (self.num_experts,)
        return f"{', '.join(map(str, counts))} experts"


class TokenGateConfig(Frozen):
    """Which scales and ``blocks`` have a token gate, of which kind and width, and the reconstruction and its rank.

    ``blocks=None`` is all of them. What skipped tokens go without is ``skips``; their keys and values are computed, or
    with a ``kv_rank`` made by a map of that rank.
    """

    scales: tuple[Annotated[int, Field(ge=0)], ...]
    gate_dim: PositiveInt
    rank: PositiveInt
    kv_rank: Annotated[int, Field(ge=0)] = 0
    kind: GateKind = "learned"
    skips: SkippedPart = "block"
    reconstruction: ReconstructionKind = "low-rank"
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    @property
    def reads_neighbours(self) -> bool:
        """Whether a skipped token's stand-in is made from the computed ones around it."""
        return "neighbours" in self.reconstruction

    def scales_of(self, block: int) -> tuple[int, ...]:
        """The scales on which ``block`` has a gate."""
        return self.scales if self.blocks is None or block in self.blocks else ()


class GuidanceConfig(Frozen):
    """That the row with a class has learned guidance of strength ``cfg``: the row without one is not computed.

    With ``context`` it has also learned to go on where both rows have begun, from what guidance makes of their keys and
    values; else it reads those of the row with a class.
    """

    cfg: float = Field(gt=0)
    context: bool = False


class DeltaConfig(Frozen):
    """That weights move with the threshold, by shares of one change that were learned at ``thresholds``, which rise."""

    thresholds: Annotated[tuple[float, ...], Field(min_length=1)]


class TokenizerReference(Frozen):
    """Where the tokenizer of an artefact is: a zoo name, or a file beside it; with the sha256 of its file."""

    name: str
    sha256: str


EVERYTHING = -100.0
"""A threshold below every score: at or below it nothing is left out, and neither router nor token gate is asked."""


class Dial(Frozen):
    """One calibrated setting of the cost: an expert or a token is computed where its score exceeds ``threshold``.

    Where one row has learned guidance, the first ``paired_scales`` are computed in both rows, as the original does.
    """

    budget: float = Field(gt=0, le=1)
    threshold: float
    cost: float = Field(gt=0)
    paired_scales: int = Field(default=0, ge=0)


class ModelConfig(Frozen):
    """Everything needed to build a model's modules, stored with its weights."""

    format_version: int = FORMAT_VERSION
    name: str
    tokenizer: TokenizerConfig
    transformer: TransformerConfig
    tokenizer_reference: TokenizerReference | None = None
    experts: ExpertsConfig | None = None
    token_gate: TokenGateConfig | None = None
    guidance: GuidanceConfig | None = None
    delta: DeltaConfig | None = None
    dials: tuple[Dial, ...] = ()
    default_budget: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        counts = self.experts.num_experts if self.experts else 0
        if isinstance(counts, tuple) and len(counts) != self.transformer.depth:
            raise ValueError(f"{len(counts)} numbers of experts for {self.transformer.depth} blocks")
        for count in sorted({self.experts_in(block) for block in range(self.transformer.depth)}):
            if self.transformer.hidden_dim % count:
                raise ValueError(f"{count} experts do not divide the FFN's {self.transformer.hidden_dim} neurons")
        scales = len(self.tokenizer.patch_nums)
        if self.experts and len(self.experts.scale_offsets) not in (0, scales):
            raise ValueError(f"{len(self.experts.scale_offsets)} scale_offsets for {scales} scales")
        if max((dial.paired_scales for dial in self.dials), default=0) >= (scales if self.guidance else 1):
            raise ValueError("both rows at the first scales need guidance that is learned, and one scale without")
        if self.token_gate and max(self.token_gate.scales, default=0) >= scales:
            raise ValueError(f"token gate names scale {max(self.token_gate.scales)}, the model has fewer")
        if self.delta and list(self.delta.thresholds) != sorted(self.delta.thresholds):
            raise ValueError(f"the thresholds of delta must rise: {self.delta.thresholds}")
        if self.token_gate and max(self.token_gate.blocks or (), default=0) >= self.transformer.depth:
            raise ValueError(f"token gate names block {max(self.token_gate.blocks or ())}, the model has fewer")
        return self

    def experts_in(self, block: int) -> int:
        """How many experts the FFN of ``block`` has; 1 if it is dense."""
        counts = self.experts.num_experts if self.experts else 1
        return counts if isinstance(counts, int) else counts[block]

    @property
    def finest(self) -> int:
        """The largest number of experts of any FFN: the smallest expert is the unit of the scores."""
        return max(self.experts_in(block) for block in range(self.transformer.depth))

    @property
    def scale_offsets(self) -> tuple[float, ...]:
        """What is added to the scores of router and token gate at each scale."""
        given = self.experts.scale_offsets if self.experts else ()
        return given or (0.0,) * len(self.tokenizer.patch_nums)

    @property
    def dense(self) -> ModelConfig:
        """The same architecture as it was published, without what actvar adds."""
        return self.model_copy(update={"experts": None, "token_gate": None, "guidance": None, "delta": None})

    @property
    def rows(self) -> int:
        """Rows that are computed for each image at a threshold: both of guidance, or one that has learned it."""
        return 1 if self.guidance else 2

    @property
    def usual_cfg(self) -> float:
        """The strength of guidance where nobody says which: what was learned, or what the published FIDs are of."""
        return self.guidance.cfg if self.guidance else 1.5

    @property
    def beginnings(self) -> range:
        """Numbers of first scales that both rows may begin where one has learned guidance.

        From two on, as the first has no guidance.
        """
        return range(2, len(self.tokenizer.patch_nums))

    @property
    def is_dense(self) -> bool:
        """Whether nothing was converted: the model as published."""
        return self.experts is None and self.token_gate is None and self.guidance is None
