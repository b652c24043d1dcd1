"""Refine the tokenizer's decoder on fixed tokens: the texture that a squared error leaves out.

The encoder, the codebook and with them all tokens stay as they are, so this can follow the transformer's training.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.evaluate.features import FeatureClassifier
from actvar_cli.model.tokenizer import Tokenizer
from fashion.data import to_float
from fashion.tokenizer import discriminator, perceptual, teach


def refine(
    model: Tokenizer,
    tokens: Tensor,
    images: Tensor,
    *,
    seconds: float,
    nets: list[FeatureClassifier],
    seed: int,
    report: Callable[[Tokenizer], str],
    adversarial: float = 0.02,
    batch: int = 64,
) -> Tokenizer:
    """Train decoder and ``post_quant_conv`` for ``seconds`` on tokens (N, L) of images (N, 1, 32, 32) uint8.

    Loss: L1, perceptual distance in each of ``nets``, and the hinge loss of a patch discriminator (arXiv 2012.09841).
    Returns the moving average of the weights.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(model).train()
    average = copy.deepcopy(model).eval()
    for net in nets:
        net.eval().requires_grad_(False)
    critic = discriminator()
    parameters = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    opt = torch.optim.AdamW(parameters, lr=4e-4, betas=(0.5, 0.95), weight_decay=1e-4)
    critic_opt = torch.optim.AdamW(critic.parameters(), lr=4e-4, betas=(0.5, 0.95))
    started, step = time.time(), 0
    while (spent := time.time() - started) < seconds:
        progress = spent / seconds
        cosine = 0.02 + 0.49 * (1 + math.cos(math.pi * progress))
        opt.param_groups[0]["lr"] = 4e-4 * min(1.0, (step + 1) / 100) * cosine
        index = torch.randint(len(images), (batch,))
        x = to_float(images[index])
        with torch.no_grad():
            f_hat = model.quantize.accumulate(model.split(tokens[index].long()))[-1]
        with torch.autocast("cpu", torch.bfloat16):
            y = model.decoder(model.post_quant_conv(f_hat)).float()
            lp = torch.stack([perceptual(net, y, x) for net in nets]).mean()
            fooled = -critic(y).float().mean()
        loss = F.l1_loss(y, x) + lp + (adversarial * fooled if progress > 0.1 else 0.0)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        opt.step()
        critic_loss = teach(critic, critic_opt, x, y)
        step += 1
        decay = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            for a, b in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 1 - decay)
        if step % 100 == 0:
            print(
                f"decoder {step} l1 {F.l1_loss(y, x).item():.4f} lp {lp.item():.4f} "
                f"critic {critic_loss.item():.3f} {spent:.0f}s",
                flush=True,
            )
        if step % 600 == 0:
            print(f"decoder {step} averaged: {report(average)}", flush=True)
    print(f"decoder {step} final: {report(average)}", flush=True)
    return average
