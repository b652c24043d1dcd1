"""Models in several files, as users have them: whole, incomplete, mixed up, and made to do harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from actvar_cli.errors import InputError
from actvar_cli.model.sampling import ActVAR
from actvar_cli.progress import Progress
from actvar_cli.recipe.models import digest_of, named
from actvar_cli.weights.artefact import read_metadata
from actvar_cli.weights.card import About
from actvar_cli.weights.export import export
from actvar_cli.weights.load import load
from actvar_cli.weights.shards import INDEX
from tests.tiny import tiny_model
from tests.weights.test_load import one_line, published


def sharded(folder: Path, model: ActVAR | None = None) -> list[Path]:
    """The shards of a model that is exported to ``folder``."""
    about = About(lineage={"steps": ["convert"]})
    export(model or tiny_model(experts=True), folder, shard_size=60_000, about=about)
    return sorted(folder.glob("model-*.safetensors"))


def point(index: Path, key: str, to: object) -> None:
    """Let the index say that the tensor ``key`` is in the file ``to``."""
    content = json.loads(index.read_text())
    content["weight_map"][key] = to
    index.write_text(json.dumps(content))


def test_a_missing_shard(tmp_path: Path) -> None:
    first, *_ = sharded(tmp_path / "m")
    index = tmp_path / "m" / INDEX
    first.unlink()
    reason = f"{index} needs {first.name}, which is missing beside it: a part of the model is not here"
    assert one_line(tmp_path / "m") == reason
    with pytest.raises(InputError, match="is missing beside it"):
        read_metadata(index)


def test_one_shard_is_no_model(tmp_path: Path) -> None:
    first, *others = sharded(tmp_path / "m")
    count = 1 + len(others)
    assert one_line(first) == f"{first} is one of {count} shards of a model: name their folder, or {INDEX}"


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    *_, last = sharded(tmp_path / "m")
    last.write_bytes(last.read_bytes()[:-10])
    assert one_line(tmp_path / "m").startswith(f"{last} is a damaged or truncated safetensors file (")


def test_shards_of_two_models_in_one_folder(tmp_path: Path) -> None:
    shards = sharded(tmp_path / "m")
    other = tiny_model(experts=True)
    other.config = other.config.model_copy(update={"name": "other"})
    shutil.copy(sharded(tmp_path / "other", other)[1], shards[1])
    message = one_line(tmp_path / "m")
    assert message == f"{shards[1]} and {shards[0].name} are parts of two different models: export the model again"


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "C:x.safetensors", "x.pth", 3]
)
def test_an_index_cannot_leave_its_folder(tmp_path: Path, name: object) -> None:
    sharded(tmp_path / "m")
    save_file({"head.weight": torch.zeros(1)}, tmp_path / "secret.safetensors")
    index = tmp_path / "m" / INDEX
    point(index, "head.weight", name)
    assert one_line(tmp_path / "m") == f"{index} names {name!r}, which is no safetensors file beside it"


def test_an_index_that_promises_too_much(tmp_path: Path) -> None:
    first, *_ = sharded(tmp_path / "m")
    point(tmp_path / "m" / INDEX, "blocks.9.extra", first.name)
    assert one_line(tmp_path / "m") == f"{first} has no tensor 'blocks.9.extra', although {INDEX} says so"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": ["b"]}}'])
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    index = tmp_path / INDEX
    index.write_text(text)
    assert one_line(index) == f"{index} is no index of shards: it has no 'weight_map' of file names"


def test_an_empty_index_and_none(tmp_path: Path) -> None:
    index = tmp_path / INDEX
    assert one_line(index) == f"no such file: {index}"
    index.write_text('{"weight_map": {}}')
    assert one_line(index) == f"{index} is no index of shards: its 'weight_map' is empty"


def test_a_plain_state_dict_in_shards(tmp_path: Path) -> None:
    model = tiny_model()
    tensors = {key: tensor.contiguous() for key, tensor in published(model).items()}
    where = {key: f"model-{1 + (key > 'g'):05d}-of-00002.safetensors" for key in tensors}
    for name in set(where.values()):
        save_file({key: tensors[key] for key in tensors if where[key] == name}, tmp_path / name)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where}))
    save_file(model.tokenizer.state_dict(), tmp_path / "tokenizer.safetensors")
    again = load(tmp_path)
    assert again.config.name == tmp_path.name
    assert torch.equal(again.sample([0], seed=1).images, model.sample([0], seed=1).images)


def test_digest_and_lineage_are_those_of_all_shards(tmp_path: Path) -> None:
    shards = sharded(tmp_path / "m")
    name = str(tmp_path / "m")
    before = digest_of(name, Progress())
    assert before.count("+") == len(shards)
    assert named(name, device="cpu", progress=Progress()).lineage == {"steps": ["convert"]}
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(content)
    assert digest_of(name, Progress()) != before
