"""Published to actvar and back, for the shapes of all published models in small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from actvar_cli.convert.convert import convert
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.errors import InputError
from actvar_cli.model.config import ModelConfig, TokenizerConfig, TransformerConfig
from actvar_cli.model.sampling import ActVAR, SamplingSettings
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress
from actvar_cli.weights.artefact import save
from actvar_cli.weights.load import load
from actvar_cli.weights.published import published_state, write_published
from tests.golden_model import CASES, FOLDER, golden_model, spec
from tests.tiny import tiny_model
from tests.weights.test_load import published, write_pair

SHAPES = [(16, False), (20, False), (24, False), (30, False), (36, True)]


def stand_in(depth: int, shared_aln: bool) -> ActVAR:
    """A model with the depth, the heads and the AdaLN of a published one, but narrow and with few tokens."""
    torch.manual_seed(depth)
    config = ModelConfig(
        name=f"small-d{depth}",
        tokenizer=TokenizerConfig(
            vocab_size=32,
            z_channels=8,
            ch=32,
            ch_mult=(1, 1),
            num_res_blocks=1,
            in_channels=1,
            patch_nums=(1, 2, 3, 4) if shared_aln else (1, 2, 3),
        ),
        transformer=TransformerConfig(
            depth=depth, embed_dim=2 * depth, num_heads=depth, num_classes=3, shared_aln=shared_aln
        ),
    )
    return ActVAR(config, VAR(config), Tokenizer(config.tokenizer)).eval()


def read(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path)  # type: ignore[no-any-return]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(("depth", "shared_aln"), SHAPES)
def test_round_trip_is_bit_identical(tmp_path: Path, depth: int, shared_aln: bool) -> None:
    model = stand_in(depth, shared_aln)
    original = published(model)
    teacher = load(write_pair(tmp_path, model))
    converted = convert(teacher, ConvertSettings(experts=4, images=8), seed=0, progress=Progress()).model
    moved = converted.transformer.stack[0].ffn.fc1.weight
    assert not torch.equal(moved, original["blocks.0.ffn.fc1.weight"])
    artefact = save(tmp_path / "m.safetensors", converted, {})
    for suffix in (".pth", ".safetensors"):
        path, *_ = write_published(tmp_path / suffix[1:] / f"back{suffix}", load(artefact))
        assert same(read(path), original)


@pytest.mark.parametrize("case", CASES)
def test_golden_samples_after_the_round_trip(tmp_path: Path, case: str) -> None:
    model = golden_model(case)
    teacher = load(write_pair(tmp_path, model))
    converted = convert(teacher, ConvertSettings(experts=4, images=8), seed=0, progress=Progress()).model
    artefact = save(tmp_path / "m.safetensors", converted, {})
    path, *_ = write_published(tmp_path / "back.pth", load(artefact))
    again, expected = load(path), load_file(FOLDER / f"{case}.safetensors")
    assert again.config.is_dense
    for name, settings in spec(case)["config"]["samples"].items():
        options = SamplingSettings(**{k: v for k, v in settings.items() if k != "seed"})
        got = again.sample(expected["label"], seed=settings["seed"], settings=options)
        assert torch.equal(got.tokens, expected[f"sample.{name}.tokens"])
        torch.testing.assert_close(got.images, expected[f"sample.{name}.image"], atol=1e-4, rtol=0)


def test_a_model_with_gates_comes_out_as_its_dense_self(tmp_path: Path) -> None:
    model = tiny_model(experts=True, token_gate=True)
    path, tokenizer = write_published(tmp_path / "back.safetensors", model)
    assert tokenizer.name == "back.tokenizer.safetensors"
    assert read(path).keys() == published(tiny_model()).keys()
    model.threshold = None
    assert torch.equal(load(path).sample([0, 1], seed=1).tokens, model.sample([0, 1], seed=1).tokens)


def test_a_model_whose_weights_move_comes_out_as_the_original(tmp_path: Path) -> None:
    model = tiny_model(experts=True, delta=True)
    model.threshold = 0.5
    moved = model.sample([0, 1], seed=1).tokens
    path, _ = write_published(tmp_path / "back.safetensors", model)
    model.threshold = None
    assert torch.equal(load(path).sample([0, 1], seed=1).tokens, model.sample([0, 1], seed=1).tokens)
    assert not torch.equal(load(path).sample([0, 1], seed=1).tokens, moved)


def test_the_shipped_student_holds_the_shipped_model() -> None:
    assert same(published_state(load("var-fashion-actvar")), published_state(load("var-fashion")))


def test_other_suffix_and_existing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the published layout is one file: call it .safetensors or .pth"):
        write_published(tmp_path / "back", tiny_model())
    (tmp_path / "back.pth").write_text("mine")
    with pytest.raises(InputError, match=r"back.pth exists"):
        write_published(tmp_path / "back.pth", tiny_model())
    assert [p.name for p in tmp_path.iterdir()] == ["back.pth"]


@pytest.mark.parametrize("name", ["back.pth", "back.safetensors"])
def test_the_embedded_model_takes_its_tokenizer_along(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").touch()
    model = load("var-fashion")
    path, tokenizer, notice = write_published(tmp_path / name, model)
    assert "Zalando" in notice.read_text()
    assert path.stat().st_mode == tokenizer.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert torch.equal(load(path).sample([3], seed=1).tokens, model.sample([3], seed=1).tokens)
