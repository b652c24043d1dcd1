"""How much the model's predictions depend on each neuron: the Taylor score of pruning.

Source: arXiv 1906.10771, the squared first-order term, here of a neuron's deviation from its mean, since that mean is
what stands in for it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.convert.recording import TeacherSamples, sampling_batch
from actvar_cli.model.guidance import guidance_by_position, guide
from actvar_cli.model.sampling import ActVAR, paired_rows
from actvar_cli.progress import Progress

IMAGES = 64
"""Images whose likelihood is differentiated, at most."""


def taylor_scores(model: ActVAR, samples: TeacherSamples, progress: Progress) -> list[Tensor]:
    """For every block, how much each neuron of its FFN matters, (hidden,): sum of ``((a - mean a) dL/da)^2``.

    L is the negative log-likelihood of the model's own samples, after guidance; the sum is over all tokens. Unlike the
    rest of a conversion this takes the memory of a backward pass over an image.
    """
    samples, batch = samples.some(IMAGES), max(1, sampling_batch(model) // 4)
    guidance = guidance_by_position(model.config, model.config.usual_cfg, model.device)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(inputs[0].requires_grad_())
        seen[-1].retain_grad()
        return (seen[-1],)

    scores: list[Any] = [0.0 for _ in model.transformer.stack]
    model.requires_grad_(False)
    with ExitStack() as stack, torch.enable_grad(), progress.task("weighing neurons", len(samples)) as task:
        for block in model.transformer.stack:
            stack.callback(block.ffn.fc2.register_forward_pre_hook(keep).remove)
        for start in range(0, len(samples), batch):
            part = samples[torch.arange(start, min(start + batch, len(samples)))]
            seen.clear()
            logits = guide(model.transformer(*paired_rows(model, part.labels, part.tokens)), guidance)
            F.cross_entropy(logits.flatten(0, 1), part.tokens.flatten().long(), reduction="sum").backward()
            for number, hidden in enumerate(seen):
                assert hidden.grad is not None
                deviation = hidden.detach() - hidden.detach().mean((0, 1))
                scores[number] = scores[number] + (deviation * hidden.grad).square().sum((0, 1))
            task.advance(len(part))
    return scores
