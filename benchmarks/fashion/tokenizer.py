"""Train the multi-scale VQVAE: reconstruction, a perceptual term, dead-code restarts, averaged weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.evaluate.features import FeatureClassifier
from actvar_cli.model.config import TokenizerConfig
from actvar_cli.model.tokenizer import Tokenizer
from fashion.data import to_float

CONFIG = TokenizerConfig(
    vocab_size=512,
    z_channels=16,
    ch=32,
    ch_mult=(1, 2, 2),
    num_res_blocks=1,
    in_channels=1,
    patch_nums=(1, 2, 3, 4, 6, 8),
)

ADVERSARIAL_FROM = 0.3
"""Share of the training after which the discriminator's loss counts: colours and shapes come first."""


def discriminator() -> nn.Sequential:
    """A patch discriminator (PatchGAN, arXiv 1611.07004): (B, 1, 32, 32) to (B, 1, 7, 7) logits."""
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(1, 32, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        norm(nn.Conv2d(32, 64, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        norm(nn.Conv2d(64, 128, 3, 1, 1)),
        nn.LeakyReLU(0.2),
        norm(nn.Conv2d(128, 1, 2, 1, 0)),
    )


def teach(critic: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One step of the discriminator on real ``x`` and decoded ``y``; returns its hinge loss."""
    with torch.autocast("cpu", torch.bfloat16):
        real, fake = critic(x).float(), critic(y.detach()).float()
    loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


def quantise(model: Tokenizer, f: Tensor, usage: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Straight-through quantisation of ``f`` with VAR's loss, and the vectors that were looked up.

    Returns the latent (B, z, side, side), the loss (mean over scales of codebook plus 0.25 commitment error) and the
    targets (N, z) of all scales; counts hits in ``usage`` (vocab,).
    """
    quantizer, target = model.quantize, f.detach()
    f_hat, loss, seen = torch.zeros_like(target), f.new_zeros(()), []
    for scale in range(len(model.config.patch_nums)):
        vectors = quantizer.residual_targets(target - f_hat.detach(), scale)
        index = quantizer.nearest(vectors)
        usage += index.bincount(minlength=model.config.vocab_size)
        seen.append(vectors)
        f_hat = f_hat + quantizer.contribution(quantizer.lookup(index.view(len(f), -1), scale), scale)
        loss = loss + F.mse_loss(f_hat, target) + 0.25 * F.mse_loss(f_hat.detach(), f)
    return f + (f_hat - f).detach(), loss / len(model.config.patch_nums), torch.cat(seen)


def restart_dead_codes(model: Tokenizer, usage: Tensor, vectors: Tensor, floor: float) -> int:
    """Replace codes used less than ``floor`` times by vectors of the batch; returns how many."""
    dead = (usage < floor).nonzero().squeeze(1)
    if len(dead):
        pick = vectors[torch.randint(len(vectors), (len(dead),))]
        model.quantize.embedding.weight.data[dead] = pick + 0.01 * torch.randn_like(pick)
    return len(dead)


def perceptual(net: FeatureClassifier, y: Tensor, x: Tensor) -> Tensor:
    """Mean over the stages of the squared distance of channel-normalised maps, and of the features."""
    with torch.no_grad():
        target = net.maps(x)
        target_features = net.embed(target[-1].flatten(1)).relu()
    maps = net.maps(y)
    loss = torch.stack(
        [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean()
            for a, b in zip(maps, target, strict=True)
        ]
    ).mean()
    features = net.embed(maps[-1].flatten(1)).relu()
    scale = target_features.float().square().mean()
    return loss + 0.5 * F.mse_loss(features.float(), target_features.float()) / scale


def train(
    images: Tensor,
    *,
    seconds: float,
    nets: list[FeatureClassifier],
    seed: int,
    report: Callable[[Tokenizer], str],
    peak: float = 1e-3,
    adversarial: float = 0.02,
    batch: int = 64,
) -> Tokenizer:
    """Train for ``seconds`` on (N, 1, 32, 32) uint8; returns the averaged weights.

    Loss: L1, L2, quantisation, perceptual distance in each of ``nets`` and, after `ADVERSARIAL_FROM` of the time, the
    hinge loss of a patch discriminator (arXiv 2012.09841). ``report`` describes the averaged model on the way.
    """
    torch.manual_seed(seed)
    model = Tokenizer(CONFIG)
    critic = discriminator()
    critic_opt = torch.optim.AdamW(critic.parameters(), lr=4e-4, betas=(0.5, 0.95))
    average = copy.deepcopy(model).eval()
    for net in nets:
        net.eval().requires_grad_(False)
    opt = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=1e-4)
    usage = torch.zeros(CONFIG.vocab_size)
    started, step, restarted = time.time(), 0, 0
    while (spent := time.time() - started) < seconds:
        progress = spent / seconds
        cosine = 0.02 + 0.49 * (1 + math.cos(math.pi * progress))
        opt.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 200) * cosine
        x = to_float(images[torch.randint(len(images), (batch,))])
        with torch.autocast("cpu", torch.bfloat16):
            f = model.latent(x)
        f, vq, vectors = quantise(model, f.float(), usage)
        with torch.autocast("cpu", torch.bfloat16):
            y = model.decoder(model.post_quant_conv(f)).float()
            lp = torch.stack([perceptual(net, y, x) for net in nets]).mean()
            fooled = -critic(y).float().mean() if progress > ADVERSARIAL_FROM else 0.0
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + vq + lp + adversarial * fooled
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if progress > ADVERSARIAL_FROM - 0.05:  # a little earlier than it counts
            teach(critic, critic_opt, x, y)
        if step in (0, 20, 50) or (step % 100 == 0 and progress < 0.6):
            restarted = restart_dead_codes(model, usage, vectors.detach(), floor=1.0 if step < 100 else 10.0)
            usage.zero_()
            average.quantize.embedding.load_state_dict(model.quantize.embedding.state_dict())
        step += 1
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                a.lerp_(b, 1 - decay)
        if step % 100 == 0:
            print(
                f"tokenizer {step} l1 {F.l1_loss(y, x).item():.4f} vq {vq.item():.4f} lp {lp.item():.4f} "
                f"restarted {restarted} {spent:.0f}s",
                flush=True,
            )
        if step % 1000 == 0:
            print(f"tokenizer {step} averaged: {report(average)}", flush=True)
    print(f"tokenizer {step} final: {report(average)}", flush=True)
    return average
