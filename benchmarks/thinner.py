"""A baseline of `quality.py`: a dense student that is narrower everywhere, taught by the same teacher on the same data.

It keeps the channels, neurons and parts of heads that say most, as Minitron does (arXiv 2407.14679), computes one row,
as ours does, and all of its transformer learns. Unlike ours it has one cost: there is a student for each budget.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar_cli.convert.grouping import magnitude
from actvar_cli.convert.recording import TeacherSamples
from actvar_cli.distill.cost import CostModel
from actvar_cli.distill.data import training_samples
from actvar_cli.distill.distill import guidance_of
from actvar_cli.distill.guidance_stage import learn_guidance
from actvar_cli.distill.losses import hidden_error, kl_divergence, scale_weights
from actvar_cli.distill.optimiser import Optimiser
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.distill.training import Course, batch_of, taught, training
from actvar_cli.model.block import Block
from actvar_cli.model.config import Dial, GuidanceConfig, ModelConfig, TransformerConfig
from actvar_cli.model.counters import dense_macs
from actvar_cli.model.sampling import ActVAR, single_rows
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress

WATCHED = 64
"""Samples on which channels are watched."""


def dense_share(config: ModelConfig, original: ModelConfig) -> float:
    """What a dense image of ``config`` costs by one of the ``original``."""
    return dense_macs(config) / dense_macs(original)


def cost_by(config: ModelConfig, original: ModelConfig) -> float:
    """What an image of a model of ``config``, of which all is computed, costs by the ``original``."""
    return CostModel(config, torch.device("cpu")).most() * dense_share(config, original)


def width_for(budget: float, original: ModelConfig) -> int:
    """The largest width at which a model otherwise like the ``original`` costs no more than ``budget``."""
    step = original.transformer.num_heads
    for dim in range(original.transformer.embed_dim - step, 0, -step):
        if cost_by(as_wide(original, dim), original) <= budget:
            return dim
    raise SystemExit(f"no width costs {budget:g}")


def as_wide(original: ModelConfig, dim: int) -> ModelConfig:
    """The ``original`` with another width."""
    arch = TransformerConfig(**{**original.transformer.model_dump(), "embed_dim": dim})
    return original.model_copy(update={"transformer": arch})


@torch.no_grad()
def loudest_channels(guided: ActVAR, samples: TeacherSamples, dim: int) -> Tensor:
    """The ``dim`` channels that carry most of what the blocks read, in order."""
    few, hidden = samples[torch.arange(WATCHED)], []
    every = guided.transformer.teacher_forced(-torch.inf)
    guided.transformer(*single_rows(guided, few.labels, few.tokens), every, hidden)
    energy = torch.stack([F.layer_norm(x, x.shape[-1:]).square().mean((0, 1)) for x in hidden]).mean(0)
    return largest(energy[None], dim)


def largest(values: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest of each row of ``values`` (n, m) are, in order, as (n count,) of all of them."""
    chosen = values.topk(count).indices.sort().values
    starts = torch.arange(len(values), device=values.device) * values.shape[1]
    return (chosen + starts[:, None]).flatten()


def parts_of_block(block: Block, dim: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a block of width ``dim`` keeps of queries and keys, of values, and of the ``hidden`` neurons."""
    attn, heads = block.attn, block.attn.num_heads
    q, k, v = attn.mat_qkv.weight.float().norm(dim=1).unflatten(0, (3, heads, -1))
    spoken = v * attn.proj.weight.float().norm(dim=0).unflatten(0, (heads, -1))
    return largest(q * k, dim // heads), largest(spoken, dim // heads), largest(magnitude(block.ffn)[None], hidden)


def kept(guided: ActVAR, channels: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Which rows, then columns, of each weight go with the ``channels`` (dim,); those not named end in channels."""
    wide, thin = guided.config.transformer.embed_dim, as_wide(guided.config, len(channels)).transformer

    def in_parts(number: int) -> Tensor:
        """The channels in each of ``number`` outputs, one after the other."""
        return (torch.arange(number, device=channels.device)[:, None] * wide + channels).flatten()

    found: dict[str, tuple[Tensor, ...]] = {
        "word_embed.weight": (channels,),
        "head_nm.ada_lin.1.weight": (in_parts(2), channels),
        "head_nm.ada_lin.1.bias": (in_parts(2),),
        "head.bias": (),
    }
    for block in guided.transformer.stack:
        looked, spoken, neurons = parts_of_block(block, thin.embed_dim, thin.hidden_dim)
        of_block = {
            "ada_lin.1.weight": (in_parts(6), channels),
            "ada_lin.1.bias": (in_parts(6),),
            "attn.scale_mul_1H11": (),
            "attn.mat_qkv.weight": (torch.cat((looked, looked + wide, spoken + 2 * wide)), channels),
            "attn.q_bias": (looked,),
            "attn.v_bias": (spoken,),
            "attn.proj.weight": (channels, spoken),
            "ffn.fc1.weight": (neurons, channels),
            "ffn.fc1.bias": (neurons,),
            "ffn.fc2.weight": (channels, neurons),
        }
        found |= {f"blocks.{block.index}.{name}": indices for name, indices in of_block.items()}
    return found


@torch.no_grad()
def narrowed(guided: ActVAR, channels: Tensor) -> ActVAR:
    """``guided`` with nothing but these ``channels`` (dim,), and as much less of everything else."""
    config = as_wide(guided.config, len(channels))
    made = ActVAR(config, VAR(config).to(guided.device), guided.tokenizer).eval()
    indices, weights = kept(guided, channels), guided.transformer.state_dict()
    for name, weight in weights.items():
        if name not in indices:
            weights[name] = weight.index_select(-1, channels)
        for dim, index in enumerate(indices.get(name, ())):
            weights[name] = weights[name].index_select(dim, index)
    made.transformer.load_state_dict(weights)
    return made


def thinner_student(teacher: ActVAR, settings: DistillSettings, seed: int = 0) -> ActVAR:
    """A narrower student of ``teacher``, for one budget, with the stage `guidance` and the steps of both others."""
    progress = Progress()
    samples = training_samples(teacher, settings, GuidanceConfig(cfg=settings.stages.guidance.cfg), seed, progress)
    guided = learn_guidance(Course(teacher, samples, settings, seed=seed, progress=progress))
    channels = loudest_channels(guided, samples, width_for(settings.budget, guided.config))
    student = narrowed(guided, channels)
    weights, guidance = scale_weights(teacher.config.tokenizer.patch_nums, teacher.device), guidance_of(guided)
    with training(student, ("",)) as parameters:
        optimiser = Optimiser(
            parameters,
            lr=settings.lr,
            steps=settings.stages.learning,
            precision=settings.precision,
            device=teacher.device,
            kind=settings.optimiser,
        )
        for step in range(settings.stages.learning):
            batch, theirs, ours = batch_of(samples, settings.batch, seed + step), [], []
            with optimiser.autocast:
                target = taught(teacher, batch, guidance)
                rows = single_rows(teacher, batch.labels, batch.tokens)
                with torch.no_grad():
                    guided.transformer(*rows, guided.transformer.teacher_forced(-torch.inf), theirs)
                logits = student.transformer(*rows, student.transformer.teacher_forced(-torch.inf), ours)
            kl = kl_divergence(logits, target, weights)
            hidden = hidden_error([x[..., channels] for x in theirs], ours, weights)
            optimiser.step(kl + settings.weights.hidden * hidden, step)
    # With nothing to leave out, it works in the same way at any threshold.
    dial = Dial(budget=settings.budget, threshold=0.0, cost=cost_by(student.config, teacher.config))
    student.configure(dials=(dial,))
    return student
