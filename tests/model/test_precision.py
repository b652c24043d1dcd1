from __future__ import annotations

import copy
import gc
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import actvar_cli
from actvar_cli.errors import InputError
from actvar_cli.model import products
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.precision import set_dtype
from actvar_cli.model.sampling import ActVAR, paired_rows
from actvar_cli.weights.artefact import save
from actvar_cli.weights.published import write_published
from tests.tiny import tiny_model

KINDS: list[dict[str, Any]] = [
    {},
    {"shared_aln": True},
    {"experts": True},
    {"experts": True, "token_gate": True},
]


@pytest.fixture(params=["slow", "fast"])
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether products of few bits are slower on the CPU than those of float32, or faster."""
    few = (torch.bfloat16, torch.float16) if request.param == "fast" else ()
    monkeypatch.setattr(products, "FAST", (torch.float32, *few))
    return str(request.param)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "+".join(kind))
def test_every_kind_of_model_samples_in_few_bits(kind: dict[str, Any], dtype: str, cpu: str) -> None:
    exact, model = tiny_model(**kind), set_dtype(tiny_model(**kind), dtype)
    exact.threshold = model.threshold = 0.0 if "experts" in kind else None
    counters = WorkCounter(exact.config), WorkCounter(model.config)
    expected = exact.sample([0, 1], seed=1, counter=counters[0])
    samples = model.sample([0, 1], seed=1, counter=counters[1])
    assert samples.images.dtype == torch.float32
    assert (samples.tokens == expected.tokens).float().mean() > 0.8
    assert counters[1].cost == pytest.approx(counters[0].cost, rel=0.05)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "+".join(kind))
def test_where_a_cpu_is_slow_in_few_bits_weights_are_rounded_and_nothing_else(
    kind: dict[str, Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "FAST", (torch.float32,))
    model, rounded = set_dtype(tiny_model(**kind), dtype), tiny_model(**kind)
    rounded.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    model.threshold = rounded.threshold = 0.0 if "experts" in kind else None
    samples, expected = (of.sample([0, 1], seed=1) for of in (model, rounded))
    said = []
    for of in (model, rounded):
        context = of.transformer.teacher_forced(0.0)
        with torch.no_grad():
            logits = of.transformer(
                *paired_rows(of, torch.tensor([0, 1]), torch.zeros(2, 14, dtype=torch.long)), context
            )
        said.append((logits, [(made.scores, made.gate) for made in context.decisions]))
    torch.testing.assert_close(*said, atol=1e-5, rtol=1e-5)
    assert (str(model.dtype), model.transformer.cache_dtype) == (f"torch.{dtype}", torch.float32)
    assert torch.equal(samples.tokens, expected.tokens)
    torch.testing.assert_close(samples.images, expected.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", ["dense", "loop", "split", "grouped"])
def test_each_way_to_run_experts_widens_their_weights(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "FAST", (torch.float32,))
    monkeypatch.setenv("ACTVAR_DISPATCH", way)
    ffn = set_dtype(tiny_model(experts=True), "bfloat16").transformer.stack[0].ffn
    whole = copy.deepcopy(ffn).float()
    x, on = torch.randn(40, ffn.fc1.in_features), torch.rand(40, ffn.num_experts) > 0.4
    with torch.inference_mode():
        torch.testing.assert_close(ffn(x, on), whole(x, on))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "+".join(kind))
def test_a_whole_sequence_too(kind: dict[str, Any], cpu: str) -> None:
    exact, model = tiny_model(**kind), set_dtype(tiny_model(**kind), "bfloat16")
    labels, tokens = torch.tensor([0, 1]), torch.zeros(2, 14, dtype=torch.long)
    logits = []
    for of in (exact, model):
        rows, var_input = paired_rows(of, labels, tokens)
        with torch.no_grad():
            logits.append(of.transformer(rows, var_input, of.transformer.teacher_forced(-math.inf)))
    assert logits[1].dtype == torch.float32
    assert not torch.equal(*logits)
    torch.testing.assert_close(logits[1], logits[0], atol=0.02, rtol=0.02)


def test_decisions_logits_and_codes_keep_all_their_bits() -> None:
    model = set_dtype(tiny_model(experts=True, token_gate=True, shared_aln=True), "bfloat16")
    types = {name: tensor.dtype for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    low = {name for name, dtype in types.items() if dtype == torch.bfloat16}
    assert model.dtype == torch.bfloat16
    for few in ("blocks.0.attn.mat_qkv.weight", "blocks.1.ffn.fc2.bias", "blocks.1.reconstruction.up.weight"):
        assert f"transformer.{few}" in low
    assert "tokenizer.decoder.conv_out.weight" in low
    whole = (
        "router.fc2",
        "token_gate.fc2",
        "expert_mean",
        "scale_mul",
        "head",
        "embed",
        "quantize",
        "pos_",
        "post_quant",
    )
    assert not [name for name in low if any(part in name for part in whole)]


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped is told by Linux")
@pytest.mark.parametrize("name", ["dense.safetensors", "var.pth"])
def test_the_file_that_weights_of_fewer_bits_were_made_from_is_let_go(tmp_path: Path, name: str) -> None:
    def mapped() -> bool:
        gc.collect()
        return name in Path("/proc/self/maps").read_text()

    artefact = tmp_path / "dense.safetensors"
    save(artefact, tiny_model(), {})
    write_published(tmp_path / "var.pth", actvar_cli.load(artefact))
    model = actvar_cli.load(tmp_path / name)
    assert mapped()
    set_dtype(model, "bfloat16")
    assert not mapped()


def test_float32_is_what_a_model_is_in_anyway() -> None:
    model = tiny_model()
    expected = model.sample([0, 1], seed=0)
    assert torch.equal(set_dtype(model, "float32").sample([0, 1], seed=0).images, expected.images)


def test_the_shipped_model_says_the_same_in_bfloat16(cpu: str) -> None:
    def log_probabilities(model: ActVAR) -> torch.Tensor:
        rows, var_input = paired_rows(model, labels, tokens)
        return model.transformer(rows, var_input).log_softmax(-1)  # type: ignore[no-any-return]

    exact, model = actvar_cli.load("var-fashion"), actvar_cli.load("var-fashion", dtype="bfloat16")
    labels = torch.arange(10)
    samples = exact.sample(labels, seed=0)
    tokens = samples.tokens
    with torch.no_grad():
        one, other = log_probabilities(exact), log_probabilities(model)
        kl = (one.exp() * (one - other)).sum(-1).mean()
        decoded = model.tokenizer.decode(model.tokenizer.split(tokens)).add(1).div(2)
    assert 0 < kl < 2e-3
    assert (decoded - samples.images).abs().max() < 6 / 255


def test_an_unknown_type() -> None:
    with pytest.raises(InputError, match=r"unknown dtype 'bfloat' \(did you mean 'bfloat16'\?\): one of float32, b"):
        set_dtype(tiny_model(), "bfloat")


@pytest.mark.parametrize("newer", [False, True])
def test_tf32_is_set_back_whichever_way_the_program_sets_it(newer: bool) -> None:
    from actvar_cli.model.kernels.head import tf32

    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        if newer:
            matmul.fp32_precision = "tf32"
        wanted = matmul.fp32_precision
        with tf32():
            assert matmul.fp32_precision == "tf32"
        assert (matmul.fp32_precision == "tf32") == (wanted == "tf32")
    finally:
        matmul.fp32_precision = before
