"""Whatever a user may name: known models, files of every kind, folders; and what is wrong with it, in one line."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import actvar_cli
from actvar_cli.errors import ActvarError, InputError, NotHereError
from actvar_cli.model.config import Dial, ModelConfig
from actvar_cli.model.sampling import ActVAR, SamplingSettings
from actvar_cli.model.var import VAR
from actvar_cli.weights import load as load_module
from actvar_cli.weights.artefact import save
from actvar_cli.weights.load import Source, build, config_of, load, locate_here
from actvar_cli.weights.zoo import ASSETS, published_config
from tests.golden_model import CASES, FOLDER, golden_model, spec
from tests.tiny import tiny_config, tiny_model


def published(model: ActVAR) -> dict[str, Tensor]:
    """The transformer's state dict as the published code writes it, derived buffers included."""
    tensors = dict(model.transformer.state_dict())
    tensors["lvl_1L"] = model.transformer.lvl_1L
    tensors["attn_bias_for_masking"] = model.transformer.attn_bias_for_masking
    for i in range(model.config.transformer.depth):
        tensors[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(model.config.transformer.embed_dim)
    return tensors


def training_checkpoint(model: ActVAR, prefix: str) -> dict[str, Any]:
    wrapped = {prefix + key: value for key, value in published(model).items()}
    return {
        "epoch": 3,
        "trainer": {
            "config": {"depth": 2},
            "var_opt": {"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
            "vae_local": model.tokenizer.state_dict(),
            "var_wo_ddp": wrapped,
        },
    }


def write_pair(folder: Path, model: ActVAR, name: str = "var.pth") -> Path:
    torch.save(published(model), folder / name)
    save_file(model.tokenizer.state_dict(), folder / "tokenizer.safetensors")
    return folder / name


def one_line(name: str | Path, **options: Any) -> str:
    """The message of the InputError that loading raises."""
    with pytest.raises(InputError) as caught:
        load(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", CASES)
def test_published_checkpoint_gives_the_golden_samples(tmp_path: Path, case: str) -> None:
    path = write_pair(tmp_path, golden_model(case))
    expected, samples = load_file(FOLDER / f"{case}.safetensors"), spec(case)["config"]["samples"]
    model = load(path)
    assert model.config.transformer == golden_model(case).config.transformer
    assert model.config.tokenizer == golden_model(case).config.tokenizer
    for name, settings in samples.items():
        options = SamplingSettings(**{k: v for k, v in settings.items() if k != "seed"})
        got = model.sample(expected["label"], seed=settings["seed"], settings=options)
        assert torch.equal(got.tokens, expected[f"sample.{name}.tokens"])
        torch.testing.assert_close(got.images, expected[f"sample.{name}.image"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoint(tmp_path: Path, prefix: str, zipped: bool) -> None:
    model = tiny_model()
    path = tmp_path / "ar-ckpt-last.pth"
    torch.save(training_checkpoint(model, prefix), path, _use_new_zipfile_serialization=zipped)
    again = load(path)
    assert again.config.name == "ar-ckpt-last"
    assert torch.equal(model.sample([0, 1], seed=1).images, again.sample([0, 1], seed=1).images)


@pytest.mark.parametrize("name", ["var_ema", "ema", "state_dict_ema"])
def test_the_average_of_a_training_checkpoint_is_preferred(tmp_path: Path, name: str) -> None:
    model, average = tiny_model(), tiny_model(seed=1)
    checkpoint = training_checkpoint(model, "module.")
    checkpoint["trainer"][name] = {f"module.{key}": value for key, value in published(average).items()}
    torch.save(checkpoint, tmp_path / "ar-ckpt-last.pth")
    assert torch.equal(load(tmp_path / "ar-ckpt-last.pth").transformer.head.weight, average.transformer.head.weight)


def test_plain_safetensors_and_folder(tmp_path: Path) -> None:
    model = tiny_model(shared_aln=True)
    write_pair(tmp_path, model, "var.pth")
    save_file(published(model), tmp_path / "var.safetensors")
    (tmp_path / "var.pth").unlink()
    for name in (tmp_path / "var.safetensors", tmp_path):
        again = load(name)
        assert torch.equal(model.sample([2], seed=1).images, again.sample([2], seed=1).images)


def test_blocks_compiled_one_by_one(tmp_path: Path) -> None:
    model = tiny_model()
    tensors = {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in published(model).items()}
    write_pair(tmp_path, model)
    torch.save(tensors, tmp_path / "var.pth")
    assert torch.equal(load(tmp_path / "var.pth").transformer.head.weight, model.transformer.head.weight)


def test_loaded_plain_model_can_be_saved(tmp_path: Path) -> None:
    model = load(write_pair(tmp_path, tiny_model()))
    path = save(tmp_path / "out" / "m.safetensors", model, {})
    assert torch.equal(model.sample([0], seed=1).images, load(path).sample([0], seed=1).images)


def test_budget(tmp_path: Path) -> None:
    model = tiny_model(experts=True)
    dials = (Dial(budget=0.6, threshold=1.0, cost=0.6), Dial(budget=0.8, threshold=0.0, cost=0.8))
    model.config = model.config.model_copy(update={"dials": dials, "default_budget": 0.7})
    path = save(tmp_path / "m.safetensors", model, {})
    assert load(path).threshold == pytest.approx(0.5)
    assert load(path, budget=0.8).threshold == pytest.approx(0.0)
    assert load(path, budget=1.0).threshold is None
    assert one_line(path, budget=0.3) == "budget 0.3 is outside the calibrated range 0.6 to 0.8 (or 1 for dense)"
    model.config = model.config.model_copy(update={"default_budget": 0.5})
    assert load(save(path, model, {}, force=True)).threshold == pytest.approx(1.0)
    dense = save(tmp_path / "dense.safetensors", tiny_model(), {})
    assert load(dense).threshold is None
    assert one_line(dense, budget=0.8) == "tiny is dense: it has no experts to leave out, convert it first"


def test_device(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tiny_model(), {})
    assert one_line(path, device="gpu").startswith("device 'gpu' is not usable here: ")


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one_line("var-fasion") == (
        "unknown model 'var-fasion' (did you mean 'var-fashion'?): `actvar ls` shows the known ones"
    )
    assert one_line("none.safetensors") == "no such file: none.safetensors"
    assert one_line("runs/none") == "no such file: runs/none"
    assert one_line("hf://nobody") == "'hf://nobody' is no Hub name: write hf://owner/repo[@revision][/file]"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert one_line("empty") == "empty holds no model.safetensors; name one file of it (checkpoints there: none)"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a checkpoint: the file is empty"),
        (b"\x13\x37" * 300, "is not a checkpoint: expected .safetensors or .pth"),
        (
            b"<!DOCTYPE html><p>404",
            "is not a checkpoint but a web page (a download that failed?): expected .safetensors",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a checkpoint but a Git LFS pointer"),
        (b"PK\x03\x04" + b"0" * 60, "is a damaged checkpoint ("),
        (b"\x80\x02" + b"0" * 60, "is a damaged checkpoint, or a pickle of something else than tensors"),
        (b"\xff\x00\x00\x00\x00\x00\x00\x00{}", "is a damaged or truncated safetensors file ("),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    message = one_line(path)
    assert message.startswith(f"{path} ")
    assert reason in message


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("share", [0.5, 0.999])
def test_truncated(tmp_path: Path, suffix: str, share: float) -> None:
    path = write_pair(tmp_path, tiny_model())
    if suffix == "safetensors":
        path = save(tmp_path / "m.safetensors", tiny_model(), {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert f"{path} is a damaged" in one_line(path)


class Evil:
    """Asks for a call when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_wants_code_is_refused(tmp_path: Path, zipped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pth"
    torch.save({"pos_1LC": torch.zeros(1), "args": Evil()}, path, _use_new_zipfile_serialization=zipped)
    message = one_line(path)
    assert message.startswith(f"{path} holds more than tensors (it asks for print): opening it could run any")
    assert message.endswith("save the plain state dict instead, best as safetensors")
    path.write_bytes(pickle.dumps(Evil()))
    assert one_line(path) == f"{path} is a damaged checkpoint, or a pickle of something else than tensors"
    assert "code was run" not in capsys.readouterr().out


def test_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.txt", "hello")
    (tmp_path / "x.pth").write_bytes(data.getvalue())
    assert "is a damaged checkpoint (" in one_line(tmp_path / "x.pth")


def test_checkpoints_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"conv.weight": torch.zeros(1), "conv.bias": torch.zeros(1)}, path)
    assert one_line(path) == f"{path} holds no VAR: no tensor is called 'pos_1LC'; it holds 'conv.bias', 'conv.weight'"
    torch.save([1, 2], tmp_path / "x.pth")
    assert one_line(tmp_path / "x.pth").endswith("no tensor is called 'pos_1LC'; it holds a list")
    save_file(tiny_model().tokenizer.state_dict(), path)
    assert one_line(path) == f"{path} is a tokenizer (VQVAE), not a transformer: name the VAR file"


def test_shape_mismatch_names_the_key(tmp_path: Path) -> None:
    model = tiny_model()
    write_pair(tmp_path, model)
    path, words = tmp_path / "var.pth", "a VAR of depth 2, width 32, 2 heads"
    tensors = published(model)
    torch.save({**tensors, "blocks.1.ffn.fc1.weight": torch.zeros(96, 32)}, path)
    assert one_line(path) == (
        f"{path}: tensor 'blocks.1.ffn.fc1.weight' has shape (96, 32), expected (128, 32) for {words}"
    )
    torch.save({k: v for k, v in tensors.items() if k != "blocks.1.attn.proj.bias"}, path)
    assert one_line(path) == f"{path}: tensor 'blocks.1.attn.proj.bias' is missing; the file looks like {words}"
    torch.save({**tensors, "blocks.1.extra": torch.zeros(1)}, path)
    assert one_line(path) == f"{path}: tensor 'blocks.1.extra' has no place in {words}"
    torch.save({k: v for k, v in tensors.items() if "fc1" not in k}, path)
    assert one_line(path) == f"{path}: tensor 'blocks.0.ffn.fc1.weight' is missing: not a complete VAR"


def test_a_mismatch_names_the_known_model_that_it_looks_like() -> None:
    config = published_config(20)
    with torch.device("meta"):
        tensors = dict(VAR(config).state_dict())
    del tensors["head.bias"]
    words = "a VAR of depth 20, width 1280, 20 heads (like var-d20)"
    with pytest.raises(InputError) as caught:
        build(config, tensors, {}, "x.pth")
    assert str(caught.value) == f"x.pth: tensor 'head.bias' is missing; the file looks like {words}"
    with pytest.raises(InputError) as caught:
        build(published_config(16), tensors, {}, "x.pth")
    expected = "for a VAR of depth 16, width 1024, 16 heads (like var-d16)"
    assert str(caught.value).endswith(f"{expected}, but the tensors are of {words}")


def test_artefact_whose_config_is_of_another_depth(tmp_path: Path) -> None:
    model = tiny_model()
    deeper = tiny_config().transformer.model_copy(update={"depth": 3})
    model.config = model.config.model_copy(update={"transformer": deeper})
    path = save(tmp_path / "m.safetensors", model, {})
    assert one_line(path).startswith(f"{path}: tensor 'blocks.2.")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_weights_that_are_no_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = published(golden_model("separate-aln"))
    save_file({**tensors, "head.weight": tensors["head.weight"].to(dtype)}, tmp_path / "var.safetensors")
    save_file(golden_model("separate-aln").tokenizer.state_dict(), tmp_path / "tokenizer.safetensors")
    name = str(dtype).removeprefix("torch.")
    assert f"tensor 'head.weight' has values of type {name}" in one_line(tmp_path / "var.safetensors")


def test_a_tokenizer_that_does_not_come_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def beside(error: ActvarError) -> Source:
        def fail(_: str) -> Path:
            raise error

        return Source(tmp_path / "var.pth", "var", Path("var.pth"), fail)

    with pytest.raises(ActvarError, match="the Hub is ill"):
        beside(ActvarError("the Hub is ill")).tokenizer()
    assert beside(NotHereError("not here")).tokenizer() is None


def test_tokenizer_missing_or_another(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tiny_model(), {})
    beside = tmp_path / "m.tokenizer.safetensors"
    save_file(tiny_model(seed=1).tokenizer.state_dict(), beside)
    assert one_line(path).startswith(f"{beside} is not the tokenizer that {path} was made with: its sha256 is ")
    beside.unlink()
    assert one_line(path) == f"the tokenizer of {path} is missing: expected 'm.tokenizer.safetensors' beside it"
    plain = write_pair(tmp_path, tiny_model())
    (tmp_path / "tokenizer.safetensors").unlink()
    assert one_line(plain).endswith("put the tokenizer beside it as 'tokenizer.safetensors'")


def test_tokenizer_reference_cannot_leave_the_folder(tmp_path: Path) -> None:
    path = save(tmp_path / "sub" / "m.safetensors", tiny_model(), {})
    (tmp_path / "sub" / "m.tokenizer.safetensors").rename(tmp_path / "m.tokenizer.safetensors")
    config = load_config_with_reference(path, "../m.tokenizer.safetensors")
    save_file(load_file(path), path, metadata={"actvar.config": config.model_dump_json()})
    assert "is missing" in one_line(path)


def load_config_with_reference(path: Path, name: str) -> ModelConfig:
    from actvar_cli.weights.artefact import read_config

    config = read_config(path)
    assert config.tokenizer_reference
    reference = config.tokenizer_reference.model_copy(update={"name": name})
    return config.model_copy(update={"tokenizer_reference": reference})


def test_published_tokenizer_of_a_plain_file_comes_from_the_hub(tmp_path: Path) -> None:
    """Without it in the cache and without a network, the message says so (tests are offline)."""
    from actvar_cli.errors import ActvarError

    model = golden_model("separate-aln")
    tensors = published(model)
    tensors["head.weight"], tensors["word_embed.weight"] = torch.zeros(4096, 128), torch.zeros(128, 32)
    tensors["lvl_embed.weight"], tensors["pos_1LC"] = torch.zeros(10, 128), torch.zeros(1, 680, 128)
    del tensors["lvl_1L"]
    torch.save(tensors, tmp_path / "var.pth")
    with pytest.raises(ActvarError, match=r"^FoundationVision/var/vae_ch160v4096z32.pth is not in the cache"):
        load(tmp_path / "var.pth")


@pytest.mark.skipif(not (ASSETS / "var-fashion.safetensors").is_file(), reason="the embedded model is not trained yet")
def test_embedded_model() -> None:
    model = actvar_cli.load("var-fashion")
    assert model.config.name == "var-fashion"
    assert model.config.is_dense
    assert model.sample([0, 9], seed=0).images.shape == (2, 1, 32, 32)


def test_what_is_here_is_found_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "hub_model", lambda *_, **__: pytest.fail("asked for"))
    path = save(tmp_path / "m.safetensors", tiny_model(), {})
    source = locate_here(str(path))
    assert source is not None and config_of(source) == load(path).config
    assert locate_here("hf://me/nothing") is None
    assert locate_here("var-fashion") is not None
