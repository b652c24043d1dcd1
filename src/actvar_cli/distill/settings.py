"""What a user chooses when a student is distilled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from actvar_cli.model.config import Frozen, GateKind, ModelConfig, ReconstructionKind, SkippedPart

LOGIT_BYTES = 3 * 2**30
"""Room for the teacher's logits on all samples, on a CPU."""


class GuidanceStage(Frozen):
    """Before the others: one row learns what guidance makes of two, which halves the cost."""

    steps: Annotated[
        int, Field(ge=0, description="optimiser steps; 0 leaves the stage out, both rows are computed")
    ] = 0
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 6e-3
    cfg: Annotated[float, Field(gt=0, description="strength of guidance that is learned")] = 1.5


class ExpertsStage(Frozen):
    """First of the two stages: routers and experts learn."""

    steps: Annotated[int, Field(ge=0, description="optimiser steps; 0 leaves the stage out")] = 200
    share: Annotated[
        float, Field(gt=0, le=1, description="share of the whole saving that experts make before token gates join")
    ] = 0.95


class TokensStage(Frozen):
    """Second of the two stages: token gate and reconstruction join, the experts go on learning."""

    steps: Annotated[int, Field(ge=0, description="optimiser steps; 0 leaves the stage out")] = 200
    rank: Annotated[int, Field(ge=1, description="rank of the reconstruction")] = 32
    kv_rank: Annotated[
        int, Field(ge=0, description="rank of what stands in for keys and values of skipped tokens; 0 computes these")
    ] = 0
    scales: Annotated[int, Field(ge=1, description="how many of the last scales have a token gate")] = 3
    gate: Annotated[
        GateKind,
        Field(
            description="what decides: the token (learned), a fixed grid (grid), its scale and block (static), its "
            "position, how far it is from the mean of its scale (deviation)"
        ),
    ] = "learned"
    skips: Annotated[SkippedPart, Field(description="what a skipped token goes without")] = "attention"
    reconstruction: Annotated[ReconstructionKind, Field(description="what stands in for a skipped token's update")] = (
        "low-rank"
    )


class ContextStage(Frozen):
    """Last: where both rows begin, one learns to go on from what guidance makes of their keys and values."""

    steps: Annotated[
        int, Field(ge=0, description="optimiser steps; 0 leaves the stage out, the row with a class alone is read")
    ] = 0
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 5e-2


class Stages(Frozen):
    """The stages, in order."""

    guidance: GuidanceStage = GuidanceStage()
    experts: ExpertsStage = ExpertsStage()
    tokens: TokensStage = TokensStage()
    context: ContextStage = ContextStage()

    @property
    def learning(self) -> int:
        """Steps of the stages ``experts`` and ``tokens``, which share one schedule of the learning rate."""
        return self.experts.steps + self.tokens.steps


class LossWeights(Frozen):
    """Weights of the loss terms; the KL divergence on the logits has weight 1."""

    hidden: Annotated[float, Field(ge=0, description="relative error of every block's output")] = 4.0
    cost: Annotated[float, Field(ge=0, description="squared excess of the cost over the budget")] = 50.0


class DistillSettings(Frozen):
    """Budget, data, optimiser and stages of a distillation."""

    budget: Annotated[float, Field(gt=0, lt=1, description="share of the dense transformer's FLOPs to reach")] = 0.7
    also: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(description="further budgets that the same student is trained for, in turn with the first"),
    ] = ()
    data: Annotated[
        str | None,
        Field(
            description="a folder of pictures to train on, one subfolder for each class, by names or numbers; "
            "default: samples of the teacher"
        ),
    ] = None
    images: Annotated[
        int, Field(ge=8, description="images to train on, sampled from the teacher or drawn from data")
    ] = 1024
    batch: Annotated[int, Field(ge=1, description="images per optimiser step")] = 32
    own: Annotated[
        float, Field(ge=0, le=1, description="share of every batch that the student sampled itself, not the teacher")
    ] = 0.0
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 2e-4
    router_lr: Annotated[
        float, Field(ge=0, description="the routers' learning rate as a share of lr; 0 leaves them as they were fitted")
    ] = 0.1
    attention_lr: Annotated[
        float,
        Field(ge=0, description="the learning rate of attention, AdaLN and guidance as a share of lr, if these learn"),
    ] = 0.25
    optimiser: Annotated[
        Literal["adamw", "muon"],
        Field(description="what the matrices of attention and FFNs learn by; all else learns by adamw"),
    ] = "adamw"
    learns: Annotated[
        Literal["experts", "blocks", "delta"],
        Field(
            description="what learns: FFNs, routers and reconstructions (experts), all of every block (blocks), or "
            "instead of its weights one change of them that every budget takes its share of (delta)"
        ),
    ] = "experts"
    stages: Stages = Stages()
    weights: LossWeights = LossWeights()
    precision: Annotated[
        str, Field(pattern="^(auto|no|bf16)$", description="bf16 autocast, none, or bf16 where it is fast")
    ] = "auto"

    @property
    def budgets(self) -> list[float]:
        """All budgets to train for, in the order in which steps take them."""
        return [self.budget, *self.also]

    def kept_logits(self, config: ModelConfig, room: int = LOGIT_BYTES) -> int:
        """Bytes of what the teacher says about all its samples, in half precision; 0 where there is no ``room``."""
        size = 2 * self.images * config.tokenizer.num_tokens * config.tokenizer.vocab_size
        return size if size <= room else 0
