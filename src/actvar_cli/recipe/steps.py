"""The steps that a recipe can have, each a typed model, and the recipe that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ByteSize, ConfigDict, Field, model_validator

from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.model.config import LAST_SEED, Frozen
from actvar_cli.weights.shards import SHARD_SIZE

if TYPE_CHECKING:
    from actvar_cli.model.config import ModelConfig

Settings = TypeVar("Settings", bound=BaseModel)

Budget = Annotated[
    float | None, Field(gt=0, le=1, description="share of the dense FLOPs to work at; 1 is dense; default: the model's")
]
Model = Annotated[str | None, Field(description="an earlier step, or a model; default: that of the step before")]
Against = Annotated[
    str | None,
    Field(description="the model to compare with; default: what the model was made from in this recipe"),
]

DtypeName = Literal["float32", "bfloat16", "float16"]
Dtype = Annotated[
    DtypeName, Field(description="what the weights of the blocks and the tokenizer's decoder are kept in")
]

PROFILE_WORK = 3 * 10**11
"""MACs of dense sampling that one batch of a profile may take, about: one image of a d16."""

MANY = 10**9
"""The most that may be asked for: more than anybody waits for, and a number that all of it can be counted in."""

PICTURES = "pictures"
"""What a report's pictures are called at the top of a run's folder, and so no `sample` step."""


class Step(Frozen):
    """What every step has."""

    name: Annotated[
        str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="what --set and other steps call it")
    ] = None
    seed: Annotated[int | None, Field(ge=0, le=LAST_SEED, description="default: the recipe's")] = None

    def settings(self, model: type[Settings]) -> Settings:
        """The part of this step that is a ``model``."""
        return model.model_validate({field: getattr(self, field) for field in model.model_fields})


class Drawing(Frozen):
    """How tokens are drawn; the fields are those of `model.sampling.SamplingSettings`."""

    cfg: Annotated[
        float | None,
        Field(ge=0, description="strength of classifier-free guidance; default: what the model has learned, or 1.5"),
    ] = None
    top_k: Annotated[int, Field(ge=0, description="candidates kept for every token; 0 keeps all")] = 0
    top_p: Annotated[float, Field(ge=0, le=1, description="probability mass kept; 0 keeps all")] = 0.0


class Together(Frozen):
    """How many images are sampled at once."""

    batch: Annotated[
        int | None,
        Field(ge=1, le=MANY, description="images sampled together; default: 50, or fewer by the model's size"),
    ] = None

    def batch_for(self, config: ModelConfig) -> int:
        """``batch``, or as many images as the size of the model allows."""
        from actvar_cli.model.cache import images_together

        return self.batch or images_together(config)


class ProfileSettings(Frozen):
    """How a model is profiled."""

    budget: Budget = None
    batch: Annotated[
        int | None, Field(ge=1, le=MANY, description="images sampled together; default: 1 to 16 by the model's size")
    ] = None
    repeats: Annotated[int, Field(ge=1, le=MANY, description="timed samplings, of which the median counts")] = 5
    dtype: Dtype = "float32"

    def batch_for(self, config: ModelConfig) -> int:
        """``batch``, or as many images as the size of the model allows."""
        from actvar_cli.model.counters import dense_macs

        return self.batch or max(1, min(16, PROFILE_WORK // dense_macs(config)))


class Gates(Frozen):
    """What an evaluation must not exceed; exceeded, the command ends with exit code 3."""

    max_distance_ratio: Annotated[
        float | None, Field(gt=0, description="gate: Frechet distance as a multiple of the teacher's")
    ] = None
    max_cost: Annotated[float | None, Field(gt=0, description="gate: share of the dense transformer's FLOPs")] = None


class EvaluateSettings(Drawing, Gates, Together):
    """How a model is evaluated."""

    count: Annotated[int, Field(ge=2, le=MANY, description="images sampled from each model")] = 2000
    budget: Budget = None


class SampleSettings(Drawing, Together):
    """Which images are sampled."""

    classes: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None,
        Field(min_length=1, description="labels; default: all classes, or ten spread over them"),
    ] = None
    count: Annotated[int, Field(ge=1, le=MANY, description="images of each class")] = 8
    more_smooth: Annotated[bool, Field(description="smoother pictures, less exact ones (Gumbel mixture of codes)")] = (
        False
    )
    budget: Budget = None
    dtype: Dtype = "float32"


class ExportSettings(Frozen):
    """As what, and how, a model is written for handing on."""

    format: Annotated[
        Literal["actvar", "var"],
        Field(description="a folder (actvar), or one .safetensors or .pth for anybody's VAR code (var)"),
    ] = "actvar"

    dtype: Annotated[DtypeName, Field(description="how the transformer's weights are stored")] = "float32"
    shard_size: Annotated[
        ByteSize,
        Field(description="bytes of one file of weights in a folder, at most, as 500MB; default: 5GB"),
    ] = ByteSize(SHARD_SIZE)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format == "var" and "shard_size" in self.model_fields_set:
            raise ValueError("a shard size means nothing with format var: the published layout is one file")
        return self


class ReportSettings(Frozen):
    """What the report shows besides figures."""

    classes: Annotated[int, Field(ge=1, description="classes that pictures are shown of")] = 10
    count: Annotated[int, Field(ge=1, le=MANY, description="pictures of each class, from each model")] = 8


class ConvertStep(Step, ConvertSettings):
    """Split a model's FFNs into experts with routers."""

    step: Literal["convert"]
    model: Model = None


class DistillStep(Step, DistillSettings):
    """Teach routers, experts and token gates to imitate the original."""

    step: Literal["distill"]
    teacher: Against = None
    student: Model = None


class ProfileStep(Step, ProfileSettings):
    """Count FLOPs and measure time, dense and compressed."""

    step: Literal["profile"]
    model: Model = None


class EvaluateStep(Step, EvaluateSettings):
    """Compare with the original: distance to real pictures, class accuracy, agreement."""

    step: Literal["evaluate"]
    model: Model = None
    against: Against = None


class SampleStep(Step, SampleSettings):
    """Sample a grid of pictures."""

    step: Literal["sample"]
    model: Model = None


class ExportStep(Step, ExportSettings):
    """Write a folder to hand on: weights, tokenizer, configuration, model card; or var.pth in the published layout."""

    step: Literal["export"]
    model: Model = None


class ReportStep(Step, ReportSettings):
    """Write report.html from what earlier steps measured."""

    step: Literal["report"]
    model: Model = None
    against: Against = None


AnyStep = ConvertStep | DistillStep | ProfileStep | EvaluateStep | SampleStep | ExportStep | ReportStep

VERBS: dict[str, type[AnyStep]] = {
    "convert": ConvertStep,
    "distill": DistillStep,
    "profile": ProfileStep,
    "evaluate": EvaluateStep,
    "sample": SampleStep,
    "export": ExportStep,
    "report": ReportStep,
}
"""The step of each verb."""

MEASURES = ("profile", "evaluate")
"""Steps that find out about a model."""

MAKES_MODEL = ("convert", "distill")
"""Verbs whose step leaves a model for the steps after it."""

MODEL_KEYS = {"distill": "student"}
"""The key that names a step's model, where it is not ``model``."""

TEACHER_KEYS = {"distill": "teacher", "evaluate": "against", "report": "against"}
"""The key that names what a step compares with, for the verbs that do."""


class Recipe(Frozen):
    """A pipeline: steps in order, each taking the model of the one before unless it names another."""

    model_config = ConfigDict(title="actvar recipe")

    version: Literal[1]
    name: Annotated[
        str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run's folder")
    ] = None
    description: Annotated[str | None, Field(description="one line for `actvar ls --recipes`")] = None
    seed: Annotated[int, Field(ge=0, le=LAST_SEED, description="of every step that has none of its own")] = 0
    steps: Annotated[
        tuple[Annotated[AnyStep, Field(discriminator="step")], ...], Field(min_length=1, description="in order")
    ]
