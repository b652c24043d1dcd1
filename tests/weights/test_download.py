"""Bytes from the Hub into its client's cache: through the real client, from a local server, with its faults."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actvar_cli.weights.zoo import PINNED
from tests.weights.hub_client import CHUNK, MODEL, REPO, VAE, partials, run, sha, start, whole
from tests.weights.hub_server import COMMIT, OTHER_COMMIT, Hub, serve

FILE = f"{REPO}/var_d16.pth"
GET = f"GET /{REPO}/resolve/{PINNED}/var_d16.pth"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve({FILE: MODEL, f"{REPO}/vae_ch160v4096z32.pth": VAE, "me/mine/sub/x.safetensors": MODEL}) as hub:
        yield hub


def fetched(hub: Hub) -> list[str]:
    return [request for request in hub.requests if request.startswith("GET ") and "/resolve/" in request]


def until(condition: Callable[[], object]) -> None:
    """Wait for another process."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_model_and_tokenizer_arrive_where_other_programs_find_them(tmp_path: Path, hub: Hub) -> None:
    code, (path,) = run(tmp_path, hub.url, HF_TOKEN="hf_secret")
    assert (code, Path(path).read_bytes()) == (0, MODEL)
    repository = tmp_path / "hub" / "models--FoundationVision--var"
    assert Path(path) == repository / "snapshots" / PINNED / "var_d16.pth"
    assert Path(path).resolve() == repository / "blobs" / sha(MODEL)
    assert "Bearer hf_secret" in hub.tokens
    assert whole(tmp_path, VAE)
    assert not partials(tmp_path)


def test_a_disk_without_links_holds_it_once(tmp_path: Path, hub: Hub) -> None:
    name = "hf://me/mine/sub/x.safetensors"
    code, (path,) = run(tmp_path, hub.url, name, HF_HUB_DISABLE_SYMLINKS="1")
    assert (code, whole(tmp_path, MODEL)) == (0, [Path(path)])
    hub.requests.clear()
    assert run(tmp_path, hub.url, name, HF_HUB_DISABLE_SYMLINKS="1") == (0, [path])
    assert fetched(hub) == []
    Path(path).write_bytes(b"damaged")
    assert run(tmp_path, hub.url, name, "force", HF_HUB_DISABLE_SYMLINKS="1") == (0, [path])
    assert whole(tmp_path, MODEL) == [Path(path)]


def test_nothing_is_asked_once_it_is_here(tmp_path: Path, hub: Hub) -> None:
    _, (path,) = run(tmp_path, hub.url)
    hub.requests.clear()
    assert run(tmp_path, hub.url) == (0, [path])
    assert run(tmp_path, hub.url, HF_HUB_OFFLINE="1") == (0, [path])
    assert hub.requests == []


def test_force_fetches_again(tmp_path: Path, hub: Hub) -> None:
    _, (path,) = run(tmp_path, hub.url)
    Path(path).resolve().write_bytes(b"damaged")
    hub.requests.clear()
    assert run(tmp_path, hub.url, "var-d16", "force") == (0, [path])
    assert GET in hub.requests
    assert Path(path).read_bytes() == MODEL


def test_what_another_program_fetched_is_not_fetched_again(tmp_path: Path, hub: Hub) -> None:
    code, (main,) = run(tmp_path, hub.url, f"hf://{REPO}/var_d16.pth")
    assert (code, Path(main).parent.name) == (0, COMMIT)
    assert (Path(main).parents[2] / "refs" / "main").read_text() == COMMIT
    hub.requests.clear()
    assert run(tmp_path, hub.url, HF_HUB_OFFLINE="1")[1][0].startswith("ActvarError: FoundationVision/var/vae_")
    assert run(tmp_path, hub.url)[0] == 0
    assert GET not in hub.requests


def test_a_branch_is_asked_for_and_found_without_a_network(tmp_path: Path, hub: Hub) -> None:
    name = "hf://me/mine/sub/x.safetensors"
    _, (path,) = run(tmp_path, hub.url, name)
    assert run(tmp_path, hub.url, name, HF_HUB_OFFLINE="1") == (0, [path])
    assert run(tmp_path, "http://127.0.0.1:9", name) == (0, [path])
    hub.files["me/mine/sub/x.safetensors"], hub.revisions["main"] = VAE, OTHER_COMMIT
    assert Path(run(tmp_path, hub.url, name)[1][0]).read_bytes() == VAE


def test_offline_and_not_cached(tmp_path: Path, hub: Hub) -> None:
    code, lines = run(tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert code == 1
    assert lines == [f"ActvarError: {FILE} is not in the cache {tmp_path}/hub, and HF_HUB_OFFLINE forbids fetching"]
    assert hub.requests == []


def test_no_network(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "http://127.0.0.1:9")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"ActvarError: cannot fetch {FILE} from http://127.0.0.1:9: ")
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
    assert run(tmp_path, hub.url, name) == (2, [f"InputError: {message.format(url=hub.url)}"])


def test_known_file_gone_is_no_mistake_of_the_user(tmp_path: Path, hub: Hub) -> None:
    del hub.files[FILE]
    message = f"ActvarError: repository {REPO} has no file 'var_d16.pth' at revision '{PINNED}'"
    assert run(tmp_path, hub.url) == (1, [message])


def test_gated_repository(tmp_path: Path, hub: Hub) -> None:
    hub.status, hub.error_code = 403, "GatedRepo"
    message = f"ActvarError: {REPO} is gated: accept its terms at {hub.url}/{REPO}, set HF_TOKEN"
    assert run(tmp_path, hub.url) == (1, [message])


def test_server_error(tmp_path: Path, hub: Hub) -> None:
    hub.status = 503
    assert run(tmp_path, hub.url) == (1, [f"ActvarError: {hub.url} answered 503 for {FILE}: try again later"])


def test_another_file_is_refused_before_it_is_fetched(tmp_path: Path, hub: Hub) -> None:
    hub.files[FILE] = b"something else"
    code, lines = run(tmp_path, hub.url)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"ActvarError: {hub.url} has not the published file (its sha256 is ")
    assert lines[0].endswith(f"for {FILE}: nothing was fetched")
    assert fetched(hub) == []


def test_a_superseded_file_is_explained_before_it_is_fetched(tmp_path: Path, hub: Hub) -> None:
    hub.files[FILE] = old = b"weights of before"
    code, lines = run(tmp_path, hub.url, old=sha(old)[:8])
    what = f"an old var_d16.pth (sha256 {sha(old)[:8]}…) that its authors replaced in April 2024"
    assert (code, lines) == (1, [f"ActvarError: {hub.url} has {what} for {FILE}: nothing was fetched"])
    assert fetched(hub) == []


def test_a_superseded_file_is_explained_where_only_its_content_tells(tmp_path: Path, hub: Hub) -> None:
    hub.files[FILE], hub.etags[FILE] = MODEL[::-1], "0" * 40
    code, lines = run(tmp_path, hub.url, old=sha(MODEL[::-1])[:8])
    assert (code, len(lines)) == (1, 1)
    assert f"/var_d16.pth is an old var_d16.pth (sha256 {sha(MODEL[::-1])[:8]}…)" in lines[0]
    assert lines[0].endswith("April 2024: fetch it again with --force")


def test_wrong_content_is_removed(tmp_path: Path, hub: Hub) -> None:
    wrong = MODEL[::-1]
    hub.announce[FILE], hub.files[FILE] = MODEL, wrong
    code, lines = run(tmp_path, hub.url)
    assert (code, len(lines)) == (1, 1)
    assert f"{FILE} arrived with a wrong sha256 ({sha(wrong)[:12]}…" in lines[0]
    assert not whole(tmp_path, wrong)
    hub.files[FILE] = MODEL
    assert run(tmp_path, hub.url)[0] == 0


def test_a_file_in_the_cache_that_is_damaged(tmp_path: Path, hub: Hub) -> None:
    _, (path,) = run(tmp_path, hub.url)
    Path(path).resolve().write_bytes(MODEL[:-1])
    code, lines = run(tmp_path, hub.url, HF_HUB_OFFLINE="1")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"ActvarError: {path} had a wrong sha256 ")
    assert run(tmp_path, hub.url) == (0, [path])


@pytest.mark.parametrize("lfs", [False, True])
def test_a_cut_connection_goes_on_from_where_it_was(tmp_path: Path, hub: Hub, lfs: bool) -> None:
    hub.cuts, hub.lfs = [CHUNK + 10], lfs
    code, (*shown, path) = run(tmp_path, hub.url, "var-d16", "progress", HF_TOKEN="hf_secret")
    assert (code, Path(path).read_bytes()) == (0, MODEL)
    assert hub.ranges == [f"bytes={CHUNK}-"]
    assert hub.tokens_of_lfs == ({""} if lfs else set())
    assert f"fetching var_d16.pth: {len(MODEL)} of {len(MODEL)}" in shown


def test_a_cut_fetch_is_gone_on_with_by_the_next(tmp_path: Path, hub: Hub) -> None:
    hub.cuts = [2 * CHUNK, *[0] * 20]
    code, lines = run(tmp_path, hub.url)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"ActvarError: cannot fetch {FILE} from {hub.url}: ")
    assert lines[0].endswith(" (0.1 of 0.3 MB arrived and are kept: the next fetch goes on from there)")
    assert not list(tmp_path.rglob("snapshots"))
    hub.cuts, hub.ranges = [], []
    code, (*shown, path) = run(tmp_path, hub.url, "var-d16", "progress")
    assert (code, Path(path).read_bytes()) == (0, MODEL)
    assert hub.ranges == [f"bytes={2 * CHUNK}-"]
    assert f"fetching var_d16.pth: {len(MODEL)} of {len(MODEL)}" in shown
    assert not partials(tmp_path)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_fetch_is_gone_on_with_by_the_next(tmp_path: Path, hub: Hub, end: signal.Signals) -> None:
    hub.stall_after = 2 * CHUNK
    with start(tmp_path, hub.url) as process:
        until(lambda: [p for p in partials(tmp_path) if p.stat().st_size >= CHUNK])
        process.send_signal(end)
    assert process.returncode != 0
    assert not whole(tmp_path, MODEL)
    (partial,) = partials(tmp_path)
    arrived, hub.stall_after = partial.stat().st_size, None
    code, (path,) = run(tmp_path, hub.url)
    assert (code, Path(path).read_bytes()) == (0, MODEL)
    assert hub.ranges == [f"bytes={arrived}-"]


def test_what_changed_meanwhile_is_not_gone_on_with(tmp_path: Path, hub: Hub) -> None:
    name, file = "hf://me/mine/sub/x.safetensors", "me/mine/sub/x.safetensors"
    hub.cuts = [CHUNK, *[0] * 20]
    assert run(tmp_path, hub.url, name)[0] == 1
    assert len(partials(tmp_path)) == 1
    hub.files[file], hub.cuts, hub.ranges = MODEL + b"new", [], []
    code, (path,) = run(tmp_path, hub.url, name)
    assert (code, Path(path).read_bytes()) == (0, MODEL + b"new")
    assert hub.ranges == []
    assert not partials(tmp_path)


def test_without_a_sha256_nothing_is_gone_on_with(tmp_path: Path, hub: Hub) -> None:
    hub.etags["me/mine/sub/x.safetensors"] = "0" * 40
    hub.cuts = [CHUNK, *[0] * 20]
    code, lines = run(tmp_path, hub.url, "hf://me/mine/sub/x.safetensors")
    assert (code, "are kept" in lines[0]) == (1, False)
    assert not partials(tmp_path)


def test_a_file_shorter_than_it_said_leaves_nothing(tmp_path: Path, hub: Hub) -> None:
    hub.lfs, hub.announce[FILE], hub.files[FILE] = True, MODEL, MODEL[:-5]
    code, lines = run(tmp_path, hub.url)
    assert (code, len(lines)) == (1, 1)
    assert not partials(tmp_path)
    hub.files[FILE] = MODEL
    assert run(tmp_path, hub.url)[0] == 0


def test_a_disk_without_room_is_found_out_before(tmp_path: Path, hub: Hub) -> None:
    code, lines = run(tmp_path, hub.url, "var-d16", f"free={len(MODEL) * 3 // 2}")
    assert (code, len(lines)) == (1, 1)
    # Room for the file, and for what is converted from it.
    assert lines[0].startswith(
        "ActvarError: the disk is too full: var_d16.pth, with what is made of it, takes 0.00 GB, "
    )
    assert lines[0].endswith("make room, or set HF_HOME to another disk")
    assert fetched(hub) == []
    assert run(tmp_path, hub.url, "var-d16", f"free={len(MODEL) * 2}")[0] == 0


def test_a_disk_that_runs_full_keeps_what_arrived(tmp_path: Path, hub: Hub) -> None:
    code, lines = run(tmp_path, hub.url, "var-d16", f"full={3 * CHUNK}")
    full = f"ActvarError: the disk is full: {FILE} does not fit into {tmp_path}/hub: make room"
    assert (code, lines) == (1, [f"{full} (0.2 of 0.3 MB arrived and are kept: the next fetch goes on from there)"])
    assert run(tmp_path, hub.url)[0] == 0
    assert hub.ranges == [f"bytes={3 * CHUNK}-"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "file").touch()
    code, lines = run(tmp_path, hub.url, HF_HUB_CACHE=f"{tmp_path}/file")
    assert (code, lines) == (1, [f"ActvarError: cannot write to the cache {tmp_path}/file: Not a directory"])


def test_two_at_once_fetch_once(tmp_path: Path, hub: Hub) -> None:
    hub.stall_after = CHUNK
    with start(tmp_path, hub.url) as first:
        until(lambda: partials(tmp_path))
        with start(tmp_path, hub.url) as second:
            assert second.stdout and first.stdout
            assert second.stdout.readline() == "said: another process is fetching var_d16.pth: waiting for it\n"
            hub.awake.set()
            path = first.stdout.read().splitlines()[-1]
            assert second.stdout.read().splitlines()[-1] == path
    assert (first.returncode, second.returncode) == (0, 0)
    assert (hub.requests.count(GET), Path(path).read_bytes()) == (1, MODEL)


def test_a_server_that_is_no_hub(tmp_path: Path, hub: Hub) -> None:
    hub.etags[FILE] = '""'
    code, lines = run(tmp_path, hub.url)
    assert (code, lines) == (
        1,
        [f"ActvarError: {hub.url} does not answer as a Hub does: check HF_ENDPOINT, or the proxy"],
    )


def test_progress_is_told_in_bytes(tmp_path: Path, hub: Hub) -> None:
    _, (*shown, _) = run(tmp_path, hub.url, "var-d16", "progress")
    sizes = [(name, len(content)) for name, content in (("var_d16", MODEL), ("vae_ch160v4096z32", VAE))]
    assert shown == [
        f"{verb} {name}.pth: {size} of {size}" for name, size in sizes for verb in ("fetching", "checking")
    ]
