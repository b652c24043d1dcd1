"""Pushing through the Hub's real client, and loading what was pushed, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file

from actvar_cli.weights.artefact import save
from tests.tiny import tiny_model
from tests.weights.hub_server import COMMIT, Hub, serve
from tests.weights.hub_uploads import TOKEN

pytestmark = pytest.mark.slow  # Every test starts the command anew.

ACTVAR = [sys.executable, "-m", "actvar_cli"]
LOAD = """
import sys, actvar_cli
from safetensors.torch import save_file
save_file(actvar_cli.load(sys.argv[1]).transformer.state_dict(), sys.argv[2])
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve({}) as hub:
        yield hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "m.safetensors", tiny_model(experts=True), {"steps": [{"step": "convert", "source": "x"}]})


def call(command: list[str], hub: Hub, home: Path, **env: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that uses this Hub."""
    ours = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    # The small Hub speaks the older of the client's two protocols for large files.
    done = subprocess.run(
        command,
        env={**os.environ, **ours, "HF_HUB_DISABLE_XET": "1", **env},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def push(hub: Hub, home: Path, model: Path, *more: str, repo: str = "me/small", **env: str) -> tuple[int, str, str]:
    return call([*ACTVAR, "export", str(model), "--push", repo, *more], hub, home, **env)


@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
def test_what_is_pushed_is_loaded_again(tmp_path: Path, hub: Hub, model: Path, shard_size: str) -> None:
    code, out, err = push(hub, tmp_path, model, "-q", "--shard-size", shard_size)
    print(hub.uploads.log, hub.requests)
    assert (code, out, err) == (0, "hf://me/small\n", "")
    files = hub.uploads.of("me/small")
    assert ("model.safetensors" in files) == (shard_size == "5GB")
    assert ("model.safetensors.index.json" in files) == (shard_size == "60KB")
    assert 'actvar_cli.load("hf://me/small")' in ModelCard(files["README.md"].decode()).text
    assert json.loads(files["config.json"])["name"] == "tiny"
    assert hub.uploads.messages == [f"tiny, converted (actvar {version()})"]
    code, out, err = call([sys.executable, "-c", LOAD, "hf://me/small", "back"], hub, tmp_path)
    assert (code, out, err) == (0, "", "")
    back, sent = load_file(tmp_path / "back"), tiny_model(experts=True).transformer.state_dict()
    assert back.keys() == sent.keys()
    assert all(torch.equal(back[key], sent[key]) for key in sent)
    if shard_size == "60KB":
        # From the cache, without a network; and fetching alone brings every shard too.
        code, _, err = call([sys.executable, "-c", LOAD, "hf://me/small", "b2"], hub, tmp_path, HF_HUB_OFFLINE="1")
        assert (code, err) == (0, "")
        (tmp_path / "new").mkdir()
        code, out, _ = call([*ACTVAR, "fetch", "hf://me/small", "-q"], hub, tmp_path / "new")
        assert code == 0
        here = {p.name for p in Path(out.strip()).parent.iterdir()}
        assert here >= {f for f in files if f.startswith("model")} | {"tokenizer.safetensors"}
        code, _, err = call(
            [sys.executable, "-c", LOAD, "hf://me/small", "b3"], hub, tmp_path / "new", HF_HUB_OFFLINE="1"
        )
        assert (code, err) == (0, "")


def version() -> str:
    from actvar_cli import __version__

    return __version__


def test_a_folder_can_be_kept_too(tmp_path: Path, hub: Hub, model: Path) -> None:
    code, out, err = push(hub, tmp_path, model, "--private", "-o", "out", "--json", repo="lab/small")
    assert code == 0, err
    found = json.loads(out)
    assert (found["path"], found["repo"]) == ("out", "lab/small")
    assert found["commit"] == f"{hub.url}/lab/small/commit/{COMMIT}"
    assert hub.uploads.repos == {"lab/small": True}
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == hub.uploads.of("lab/small")


def test_foreign_files_stay_and_old_weights_go(tmp_path: Path, hub: Hub, model: Path) -> None:
    hub.files |= {"me/small/thesis.pdf": b"mine", "me/small/model-00001-of-00002.safetensors": b"old"}
    code, out, err = push(hub, tmp_path, model)
    refused = "error: me/small holds 'model-00001-of-00002.safetensors': choose another repository, or replace its "
    assert (code, out) == (2, "")
    assert err.endswith(f"{refused}files with --force\n")
    assert len(hub.uploads.of("me/small")) == 2
    code, _, err = push(hub, tmp_path, model, "--force")
    assert code == 0, err
    files = hub.uploads.of("me/small")
    assert files["thesis.pdf"] == b"mine"
    assert "model-00001-of-00002.safetensors" not in files
    assert "head.weight" in load(files["model.safetensors"])


def test_dry_run_changes_nothing(tmp_path: Path, hub: Hub, model: Path) -> None:
    hub.files |= {"me/small/thesis.pdf": b"mine", "me/small/config.json": b"{}", "me/small/model.safetensors": b""}
    code, out, err = push(hub, tmp_path, model, "--dry-run", "--json", "--shard-size", "60KB")
    assert code == 0, err
    found = json.loads(out)
    expected = {
        "repo": "me/small",
        "user": "me",
        "exists": True,
        "private": False,
        "may_write": True,
        "replaced": ["config.json"],
        "removed": ["model.safetensors"],
        "refused": "me/small holds 'config.json': choose another repository, or replace its files with --force",
    }
    assert {key: found[key] for key in expected} == expected
    assert len(hub.files) == 3
    assert not any(request.startswith(("POST", "PUT")) for request in hub.uploads.log)
    code, out, err = push(hub, tmp_path, model, "--dry-run", "--force", "--shard-size", "60KB")
    assert "would go to " in out
    assert f"{hub.url}/me/small as 'me'.\nthe repository exists\n" in out
    assert out.endswith("replaced: config.json, model.safetensors\nkept: thesis.pdf\n")
    code, _, err = push(hub, tmp_path, model, "--force", "-o", "out", "--shard-size", "60KB")
    assert code == 0, err
    assert found["files"] == {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("repo", "env", "refuse", "code", "message"),
    [
        ("small", {}, {}, 2, "'small' is no repository name: write owner/repo"),
        ("me/a b", {}, {}, 2, "'me/a b' is no repository name: Repo id must use alphanumeric chars"),
        ("me/small", {"HF_TOKEN": ""}, {}, 2, "pushing to me/small needs a token that may write: set HF_TOKEN, or run"),
        ("me/small", {"HF_TOKEN": "hf_old"}, {}, 2, "URL does not accept the token: set HF_TOKEN, or run"),
        ("me/small", {"HF_HUB_OFFLINE": "1"}, {}, 2, "HF_HUB_OFFLINE forbids pushing to me/small: unset it"),
        ("me/small", {"HF_ENDPOINT": "http://127.0.0.1:9"}, {}, 1, "cannot push to me/small at http://127.0.0.1:9: "),
        ("you/small", {}, {}, 2, "the token of 'me' may not write to you/small: use one that may (HF_TOKEN, `hf"),
        (
            "readers/small",
            {},
            {},
            2,
            "the token of 'me' may not write to readers/small: use one that may (HF_TOKEN, `hf",
        ),
        (
            "me/small",
            {},
            {"POST /api/repos/create": 403},
            2,
            "the token may not write to me/small: make one that may at URL/settings/tokens",
        ),
        ("me/small", {}, {"POST /api/models/me/small/commit": 403}, 2, "the token may not write to me/small: make one"),
        ("me/small", {}, {"POST /api/models/me/small/commit": 412}, 1, "me/small was changed by somebody else meanwh"),
        ("me/small", {}, {"POST /api/models/me/small/commit": 500}, 1, "URL answered 500 for me/small: try again la"),
    ],
)
def test_every_failure_is_one_line(
    tmp_path: Path,
    hub: Hub,
    model: Path,
    repo: str,
    env: dict[str, str],
    refuse: dict[str, int],
    code: int,
    message: str,
) -> None:
    hub.uploads.refuse |= refuse
    found, out, err = push(hub, tmp_path, model, "-q", repo=repo, **env)
    assert (found, out) == (code, "")
    assert err.startswith(f"error: {message.replace('URL', hub.url)}")
    assert err.count("\n") == 1
    assert hub.uploads.of("me/small") == {}


def test_a_public_repository_does_not_become_private(tmp_path: Path, hub: Hub, model: Path) -> None:
    hub.uploads.repos["me/small"] = False
    code, _, err = push(hub, tmp_path, model, "-q", "--private")
    assert (code, err) == (2, "error: me/small exists and is public: --private is for a new repository\n")


def test_a_reading_token_is_told_before_the_model_is_read(tmp_path: Path, hub: Hub, model: Path) -> None:
    hub.uploads.role = "read"
    model.write_bytes(b"not looked at")
    code, _, err = push(hub, tmp_path, model, "-q")
    assert (code, err) == (
        2,
        "error: the token of 'me' may not write to me/small: use one that may (HF_TOKEN, `hf auth login`)\n",
    )
