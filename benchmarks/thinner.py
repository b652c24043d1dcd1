"""A baseline of `quality.py`: a dense student that is narrower everywhere, taught by the same teacher on the same data.

It keeps the channels, neurons and parts of heads that say most, as Minitron does (arXiv 2407.14679), computes one row,
as ours does, and all of its transformer learns. Unlike ours it has one cost: there is a student for each budget.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar_cli.convert.grouping import magnitude
from actvar_cli.convert.recording import TeacherSamples, draw_samples
from actvar_cli.distill.guidance_stage import learn_guidance
from actvar_cli.distill.losses import hidden_error, kl_divergence, scale_weights
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.distill.training import Optimiser, batch_of, taught, training
from actvar_cli.model.block import Block
from actvar_cli.model.config import Dial, ModelConfig, TransformerConfig
from actvar_cli.model.counters import WorkCounter, dense_macs
from actvar_cli.model.guidance import guidance_by_position
from actvar_cli.model.sampling import ActVAR, SamplingSettings, single_rows
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress

WATCHED = 64
"""Samples on which channels are watched."""


def cost_by(model: ActVAR, original: ModelConfig) -> float:
    """What an image of ``model`` costs, by the work of the ``original``."""
    counter = WorkCounter(model.config)
    model.sample_tokens([0], seed=0, counter=counter)
    return counter.total / dense_macs(original)


def width_for(budget: float, guided: ActVAR) -> int:
    """The largest width at which a model like ``guided`` costs no more than ``budget`` of it."""
    step = guided.config.transformer.num_heads
    for dim in range(guided.config.transformer.embed_dim - step, 0, -step):
        if cost_by(empty(guided, dim), guided.config) <= budget:
            return dim
    raise SystemExit(f"no width costs {budget:g}")


def empty(guided: ActVAR, dim: int) -> ActVAR:
    """A model of width ``dim`` that is otherwise like ``guided``, with any weights."""
    arch = TransformerConfig(**{**guided.config.transformer.model_dump(), "embed_dim": dim})
    config = guided.config.model_copy(update={"transformer": arch})
    made = ActVAR(config, VAR(config).to(guided.device), guided.tokenizer).eval()
    # At a threshold, whichever, guidance is learned.
    made.threshold = 0.0
    return made


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


@torch.no_grad()
def narrowed(guided: ActVAR, channels: Tensor) -> ActVAR:
    """``guided`` with nothing but these ``channels`` (dim,), and as much less of everything else."""
    made = empty(guided, len(channels))
    arch = made.config.transformer
    c = channels
    cuts: dict[str, Callable[[Tensor], Tensor]] = {
        "ada_lin.1.weight": lambda w: w.unflatten(0, (-1, w.shape[1]))[:, c][:, :, c].flatten(0, 1),
        "ada_lin.1.bias": lambda b: b.unflatten(0, (-1, guided.config.transformer.embed_dim))[:, c].flatten(),
        "word_embed.weight": lambda w: w[c],
        "head.bias": lambda b: b,
        "scale_mul_1H11": lambda m: m,
    }
    for block in guided.transformer.stack:
        looked, spoken, neurons = parts_of_block(block, arch.embed_dim, arch.hidden_dim)
        dim = guided.config.transformer.embed_dim
        rows = torch.cat((looked, looked + dim, spoken + 2 * dim))
        cuts |= {
            f"blocks.{block.index}.{name}": cut
            for name, cut in {
                "attn.mat_qkv.weight": lambda w, rows=rows: w[rows][:, c],
                "attn.q_bias": lambda b, looked=looked: b[looked],
                "attn.v_bias": lambda b, spoken=spoken: b[spoken],
                "attn.proj.weight": lambda w, spoken=spoken: w[c][:, spoken],
                "ffn.fc1.weight": lambda w, neurons=neurons: w[neurons][:, c],
                "ffn.fc1.bias": lambda b, neurons=neurons: b[neurons],
                "ffn.fc2.weight": lambda w, neurons=neurons: w[c][:, neurons],
            }.items()
        }
    weights = {}
    for name, weight in guided.transformer.state_dict().items():
        cut = next((cut for key, cut in cuts.items() if name.endswith(key)), lambda w: w[..., c])
        weights[name] = cut(weight)
    made.transformer.load_state_dict(weights)
    return made


def thinner_student(teacher: ActVAR, settings: DistillSettings, seed: int = 0) -> ActVAR:
    """A narrower student of ``teacher``, for one budget, with the stage `guidance` and the steps of both others."""
    cfg, progress = settings.stages.guidance.cfg, Progress()
    samples = draw_samples(
        teacher,
        settings.images,
        seed=seed + 1_000_000,
        progress=progress,
        settings=SamplingSettings(cfg=cfg),
        keep_logits=settings.kept_logits(teacher.config) > 0,
    )
    guided = learn_guidance(teacher, samples, settings, seed=seed, history=[], checkpoint=None, progress=progress)
    dim = width_for(settings.budget, guided)
    channels = loudest_channels(guided, samples, dim)
    student = narrowed(guided, channels)
    weights = scale_weights(teacher.config.tokenizer.patch_nums, teacher.device)
    strengths = guidance_by_position(teacher.config, cfg, teacher.device)
    with training(student, ("",)) as parameters:
        optimiser = Optimiser(
            parameters,
            lr=settings.lr,
            steps=settings.stages.learning,
            precision=settings.precision,
            device=teacher.device,
        )
        for step in range(settings.stages.learning):
            batch, theirs, ours = batch_of(samples, settings.batch, seed + step), [], []
            with optimiser.autocast:
                target = taught(teacher, batch, strengths)
                rows = single_rows(teacher, batch.labels, batch.tokens)
                with torch.no_grad():
                    guided.transformer(*rows, guided.transformer.teacher_forced(-torch.inf), theirs)
                logits = student.transformer(*rows, student.transformer.teacher_forced(-torch.inf), ours)
            kl = kl_divergence(logits, target, weights)
            hidden = hidden_error([x[..., channels] for x in theirs], ours, weights)
            optimiser.step(kl + settings.weights.hidden * hidden, step)
            if step % 50 == 0:
                print(f"width {dim}, step {step}: KL {kl.item():.3f}", flush=True)
    dial = Dial(budget=settings.budget, threshold=0.0, cost=cost_by(student, teacher.config))
    student.config = student.transformer.config = student.config.model_copy(update={"dials": (dial,)})
    return student
