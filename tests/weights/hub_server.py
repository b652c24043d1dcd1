"""A small Hub on this machine: enough of its protocol for the real client, and a few of its faults."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from actvar_cli.weights.zoo import PINNED
from tests.weights.hub_uploads import Uploads

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = COMMIT[::-1]


@dataclass
class Hub:
    """What the server holds (``owner/repo/file`` to bytes) and how it misbehaves; ``requests`` is its log.

    ``cuts``: after how many bytes the next connections break, one after the other. ``stall_after`` that many bytes the
    connection stays silent until ``awake`` is set. ``lfs`` sends the client on to another host for the content, as the
    real Hub does for large files. ``announce`` gives the content that a file's ETag and size are taken from.
    """

    files: dict[str, bytes]
    status: int = 200
    error_code: str = ""
    announce: dict[str, bytes] = field(default_factory=dict)
    revisions: dict[str, str] = field(
        default_factory=lambda: {"main": COMMIT, COMMIT: COMMIT, OTHER_COMMIT: OTHER_COMMIT, PINNED: PINNED}
    )
    etags: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    stall_after: int | None = None
    awake: threading.Event = field(default_factory=threading.Event)
    ranges: list[str] = field(default_factory=list)
    lfs: bool = False
    tokens_of_lfs: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""

    def __post_init__(self) -> None:
        self.uploads = Uploads(self.files, COMMIT)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            if not hub.uploads.answer(self, hub.url):
                self.answer(body=True)

        do_POST = do_PUT = do_GET

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, *, body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            if self.path.startswith("/lfs/"):
                hub.tokens_of_lfs.add(self.headers.get("Authorization", ""))
                return self.content(hub.files[self.path.removeprefix("/lfs/")], body=body)
            hub.tokens.add(self.headers.get("Authorization", ""))
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
            if hub.status != 200:
                return self.fail(hub.status, hub.error_code)
            if not match or not any(name.startswith(f"{match[1]}/") for name in hub.files):
                return self.fail(404, "RepoNotFound")
            if match[2] not in hub.revisions:
                return self.fail(404, "RevisionNotFound")
            name = f"{match[1]}/{match[3]}"
            if name not in hub.files:
                return self.fail(404, "EntryNotFound")
            content = hub.files[name]
            announced = hub.announce.get(name, content)
            etag = hub.etags.get(name) or hashlib.sha256(announced).hexdigest()
            commit = hub.revisions[match[2]]
            if hub.lfs:
                self.send_response(302)
                self.send_header("Location", f"{hub.url.replace('127.0.0.1', 'localhost')}/lfs/{name}")
                self.send_header("X-Linked-ETag", f'"{etag}"')
                self.send_header("X-Linked-Size", str(len(announced)))
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            return self.content(content, body=body, headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit})

        def content(self, content: bytes, *, body: bool, headers: dict[str, str] | None = None) -> None:
            first = int(m[1]) if (m := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
            self.send_response(206 if first else 200)
            if first:
                hub.ranges.append(self.headers["Range"])
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.send_header("Accept-Ranges", "bytes")
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if not body:
                return
            rest = content[first:]
            if hub.cuts:
                self.wfile.write(rest[: hub.cuts.pop(0)])
                self.close_connection = True
                return
            if hub.stall_after is not None:
                self.wfile.write(rest[: hub.stall_after])
                self.wfile.flush()
                hub.awake.wait()
                rest = rest[hub.stall_after :]
            with suppress(OSError):  # The client may be gone.
                self.wfile.write(rest)

    return Handler


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """A running Hub with these files, at ``hub.url``."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.awake.set()
        server.shutdown()
        thread.join()
        server.server_close()
