"""Published pickles converted once, and used from then on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from actvar_cli import __version__
from actvar_cli.errors import InputError
from actvar_cli.model.config import TokenizerConfig
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress
from actvar_cli.weights import converted
from actvar_cli.weights.converted import Note, convert, find, published_digest
from actvar_cli.weights.download import Remote
from actvar_cli.weights.files import file_digest
from actvar_cli.weights.published import published_state
from actvar_cli.weights.zoo import PINNED, HubFile
from tests.tiny import tiny_config, tiny_model
from tests.weights.hub_client import REPO, environment, run, sha
from tests.weights.hub_server import COMMIT, serve

FILE = HubFile("me/mine", "sub/var.pth", 0)


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(converted, "home", lambda: tmp_path / "actvar")
    return tmp_path / "actvar"


def saved(content: object) -> bytes:
    stream = BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def transformer() -> dict[str, Tensor]:
    return published_state(tiny_model())


def make(folder: Path, content: object, file: HubFile = FILE, progress: Progress | None = None) -> Path:
    original = folder / "original.pth"
    original.write_bytes(saved(content))
    digest = file_digest(original)
    return convert(original, file, Remote(digest, COMMIT, original.stat().st_size), digest, progress or Progress())


def test_every_tensor_is_there_bit_for_bit(tmp_path: Path, home: Path) -> None:
    state = transformer()
    path = make(tmp_path, state)
    assert path.parent == home / "me--mine"
    assert path.name == f"sub--var-{file_digest(tmp_path / 'original.pth')[:8]}.safetensors"
    stored = load_file(path)
    assert set(stored) == set(state) >= {"lvl_1L", "attn_bias_for_masking"}
    assert all(t.dtype == state[k].dtype and torch.equal(t, state[k]) for k, t in stored.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_tensors_that_share_memory_or_are_not_in_order(tmp_path: Path, home: Path) -> None:
    state = transformer()
    state["head.bias"] = state["word_embed.bias"]
    state["head.weight"] = state["head.weight"].T.contiguous().T
    stored = load_file(make(tmp_path, state))
    assert all(torch.equal(tensor, state[key]) for key, tensor in stored.items())


def test_a_checkpoint_with_its_tokenizer(tmp_path: Path, home: Path) -> None:
    from actvar_cli.weights.checkpoint import read_checkpoint

    model = tiny_model()
    both = {"trainer": {"var_wo_ddp": published_state(model), "vae_local": model.tokenizer.state_dict()}}
    read = read_checkpoint(make(tmp_path, both))
    assert read.transformer is not None and read.tokenizer is not None
    assert set(read.transformer) == set(published_state(model))
    assert set(read.tokenizer) == set(model.tokenizer.state_dict())


def test_the_note_says_where_it_came_from(tmp_path: Path, home: Path) -> None:
    path, original = make(tmp_path, transformer()), tmp_path / "original.pth"
    note = json.loads(path.with_suffix(".json").read_text())
    digest = file_digest(original)
    assert note.pop("date").endswith("+00:00")
    assert note.pop("converted") == {
        "sha256": file_digest(path),
        "size": path.stat().st_size,
        "mtime_ns": path.stat().st_mtime_ns,
    }
    assert note == {
        "repo": "me/mine",
        "file": "sub/var.pth",
        "revisions": [COMMIT, "main"],
        "etag": digest,
        "sha256": digest,
        "size": original.stat().st_size,
        "actvar": __version__,
    }


def test_it_is_found_by_what_is_known_of_the_original(tmp_path: Path, home: Path) -> None:
    path = make(tmp_path, transformer())
    digest = file_digest(tmp_path / "original.pth")
    assert find(FILE) == find(HubFile("me/mine", "sub/var.pth", 0, revision=COMMIT)) == path
    assert find(HubFile("me/mine", "sub/var.pth", 0, digest, "v9")) == path
    assert find(FILE, Remote(digest, "f" * 40, 0)) == path
    assert find(HubFile("me/mine", "sub/var.pth", 0, revision="f" * 40)) == path  # asked for once, known from then on
    assert find(HubFile("me/mine", "sub/var.pth", 0, revision="v9")) is None
    assert find(HubFile("me/mine", "var.pth", 0)) is None
    assert find(FILE, Remote("0" * 64, COMMIT, 0)) is None


def test_a_branch_that_moves_on_stands_for_the_new_file(tmp_path: Path, home: Path) -> None:
    old = make(tmp_path, transformer())
    old_digest = file_digest(tmp_path / "original.pth")
    new = make(tmp_path, {**transformer(), "lvl_1L": torch.ones(1, 14)})
    assert find(FILE) == new != old
    assert find(FILE, Remote(old_digest, COMMIT, 0)) == old  # and back again
    assert find(FILE) == old


def test_the_digest_is_the_originals(tmp_path: Path, home: Path) -> None:
    path = make(tmp_path, transformer())
    assert published_digest(path) == file_digest(tmp_path / "original.pth") != file_digest(path)
    copy = shutil.copy(path, tmp_path / path.name)
    assert published_digest(copy) == file_digest(path)


def test_a_copy_of_the_folder_is_known_by_its_content(tmp_path: Path, home: Path) -> None:
    path = make(tmp_path, transformer())
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert find(FILE) == path
    note = Note.model_validate_json(path.with_suffix(".json").read_bytes())
    assert note.converted.untouched(path)  # and need not be read the next time


@pytest.mark.parametrize("damage", ["other content", "shorter", "no note", "note of another", "damaged note", "gone"])
def test_what_the_note_does_not_match_is_not_used(tmp_path: Path, home: Path, damage: str) -> None:
    path = make(tmp_path, transformer())
    note = path.with_suffix(".json")
    if damage == "other content":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif damage == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "no note":
        note.unlink()
    elif damage == "note of another":
        note.write_text(note.read_text().replace('"sub/var.pth"', '"other.pth"'))
    elif damage == "damaged note":
        note.write_text("{")
    else:
        path.unlink()
    assert find(FILE) is None
    assert make(tmp_path, transformer()) == path
    assert find(FILE) == path


def test_what_holds_no_model_is_refused(tmp_path: Path, home: Path) -> None:
    with pytest.raises(InputError, match="holds no VAR"):
        make(tmp_path, {"a": torch.zeros(1)})
    assert not list(home.rglob("*.safetensors"))


def test_where_nothing_can_be_written_the_original_is_used(tmp_path: Path, home: Path) -> None:
    home.touch()
    said = Said()
    assert make(tmp_path, transformer(), progress=said) == tmp_path / "original.pth"
    (line,) = said.lines
    assert line.startswith("sub/var.pth is used as it is, not converted to safetensors: cannot make the folder ")


def test_without_room_the_original_is_used(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    said = Said()
    assert make(tmp_path, transformer(), progress=said) == tmp_path / "original.pth"
    assert "not converted to safetensors: the disk is too full: sub/var.pth" in said.lines[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_conversion_that_ends_early_leaves_nothing(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr("actvar_cli.weights.artefact.write_tensors", fail)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, transformer())
    else:
        assert make(tmp_path, transformer()) == tmp_path / "original.pth"
    assert not [p for p in home.rglob("*") if p.is_file()]


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path, home: Path) -> None:
    path = make(tmp_path, transformer())
    left = path.with_name(f".{path.name}.01234567.tmp")
    left.write_bytes(b"half")
    make(tmp_path, transformer())
    assert not left.exists()


@pytest.fixture
def published() -> Iterator[tuple[str, bytes, bytes]]:
    """A Hub with a tiny var-d16 and its tokenizer as .pth, of the published vocabulary and scales."""
    tiny = tiny_config()
    tokenizer = TokenizerConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    config = tiny.model_copy(update={"tokenizer": tokenizer})
    model = ActVAR(config, VAR(config), Tokenizer(tokenizer))
    var, vae = saved(published_state(model)), saved(model.tokenizer.state_dict())
    with serve({f"{REPO}/var_d16.pth": var, f"{REPO}/vae_ch160v4096z32.pth": vae}) as hub:
        yield hub.url, var, vae


OFFLINE = """
import sys
from dataclasses import replace
from pathlib import Path
from actvar_cli.weights import converted, fetch, load, stamp, zoo

model, vae = sys.argv[1:]
entry = zoo.KNOWN["var-d16"]
zoo.KNOWN["var-d16"] = replace(
    entry, transformer=replace(entry.transformer, sha256=model), tokenizer=replace(entry.tokenizer, sha256=vae)
)
for module in (converted, fetch, stamp):
    del module.file_digest
loaded = load.load("var-d16")
print(loaded.config.name, loaded.config.tokenizer_reference.sha256 == vae)
listed = next(m for m in fetch.list_models() if m.name == "var-d16")
print(listed.converted, listed.path)
"""


def test_fetched_once_and_used_without_network_and_original(
    tmp_path: Path, published: tuple[str, bytes, bytes]
) -> None:
    url, var, vae = published
    code, lines = run(tmp_path, url, "var-d16", "progress", sha256=sha(var), vae=sha(vae))
    path = Path(lines.pop())
    assert (code, path) == (0, tmp_path / "actvar" / "FoundationVision--var" / f"var_d16-{sha(var)[:8]}.safetensors")
    assert f"converting var_d16.pth: {2 * len(var)} of {2 * len(var)}" in lines
    assert Note.model_validate_json(path.with_suffix(".json").read_bytes()).revisions == (PINNED,)
    shutil.rmtree(tmp_path / "hub")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, sha(var), sha(vae)],
        env=environment(tmp_path, url, HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    # The published tokenizer is known by the sha256 it was published with, and nothing is read to find that out.
    assert done.stdout.splitlines() == ["var-d16 True", f"True {path}"]
    assert done.stderr == ""


def test_a_branch_is_converted_once(tmp_path: Path, published: tuple[str, bytes, bytes]) -> None:
    url, var, _ = published
    name = f"hf://{REPO}/var_d16.pth"
    code, (path,) = run(tmp_path, url, name)
    assert (code, Path(path).name) == (0, f"var_d16-{sha(var)[:8]}.safetensors")
    shutil.rmtree(tmp_path / "hub")
    assert run(tmp_path, url, name, "progress") == (0, [path])
    assert run(tmp_path, url, name, HF_HUB_OFFLINE="1") == (0, [path])
    before = Path(path).stat().st_mtime_ns
    assert run(tmp_path, url, name, "force") == (0, [path])
    assert Path(path).stat().st_mtime_ns != before
