"""What sampling multiplies, counted three times over.

By the model's own counter, by fvcore on the operators of a trace, and by torch's flop_counter on those that are
executed. All watch samplings under the same seed, so that they see the same tokens and the same decisions. Everything
is in MACs of matrix products and convolutions; norms, activations, resizing and additions are left out by all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from actvar_cli.errors import ActvarError
from actvar_cli.model.counters import WorkCounter, exactly
from actvar_cli.model.products import ONEDNN
from actvar_cli.model.sampling import ActVAR, SamplingSettings, sample

TOLERANCE = 0.005
"""Largest relative difference between two counts, as a whole and in each part."""

NOT_PRODUCTS = (
    "batch_norm",
    "group_norm",
    "layer_norm",
    "instance_norm",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "adaptive_avg_pool2d",
    "grid_sampler",
)
"""Operators that fvcore counts by default though they are no products."""

_LOOKS_LIKE_A_PRODUCT = re.compile(r"mm|mv|matmul|conv|linear|einsum|attention|dot|outer|cdist")
_LOOKS_BUT_IS_NOT = {"aten::linalg_vector_norm"}

_PART_OF = {
    "word_embed": "embed",
    "class_emb": "embed",
    "guidance": "embed",
    "factors": "embed",
    "lvl_embed": "embed",
    "pos_start": "embed",
    "pos_1LC": "embed",
    "shared_ada_lin": "adaln",
    "ada_lin": "adaln",
    "ada_gss": "adaln",
    "attn": "attention",
    "guided_context": "attention",
    "ffn": "ffn",
    "router": "router",
    "token_gate": "token_gate",
    "reconstruction": "reconstruction",
    "kv_reconstruction": "reconstruction",
    "head": "head",
    "head_nm": "head",
}


def part_of(name: str) -> str:
    """The part (one of `PARTS`) that a module or parameter of the transformer belongs to, by its dotted name.

    A `Delta` of a weight belongs where that does.
    """
    words = name.removeprefix("delta.").split(".")
    return _PART_OF[words[2] if words[0] == "blocks" else words[0]]


def is_part(name: str) -> bool:
    """Whether a module of the transformer is one part as a whole: ``blocks.3.ffn`` or ``head``, not ``blocks.3``."""
    words = name.split(".")
    return len(words) == (3 if words[0] == "blocks" else 1) and words[-1] in _PART_OF


def attention_product_macs(inputs: list[Any], outputs: list[Any]) -> float:
    """Handle of fvcore for ``scaled_dot_product_attention``: queries by keys, and weights by values."""
    query, key, value = (x.type().sizes() for x in inputs[:3])
    return float(prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    return sdpa_flop_count(query, key, value)


def _linear_flops(x: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    return 2 * prod(x) * weight[0]


FORMULAS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    **({torch.ops.mkldnn._linear_pointwise: _linear_flops} if ONEDNN else {}),
}
"""FLOPs by shapes of what runs on a CPU: torch's flop_counter has formulas for the fused attention of GPUs only."""


def no_macs(inputs: list[Any], outputs: list[Any]) -> float:
    """Handle of fvcore for an operator that is no product."""
    return 0.0


class _Kept(TorchFunctionMode):
    """Makes one number of the result of every product, to be returned from what is traced.

    A trace drops whatever its outputs do not depend on, but a router or a gate that only steered Python's control flow,
    and keys that nobody asked for afterwards, were computed all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and _LOOKS_LIKE_A_PRODUCT.search(getattr(func, "__name__", "")):
            self.numbers.append(result.sum())
        return result


class _Watched(nn.Module):
    """A sampling that fvcore can trace, with the model's own counter in it."""

    def __init__(self, model: ActVAR, seed: int) -> None:
        super().__init__()
        self.model, self.seed = model, seed
        self.counter = WorkCounter(model.config)
        self.tokens: Tensor | None = None

    def forward(self, labels: Tensor) -> tuple[Tensor, ...]:
        generator = torch.Generator(self.model.device).manual_seed(self.seed)
        self.counter = WorkCounter(self.model.config)
        with _Kept() as kept:
            samples = sample(self.model, labels, SamplingSettings(), generator, self.counter)
        self.tokens = samples.tokens
        return samples.images, *kept.numbers


class Work:
    """The counts of one sampling of ``images`` images; ``tokens`` (B, L) are those sampled.

    ``by_module`` is fvcore's count by module, ``executed`` that of torch's flop_counter.
    """

    def __init__(
        self, counter: WorkCounter, by_module: dict[str, float], executed: dict[str, float], tokens: Tensor
    ) -> None:
        self.counter, self.tokens = counter, tokens
        self.images = counter.images
        self.torch = _under(executed, "model.transformer.")
        self.transformer = _under(by_module, "model.transformer.")
        self.transformer_macs = by_module["model.transformer"]
        self.tokenizer = _under(by_module, "model.tokenizer.")
        self.tokenizer_macs = by_module["model.tokenizer"]
        self.traced_macs = by_module[""]

    @property
    def by_part(self) -> dict[str, float]:
        """MACs of each part of the transformer, all images together, as fvcore counts them."""
        return _by_part(self.transformer)

    @property
    def transformer_macs_torch(self) -> float:
        """MACs of the transformer, all images together, as torch counts them."""
        return sum(_by_part(self.torch).values())

    @property
    def difference(self) -> float:
        """How far fvcore's count of the transformer lies above the model's own, relative to the latter."""
        return self.transformer_macs / self.counter.total - 1

    @property
    def difference_torch(self) -> float:
        """The same of torch's count."""
        return self.transformer_macs_torch / self.counter.total - 1

    def check(self) -> None:
        """Raise ActvarError where two counts differ by more than `TOLERANCE`, in total or in a part."""
        inside = self.transformer_macs + self.tokenizer_macs
        if abs(inside - self.traced_macs) > TOLERANCE * self.traced_macs:
            raise ActvarError(
                f"the count is not whole: {self.traced_macs - inside:.0f} MACs are in neither transformer nor tokenizer"
            )
        for who, parts in {"fvcore": self.by_part, "torch": _by_part(self.torch)}.items():
            for part, per_image in self.counter.by_part().items():
                _compare(part, who, parts[part], per_image * self.images)
        _compare("the transformer", "fvcore", self.transformer_macs, self.counter.total)


def _compare(what: str, who: str, theirs: float, own: float) -> None:
    if abs(theirs - own) > TOLERANCE * max(theirs, own):
        raise ActvarError(
            f"two counts of {what} disagree: {who}'s {theirs:.0f} MACs, the model's own counter's {own:.0f}"
        )


def _by_part(modules: dict[str, float]) -> dict[str, float]:
    parts: dict[str, float] = defaultdict(float)
    for name, macs in modules.items():
        if is_part(name):
            parts[part_of(name)] += macs
    return parts


def _under(by_module: dict[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): macs for name, macs in by_module.items() if name.startswith(prefix)}


@torch.no_grad()
def count_work(model: ActVAR, labels: Tensor, seed: int) -> Work:
    """Sample ``labels`` (B,) as `ActVAR.sample` with ``seed`` would, twice the same, and count the work.

    Raises ActvarError where an operator that fvcore cannot count looks like a product. Whether the counts agree is for
    `Work.check` to say.
    """
    watched = _Watched(model, seed).eval()
    analysis = FlopCountAnalysis(watched, (labels.to(model.device),))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention_product_macs)
    for name in NOT_PRODUCTS:
        analysis.set_op_handle(f"aten::{name}", no_macs)
    # fvcore samples once, when it is first asked. Not at the same time: under a trace, torch misses convolutions.
    with exactly():
        by_module = {name: float(macs) for name, macs in analysis.by_module().items()}
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as executed:
            watched(labels.to(model.device))
    for name in analysis.unsupported_ops():
        if _LOOKS_LIKE_A_PRODUCT.search(name) and name not in _LOOKS_BUT_IS_NOT:
            raise ActvarError(f"fvcore cannot count {name}, which looks like a product: the FLOPs would be wrong")
    assert watched.tokens is not None
    return Work(watched.counter, by_module, _executed_macs(executed), watched.tokens)


def _executed_macs(executed: FlopCounterMode) -> dict[str, float]:
    """What torch counted, in MACs by module of `_Watched`, which it calls by its class."""
    return {
        name.partition(".")[2]: sum(operators.values()) / 2 for name, operators in executed.get_flop_counts().items()
    }
