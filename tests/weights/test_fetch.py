"""Fetching through the Hub's real client, in a process of its own as its environment is read once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from actvar_cli.errors import InputError
from actvar_cli.weights.export import export
from actvar_cli.weights.fetch import fetch, list_models, parse_hub_name
from actvar_cli.weights.zoo import ASSETS, KNOWN, PINNED
from tests.tiny import tiny_model
from tests.weights.hub_server import Hub, serve

REPO = "FoundationVision/var"
MODEL, VAE = b"the transformer" * 1000, b"the tokenizer" * 1000

FETCH = """
import sys
from dataclasses import replace
from actvar_cli.errors import ActvarError
from actvar_cli.weights import fetch, zoo

name, model, vae, old, *flags = sys.argv[1:]
entry = zoo.KNOWN["var-d16"]
zoo.KNOWN["var-d16"] = replace(
    entry,
    transformer=replace(entry.transformer, sha256=model, superseded=(old,)),
    tokenizer=replace(entry.tokenizer, sha256=vae),
)
try:
    print(fetch.fetch(name, force="--force" in flags))
    print([m.cached for m in fetch.list_models() if m.name == "var-d16"])
except ActvarError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_code)
"""


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve({f"{REPO}/var_d16.pth": MODEL, f"{REPO}/vae_ch160v4096z32.pth": VAE, "me/mine/sub/x.pth": b"x"}) as hub:
        yield hub


def run(
    home: Path, url: str, name: str = "var-d16", *flags: str, sha256: str = sha(MODEL), old: str = "?", **env: str
) -> tuple[int, list[str]]:
    """Exit code and lines of a fetch; whatever the library says besides must not exist."""
    done = subprocess.run(
        [sys.executable, "-c", FETCH, name, sha256, sha(VAE), old, *flags],
        env={**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def whole(home: Path, content: bytes) -> list[Path]:
    return [p for p in home.rglob("*") if p.is_file() and p.read_bytes() == content]


def test_fetch_brings_model_and_tokenizer_then_asks_no_network(tmp_path: Path, hub: Hub) -> None:
    code, (path, cached) = run(tmp_path, hub.url, HF_TOKEN="hf_secret")
    assert code == 0
    assert cached == "[True]"
    assert Path(path).read_bytes() == MODEL
    assert "Bearer hf_secret" in hub.tokens
    assert whole(tmp_path, VAE)
    hub.requests.clear()
    assert run(tmp_path, hub.url)[0] == 0
    assert run(tmp_path, hub.url, HF_HUB_OFFLINE="1")[1][0] == path
    assert hub.requests == []


def test_force_fetches_again(tmp_path: Path, hub: Hub) -> None:
    run(tmp_path, hub.url)
    hub.requests.clear()
    assert run(tmp_path, hub.url, "var-d16", "--force")[0] == 0
    assert f"GET /{REPO}/resolve/{PINNED}/var_d16.pth" in hub.requests


def test_offline_and_not_cached(tmp_path: Path, hub: Hub) -> None:
    code, lines = run(tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert code == 1
    assert lines == [
        f"ActvarError: {REPO}/var_d16.pth is not in the cache {tmp_path}/hub, and HF_HUB_OFFLINE forbids fetching"
    ]
    assert hub.requests == []


@pytest.mark.slow  # The client tries again for 20 seconds.
def test_no_network(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "http://127.0.0.1:9")
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"ActvarError: cannot fetch {REPO}/var_d16.pth from http://127.0.0.1:9: ")
    assert "refused" in lines[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://me/other", "no repository me/other on {url} (a private one needs HF_TOKEN)"),
        ("hf://me/mine/none.pth", "repository me/mine has no file 'none.pth' at revision 'main'"),
        ("hf://me/mine@v9/sub/x.pth", "repository me/mine has no revision 'v9'"),
    ],
)
def test_what_is_not_there(tmp_path: Path, hub: Hub, name: str, message: str) -> None:
    code, lines = run(tmp_path, hub.url, name)
    assert (code, lines) == (2, [f"InputError: {message.format(url=hub.url)}"])


def test_known_file_gone_is_no_mistake_of_the_user(tmp_path: Path, hub: Hub) -> None:
    del hub.files[f"{REPO}/var_d16.pth"]
    code, lines = run(tmp_path, hub.url)
    assert (code, lines) == (1, [f"ActvarError: repository {REPO} has no file 'var_d16.pth' at revision '{PINNED}'"])


def test_gated_repository(tmp_path: Path, hub: Hub) -> None:
    hub.status, hub.error_code = 403, "GatedRepo"
    code, lines = run(tmp_path, hub.url)
    assert (code, lines) == (1, [f"ActvarError: {REPO} is gated: accept its terms at {hub.url}/{REPO}, set HF_TOKEN"])


def test_wrong_digest_is_removed(tmp_path: Path, hub: Hub) -> None:
    hub.files[f"{REPO}/var_d16.pth"] = b"something else"
    code, lines = run(tmp_path, hub.url)
    assert code == 1
    assert len(lines) == 1
    assert "arrived with a wrong sha256" in lines[0]
    assert not whole(tmp_path, b"something else")
    hub.files[f"{REPO}/var_d16.pth"] = MODEL
    assert run(tmp_path, hub.url)[0] == 0


def test_superseded_file_is_explained(tmp_path: Path, hub: Hub) -> None:
    old = b"weights of before"
    hub.files[f"{REPO}/var_d16.pth"] = old
    code, lines = run(tmp_path, hub.url, old=sha(old)[:8])
    assert code == 1
    assert "is an old var_d16.pth" in lines[0]
    assert "April 2024" in lines[0]


def test_file_damaged_after_it_was_checked(tmp_path: Path, hub: Hub) -> None:
    _, (path, _) = run(tmp_path, hub.url)
    Path(path).resolve().write_bytes(MODEL[:-1])
    code, lines = run(tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert code == 1
    assert "wrong sha256" in lines[0]
    assert run(tmp_path, hub.url)[0] == 0


def test_hub_name_with_a_folder(tmp_path: Path, hub: Hub) -> None:
    code, lines = run(tmp_path, hub.url, "hf://me/mine/sub/x.pth")
    assert code == 0
    assert Path(lines[0]).read_bytes() == b"x"


@pytest.mark.slow  # The client tries again for 20 seconds.
def test_server_error(tmp_path: Path, hub: Hub) -> None:
    hub.status = 503
    code, lines = run(tmp_path, hub.url)
    assert (code, lines) == (1, [f"ActvarError: {hub.url} answered 503 for {REPO}/var_d16.pth: try again later"])


@pytest.mark.slow  # The client tries again after each cut.
def test_connection_cut_leaves_nothing_that_looks_whole(tmp_path: Path, hub: Hub) -> None:
    hub.cut_after = 100
    hub.files[f"{REPO}/var_d16.pth"] = os.urandom(10_000)
    code, lines = run(tmp_path, hub.url, sha256=sha(hub.files[f"{REPO}/var_d16.pth"]))
    assert code == 1
    assert len(lines) == 1
    assert not list(tmp_path.rglob("snapshots/**/var_d16.pth"))


@pytest.mark.parametrize("lfs", [False, True])
def test_connection_cut_once_goes_on_from_where_it_was(tmp_path: Path, hub: Hub, lfs: bool) -> None:
    # The client keeps what it has in pieces of 10 MiB.
    large = os.urandom(1 << 20) * 12
    hub.files[f"{REPO}/var_d16.pth"] = large
    hub.cut_after, hub.cuts, hub.lfs = 11 << 20, 1, lfs
    code, (path, _) = run(tmp_path, hub.url, sha256=sha(large), HF_TOKEN="hf_secret")
    assert code == 0
    assert Path(path).read_bytes() == large
    assert hub.ranges == [f"bytes={10 << 20}-"]
    assert hub.tokens_of_lfs == ({""} if lfs else set())


def test_a_disk_without_room_is_found_out_before(tmp_path: Path, hub: Hub) -> None:
    small = "import shutil, collections; U = collections.namedtuple('U', 'free'); shutil.disk_usage = lambda p: U(5000)"
    (tmp_path / "sitecustomize.py").write_text(small)
    path = f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"
    code, lines = run(tmp_path, hub.url, PYTHONPATH=path)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("ActvarError: the disk is too full: var_d16.pth takes 1.24 GB, 0.00 GB are free in ")
    assert hub.requests == []


LOAD = """
import sys, actvar_cli
model = actvar_cli.load(sys.argv[1])
print(model.config.name, model.sample([0, 1], seed=1).tokens.tolist())
"""


@pytest.mark.parametrize("name", ["hf://me/tiny", "hf://me/tiny@main/model.safetensors", "hf://me/tiny/plain/var.pth"])
def test_loading_from_a_repository(tmp_path: Path, name: str) -> None:
    model = tiny_model()
    folder = export(model, tmp_path / "out")
    torch.save({**model.transformer.state_dict(), "lvl_1L": model.transformer.lvl_1L}, tmp_path / "var.pth")
    files = {f"me/tiny/{p.name}": p.read_bytes() for p in folder.iterdir()}
    files["me/tiny/plain/var.pth"] = (tmp_path / "var.pth").read_bytes()
    files["me/tiny/plain/tokenizer.safetensors"] = files["me/tiny/tokenizer.safetensors"]
    tokens = model.sample([0, 1], seed=1).tokens.tolist()
    with serve(files) as hub:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, name], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
    assert done.stdout == f"tiny {tokens}\n"


def test_names() -> None:
    assert parse_hub_name("hf://a/b").file == "model.safetensors"
    file = parse_hub_name("hf://a/b@refs%2Fpr%2F1/c/d.pth")
    assert (file.repo, file.revision, file.file) == ("a/b", "refs/pr/1", "c/d.pth")
    with pytest.raises(InputError, match="is no Hub name: write hf://owner/repo"):
        parse_hub_name("hf://a")


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"^unknown model 'var-fasion' \(did you mean 'var-fashion'\?\): `actvar ls`"):
        fetch("var-fasion")


def test_listing_needs_no_network() -> None:
    listed = {m.name: m for m in list_models()}
    assert list(listed) == list(KNOWN)
    assert listed["var-d16"].size == 1_243_116_346
    assert not listed["var-d16"].cached
    assert listed["var-fashion"].cached == (ASSETS / "var-fashion.safetensors").is_file()
