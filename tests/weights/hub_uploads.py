"""What the small Hub does for a client that pushes: who asks, repositories, large files first, then one commit."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

TOKEN, USER, LAB = "hf_good", "me", "lab"


@dataclass
class Uploads:
    """``files``, ``commit`` and ``repos`` (whether each is private) as the Hub holds them; ``role`` is the token's.

    ``refuse`` maps the beginning of a path to the status with which it is answered.
    """

    files: dict[str, bytes]
    commit: str
    role: str = "write"
    repos: dict[str, bool] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def answer(self, handler: BaseHTTPRequestHandler, url: str) -> bool:
        """Answer a request, if it is one of a client that pushes."""
        routes: list[tuple[str, Callable[..., tuple[int, Any]]]] = [
            (r"GET /api/whoami-v2", self.whoami),
            (r"POST /api/validate-yaml", self.card),
            (r"POST /api/repos/create", self.create),
            (r"GET /api/models/([^/]+/[^/]+)", self.info),
            (r"POST /api/models/([^/]+/[^/]+)/preupload/main", self.modes),
            (r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            (r"PUT /upload/(\w+)", self.put),
            (r"POST /api/models/([^/]+/[^/]+)/commit/main", self.change),
        ]
        request = f"{handler.command} {handler.path}"
        for pattern, action in routes:
            if not (match := re.fullmatch(pattern, request)):
                continue
            body = _body(handler)
            self.log.append(request)
            status = next((s for start, s in self.refuse.items() if request.startswith(start)), 200)
            said: Any = {"error": "no"}
            if status == 200 and action != self.put and handler.headers.get("Authorization") != f"Bearer {TOKEN}":
                status = 401
            if status == 200:
                status, said = action(*match.groups(), **({"body": body} if body else {}), **_at(action, url))
            _send(handler, status, said)
            return True
        return False

    def whoami(self) -> tuple[int, Any]:
        orgs = [{"name": LAB, "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
        return 200, {"type": "user", "name": USER, "orgs": orgs, "auth": {"accessToken": {"role": self.role}}}

    def card(self, body: bytes) -> tuple[int, Any]:
        return 200, {"errors": [], "warnings": []}

    def create(self, body: bytes, url: str) -> tuple[int, Any]:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if self.exists(repo):
            return 409, {"error": "exists", "url": f"{url}/{repo}"}
        self.repos[repo] = asked.get("visibility") == "private"
        return 200, {"url": f"{url}/{repo}"}

    def info(self, repo: str) -> tuple[int, Any]:
        if not self.exists(repo):
            return 404, "RepoNotFound"
        names = [{"rfilename": name.removeprefix(f"{repo}/")} for name in self.files if name.startswith(f"{repo}/")]
        return 200, {"id": repo, "sha": self.commit, "private": self.repos.get(repo, False), "siblings": names}

    def modes(self, repo: str, body: bytes) -> tuple[int, Any]:
        paths = [file["path"] for file in json.loads(body)["files"]]
        large = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        return 200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in large.items()]}

    def batch(self, repo: str, body: bytes, url: str) -> tuple[int, Any]:
        objects = json.loads(body)["objects"]
        for one in objects:
            if one["oid"] not in self.blobs:
                one["actions"] = {"upload": {"href": f"{url}/upload/{one['oid']}"}}
        return 200, {"transfer": "basic", "objects": objects}

    def put(self, oid: str, body: bytes) -> tuple[int, Any]:
        assert hashlib.sha256(body).hexdigest() == oid
        self.blobs[oid] = body
        return 200, {}

    def change(self, repo: str, body: bytes, url: str) -> tuple[int, Any]:
        for line in body.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "header":
                if value.get("parentCommit") not in (None, self.commit):
                    return 412, {"error": "another commit came first"}
                self.messages.append(value["summary"])
            elif said["key"] == "file":
                self.files[f"{repo}/{value['path']}"] = base64.b64decode(value["content"])
            elif said["key"] == "lfsFile":
                self.files[f"{repo}/{value['path']}"] = self.blobs[value["oid"]]
            else:
                assert said["key"] == "deletedFile", said
                del self.files[f"{repo}/{value['path']}"]
        return 200, {"commitUrl": f"{url}/{repo}/commit/{self.commit}", "commitOid": self.commit}

    def exists(self, repo: str) -> bool:
        return repo in self.repos or any(name.startswith(f"{repo}/") for name in self.files)

    def of(self, repo: str) -> dict[str, bytes]:
        """The files of a repository."""
        return {name.removeprefix(f"{repo}/"): x for name, x in self.files.items() if name.startswith(f"{repo}/")}


def _at(action: Callable[..., Any], url: str) -> dict[str, str]:
    return {"url": url} if action.__name__ in ("create", "batch", "change") else {}


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    parts = []
    while size := int(handler.rfile.readline(), 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(parts)


def _send(handler: BaseHTTPRequestHandler, status: int, said: Any) -> None:
    data = json.dumps({"error": said} if isinstance(said, str) else said).encode()
    handler.send_response(status)
    if isinstance(said, str):
        handler.send_header("X-Error-Code", said)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
