"""The model against the expected outputs of the published implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from actvar_cli.model.sampling import ActVAR, SamplingSettings
from tests.golden_model import CASES, FOLDER, golden_model, spec

SAMPLES = [(case, sample) for case in CASES for sample in spec(case)["config"]["samples"]]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[dict, ActVAR, dict[str, Tensor]]:
    return spec(request.param), golden_model(request.param), load_file(FOLDER / f"{request.param}.safetensors")


def test_there_are_three_cases() -> None:
    assert CASES == ["no-l2-norm", "separate-aln", "shared-aln"]


def test_tokens_and_reconstruction(case: tuple[dict, ActVAR, dict[str, Tensor]]) -> None:
    settings, model, expected = case
    config = settings["config"]
    side = 16 * config["patch_nums"][-1]
    rng = np.random.default_rng(config["image_seed"])
    images = torch.from_numpy(rng.uniform(-1, 1, (len(config["labels"]), 3, side, side)).astype(np.float32))
    tokens = model.tokenizer.encode(images)
    assert torch.equal(torch.cat(tokens, 1), expected["image_tokens"])
    torch.testing.assert_close(model.tokenizer.decode(tokens), expected["reconstruction"], atol=1e-4, rtol=0)


def test_teacher_forced_logits(case: tuple[dict, ActVAR, dict[str, Tensor]]) -> None:
    _, model, expected = case
    var_input = model.tokenizer.quantize.teacher_forcing_input(model.tokenizer.split(expected["image_tokens"]))
    torch.testing.assert_close(var_input, expected["var_input"], atol=1e-4, rtol=0)
    with torch.no_grad():
        logits = model.transformer(expected["label"], var_input)
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_sampling(name: str, sample: str) -> None:
    expected, settings = load_file(FOLDER / f"{name}.safetensors"), spec(name)["config"]["samples"][sample]
    options = SamplingSettings(**{k: settings[k] for k in ("cfg", "top_k", "top_p", "more_smooth")})
    got = golden_model(name).sample(expected["label"], seed=settings["seed"], settings=options)
    assert torch.equal(got.tokens, expected[f"sample.{sample}.tokens"])
    torch.testing.assert_close(got.images, expected[f"sample.{sample}.image"], atol=1e-4, rtol=0)
