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
CORRUPTED = 0.4
"""Largest share of an image's tokens that are replaced while the transformer learns to correct itself."""
NEARBY = 0.5
"""Temperature of the draws that replace tokens, as a share of the mean squared distance to the nearest code."""


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


@torch.no_grad()
def latents(model: Tokenizer, images: Tensor) -> Tensor:
    """Continuous latents (N, z, side, side) in float16 of images (N, 1, 32, 32) uint8."""
    return torch.cat([model.latent(to_float(x)).half() for x in images.split(50)])


@torch.no_grad()
def corrected(tok: Tokenizer, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Transformer input (B, L - first, z) with errors in it, and the tokens (B, L) that make up for them.

    Of every image a random share of tokens, up to `CORRUPTED`, is replaced by codes drawn from those near by; each
    scale's targets are what is then missing of ``latent`` (B, z, side, side). Source: self-correction in Infinity
    (arXiv 2412.04431, section 3.3), with the soft draws of RQ-Transformer (arXiv 2203.01941) in place of flipped bits.
    """
    quantizer, last = tok.quantize, len(tok.config.patch_nums) - 1
    rest, f_hat = latent, torch.zeros_like(latent)
    share = CORRUPTED * torch.rand(len(latent), 1)
    inputs, targets = [], []
    for scale in range(last + 1):
        distance = torch.cdist(quantizer.residual_targets(rest, scale), quantizer.embedding.weight).square()
        nearest = distance.argmin(1)
        targets.append(nearest.view(len(latent), -1))
        if scale == last:
            break
        spread = NEARBY * distance.gather(1, nearest[:, None]).mean()
        drawn = torch.multinomial((-distance / spread).softmax(1), 1).view(len(latent), -1)
        tokens = torch.where(torch.rand(drawn.shape) < share, drawn, targets[-1])
        added = quantizer.contribution(quantizer.lookup(tokens, scale), scale)
        rest, f_hat = rest - added, f_hat + added
        inputs.append(quantizer.next_input(f_hat, scale + 1))
    return torch.cat(inputs, 1), torch.cat(targets, 1)


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
    class_dropout: float = 0.2,
    images: Tensor | None = None,
    start: VAR | None = None,
    until: float = 1.0,
    batch: int = 32,
    peak: float = 2e-3,
) -> VAR:
    """Train for ``seconds`` of wall-clock on tokens (N, L); returns the moving average of the weights.

    The share of images without a class is twice the published one or more: in few steps, a network that hardly learned
    to do without makes guidance too strong. With the tokens' ``images`` (N, 1, 32, 32) uint8, inputs have errors in
    them that the model learns to make up for (`corrected`). Begins with the weights of ``start``, if given, and ends at
    the share ``until`` of the schedule. Goes on from ``checkpoint`` where it is present. ``report`` describes the
    averaged model once on the way.
    """
    torch.manual_seed(seed)
    model = VAR(CONFIG)
    initialise(model)
    if start is not None:
        model.load_state_dict(start.state_dict())
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
    latent = None if images is None else latents(tok, images)
    started = time.time() - spent
    while (spent := time.time() - started) < seconds:
        progress = until * spent / seconds
        factor = min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for opt, rates in zip(opts, peaks, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        if len(order) < batch:
            order = torch.randperm(len(tokens), generator=generator)
        index, order = order[:batch], order[batch:]
        y = torch.where(torch.rand(batch) < class_dropout, CONFIG.transformer.num_classes, labels[index])
        if latent is None:
            target = tokens[index].long()
            with torch.no_grad():
                var_input = tok.quantize.teacher_forcing_input(tok.split(target))
        else:
            var_input, target = corrected(tok, latent[index].float())
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
        if spent > 0.4 * seconds and not reported:
            reported = True
            print(f"transformer {step} averaged: {report(average)}", flush=True)
    return average
