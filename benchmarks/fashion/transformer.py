"""Train the class-conditional transformer of `var-fashion` on the tokenizer's tokens."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from actvar_cli.model.config import ModelConfig, TokenizerReference, TransformerConfig
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from fashion import tokenizer
from fashion.data import to_float

CONFIG = ModelConfig(
    name="var-fashion",
    tokenizer=tokenizer.CONFIG,
    transformer=TransformerConfig(depth=10, embed_dim=192, num_heads=3, num_classes=10),
    tokenizer_reference=TokenizerReference(name="var-fashion", sha256=""),
)
CLASS_DROPOUT = 0.2
"""Twice the published share: in few steps, a network that hardly learned without a class makes guidance too strong."""


def initialise(model: VAR) -> None:
    """Small weights, residual branches scaled by depth, gates of the branches near zero, as VAR trains."""
    depth = len(model.blocks)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    model.head.weight.data.mul_(0.02)
    model.head_nm.ada_lin[1].weight.data.mul_(0.5)
    dim = model.config.transformer.embed_dim
    for block in model.blocks:
        block.attn.proj.weight.data.div_(math.sqrt(2 * depth))
        block.ffn.fc2.weight.data.div_(math.sqrt(2 * depth))
        block.ada_lin[1].weight.data[2 * dim :].mul_(0.5)
        block.ada_lin[1].weight.data[: 2 * dim].mul_(1e-5)
        # Opened a little from the start: with few steps to spend, branches closed at zero waste the first of them.
        block.ada_lin[1].bias.data[: 2 * dim].fill_(0.3)


@torch.no_grad()
def tokenise(model: Tokenizer, images: Tensor) -> Tensor:
    """Tokens (N, L) of images (N, 1, 32, 32) uint8."""
    return torch.cat([torch.cat(model.encode(to_float(x)), 1) for x in images.split(50)]).to(torch.int16)


def optimizers(model: VAR, peak: float) -> list[torch.optim.Optimizer]:
    """Muon (torch.optim.Muon, scaled to AdamW's step size) for the blocks' products, AdamW for all else."""
    blocks, matrices, rest = [], [], []
    for name, p in model.named_parameters():
        product = name.startswith("blocks.") and "ada_lin" not in name
        (rest if p.ndim != 2 else blocks if product else matrices).append(p)
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(blocks, lr=peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=0.6 * peak, betas=(0.9, 0.95)),
    ]


def train(
    tok: Tokenizer,
    tokens: Tensor,
    labels: Tensor,
    *,
    seconds: float,
    seed: int,
    checkpoint: Path,
    report: Callable[[VAR], str],
    batch: int = 32,
    peak: float = 2e-3,
) -> VAR:
    """Train for ``seconds`` of wall-clock on tokens (N, L); returns the moving average of the weights.

    Goes on from ``checkpoint`` where it is present. ``report`` describes the averaged model once on the way.
    """
    torch.manual_seed(seed)
    model = VAR(CONFIG)
    initialise(model)
    average = copy.deepcopy(model).eval()
    opts = optimizers(model, peak)
    peaks = [[float(group["lr"]) for group in opt.param_groups] for opt in opts]
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    spent, step, reported, running = 0.0, 0, False, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for opt, kept in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(kept)
        spent, step, reported = state["spent"], state["step"], state["spent"] > 0.4 * seconds
    # Fuses the elementwise operations: about 1.5 times faster, where there is a C++ compiler.
    forward = torch.compile(model) if shutil.which("c++") else model
    started = time.time() - spent
    while (spent := time.time() - started) < seconds:
        progress = spent / seconds
        factor = min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for opt, rates in zip(opts, peaks, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        if len(order) < batch:
            order = torch.randperm(len(tokens), generator=generator)
        index, order = order[:batch], order[batch:]
        target = tokens[index].long()
        y = torch.where(torch.rand(batch) < CLASS_DROPOUT, CONFIG.transformer.num_classes, labels[index])
        with torch.no_grad():
            var_input = tok.quantize.teacher_forcing_input(tok.split(target))
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(y, var_input)
        loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
        step += 1
        decay = min(0.9995, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running = loss.item() if running == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"transformer {step} loss {running:.4f} lr {factor * peak:.2e} {spent:.0f}s", flush=True)
        if step % 250 == 0:
            save_file(average.state_dict(), checkpoint.with_suffix(".safetensors"))
            state = {"model": model.state_dict(), "average": average.state_dict(), "spent": spent, "step": step}
            torch.save({**state, "optimizers": [opt.state_dict() for opt in opts]}, checkpoint)
        if progress > 0.4 and not reported:
            reported = True
            print(f"transformer {step} averaged: {report(average)}", flush=True)
    return average
