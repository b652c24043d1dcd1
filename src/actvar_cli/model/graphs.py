"""The transformer's pass over the scales; on a GPU recorded as CUDA graphs, and played again.

What is recorded starts as a whole, so that the GPU need not wait for Python between its many small steps. It is
recorded when the same pass is wanted for the second time, and reads and writes the same memory each time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor

from actvar_cli.model import dispatch
from actvar_cli.model.delta import using
from actvar_cli.model.experts import ExpertFFN

if TYPE_CHECKING:
    from actvar_cli.model.cache import KVCache
    from actvar_cli.model.counters import WorkCounter
    from actvar_cli.model.delta import Weights
    from actvar_cli.model.var import VAR


MOST = 3
"""Recordings of a model that are kept: enough to compare two thresholds in turn, that begin as the original does."""

STRENGTHS = 4
"""Of a scale in each recording, by the strength of guidance."""


class Pass:
    """One sampling, scale after scale, for what `VAR.conditions` takes; other arguments as in `VAR.scale_logits`.

    It begins where the pass ``after``, of as many rows or more, has come to, and that one ends.
    """

    def __init__(
        self,
        var: VAR,
        cond: Tensor,
        threshold: float | None,
        counter: WorkCounter | None = None,
        after: Pass | None = None,
    ) -> None:
        self.var, self.cond, self.threshold, self.counter = var, cond, threshold, counter
        # Kept, as a recording whose memory is gone on with must not be played meanwhile.
        self.after = after
        self.weights = var.weights(threshold)
        self.cache: KVCache = after.cache.first(len(cond)) if after else var.new_cache(len(cond))
        with using(self.weights):
            self.ada = var.conditions(cond)

    def logits(self, x: Tensor, scale: int, strength: float | None = None) -> Tensor:
        """Logits (R, l, vocab) of ``x`` (R, l, C), the input of ``scale``; another call may write over them."""
        with using(self.weights):
            return self.var.scale_logits(
                x,
                self.cond,
                self.ada,
                self.cache,
                scale,
                threshold=self.threshold,
                counter=self.counter,
                strength=strength,
            )


@dataclass
class Recording:
    """Graphs of all scales, by scale and strength of guidance, with the memory that they read and write.

    ``x`` and ``logits`` are room for those of one scale; ``weights`` are what `VAR.weights` gave when it was recorded.
    """

    cond: Tensor
    cache: KVCache
    x: Tensor
    logits: Tensor
    pool: Any
    ada: list[Tensor] = field(default_factory=list)
    conditions: torch.cuda.CUDAGraph | None = None
    scales: dict[tuple[int, float | None], torch.cuda.CUDAGraph] = field(default_factory=dict)
    player: ReferenceType[RecordedPass] | None = None
    weights: Weights | None = None

    def is_playing(self) -> bool:
        """Whether a pass of another thread is under way."""
        return self.player is not None and self.player() is not None


class RecordedPass(Pass):
    """The same, from a recording, which it adds to where that has nothing yet."""

    def __init__(
        self, var: VAR, cond: Tensor, threshold: float | None, recording: Recording, after: Pass | None = None
    ) -> None:
        self.var, self.threshold, self.recording, self.weights = var, threshold, recording, recording.weights
        recording.player = ref(self)
        recording.cond.copy_(cond)
        self.cache = recording.cache
        self.cache.clear()
        if after:
            # What is recorded reads memory of its own.
            self.cache.adopt(after.cache.first(len(cond)))
        if recording.conditions is None:
            graph = torch.cuda.CUDAGraph()
            with using(self.weights), torch.cuda.graph(graph, pool=recording.pool):
                recording.ada = var.conditions(recording.cond)
            # Only now: one that failed is nothing to be played.
            recording.conditions = graph
        recording.conditions.replay()

    def logits(self, x: Tensor, scale: int, strength: float | None = None) -> Tensor:
        """See `Pass.logits`."""
        made = self.recording
        here = made.x[: x.numel()].view(x.shape).copy_(x)
        shape = (*x.shape[:-1], self.var.config.tokenizer.vocab_size)
        out = made.logits[: shape[0] * shape[1] * shape[2]].view(shape)
        graph = made.scales.get((scale, strength))
        if graph is None:
            others = [key for key in made.scales if key[0] == scale]
            if len(others) >= STRENGTHS:
                del made.scales[others[0]]
            graph = torch.cuda.CUDAGraph()
            with using(self.weights), torch.cuda.graph(graph, pool=made.pool):
                self.var.scale_logits(
                    here, made.cond, made.ada, made.cache, scale, threshold=self.threshold, strength=strength, out=out
                )
            made.scales[scale, strength] = graph
        else:
            made.cache.begin_scale(x.shape[1])
        graph.replay()
        return out


class _Watched:
    """All parts of a model, and where its weights are: what a recording of it relies on."""

    def __init__(self, var: VAR) -> None:
        # But not the model itself, which would then never be given up.
        self._modules = list(var.modules())[1:]
        registries = [r for m in var.modules() for r in (m._parameters, m._buffers, m._modules)]
        self._parts = [(registry, name, part) for registry in registries for name, part in registry.items()]
        self._tensors = [part for _, _, part in self._parts if isinstance(part, Tensor)]
        self._places = [t.data_ptr() for t in self._tensors]

    def is_same(self) -> bool:
        """Whether no part was replaced or moved."""
        return all(registry.get(name) is part for registry, name, part in self._parts) and self._places == [
            t.data_ptr() for t in self._tensors
        ]

    def hooked(self) -> bool:
        """Whether somebody watches a part, and wants to be called."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self._modules)


@dataclass
class _Passes:
    """What the last passes of a model were like, and the recordings that there are, the one played last at the end.

    One sampling can take two passes: the first scales as the original computes them, then the others.
    """

    watched: _Watched
    last: deque[Any] = field(default_factory=partial(deque, maxlen=2))
    recordings: dict[Any, Recording] = field(default_factory=dict)


_passes: WeakKeyDictionary[VAR, _Passes] = WeakKeyDictionary()


def begin(
    var: VAR, cond: Tensor, threshold: float | None, counter: WorkCounter | None = None, after: Pass | None = None
) -> Pass:
    """A pass as `Pass` is; from a recording if one like it, but for these numbers, was recorded or came last."""
    recording = None if counter or not _recordable(var, cond, threshold) else _recording(var, cond, threshold)
    if recording:
        return RecordedPass(var, cond, threshold, recording, after)
    return Pass(var, cond, threshold, counter, after)


def _recording(var: VAR, cond: Tensor, threshold: float | None) -> Recording | None:
    """What a pass is to be played from, or recorded into."""
    passes = _passes.get(var)
    if passes is None or not passes.watched.is_same():
        passes = _passes[var] = _Passes(_Watched(var))
    # Where weights move with the threshold, what is played reads those that were made for it.
    weights = var.weights(threshold)
    moved = None if threshold is None else weights
    key = cond.shape, threshold, moved, dispatch.forced(), torch.is_inference_mode_enabled()
    again = key in passes.last
    passes.last.append(key)
    if passes.watched.hooked():
        return None
    recording = passes.recordings.pop(key, None)
    if recording is None and again:
        while len(passes.recordings) >= MOST or (passes.recordings and not _has_room(var, cond)):
            del passes.recordings[next(iter(passes.recordings))]
        recording = _room(var, cond) if _has_room(var, cond) else None
    if recording is None:
        return None
    recording.weights = weights
    passes.recordings[key] = recording
    return None if recording.is_playing() else recording


def _recordable(var: VAR, cond: Tensor, threshold: float | None) -> bool:
    """Whether a pass is the same steps each time, and needs no host in between."""
    if not cond.is_cuda or not var.by_kernels():
        return False
    if threshold is None or not var.config.experts:
        return True
    # Numbers are drawn, or what an earlier scale left is read by way of Python.
    if var.config.experts.router == "random" or any(block.from_previous for block in var.stack):
        return False
    return all(dispatch.way_for(b.ffn, 1) in dispatch.WITHOUT_HOST for b in var.stack if isinstance(b.ffn, ExpertFFN))


def _has_room(var: VAR, cond: Tensor) -> bool:
    """Whether a GPU's memory has room for twice what keys, values and logits of a recording take."""
    tok, arch = var.config.tokenizer, var.config.transformer
    cached = 2 * arch.depth * tok.num_tokens * arch.embed_dim * var.cache_dtype.itemsize
    logits = max(pn * pn for pn in tok.patch_nums) * tok.vocab_size * cond.element_size()
    free = torch.cuda.mem_get_info(cond.device)[0]
    unused = torch.cuda.memory_reserved(cond.device) - torch.cuda.memory_allocated(cond.device)
    return 2 * len(cond) * (cached + logits) < free + unused


def _room(var: VAR, cond: Tensor) -> Recording:
    tok, dim = var.config.tokenizer, var.config.transformer.embed_dim
    most = len(cond) * max(pn * pn for pn in tok.patch_nums)
    # Ordinary tensors, also where sampling makes none: they are written again and again.
    with torch.inference_mode(False):
        x, logits = cond.new_empty(most * dim), cond.new_empty(most * tok.vocab_size)
        return Recording(torch.empty_like(cond), var.new_cache(len(cond)), x, logits, torch.cuda.graph_pool_handle())
