"""Fetching through the Hub's real client, in a process of its own as its environment is read once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPO = "FoundationVision/var"
# What begins like safetensors is not converted: most of what can go wrong has nothing to do with that.
MODEL = (2).to_bytes(8, "little") + b"{}" + b"the transformer" * 20_000
VAE = (2).to_bytes(8, "little") + b"{}" + b"the tokenizer" * 1000
CHUNK = 1 << 16
"""Bytes that the client writes at a time here; 10 MiB otherwise."""

FETCH = """
import io, os, shutil, signal, sys, time
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from actvar_cli.errors import ActvarError
from actvar_cli.progress import Progress, Task
from actvar_cli.weights import fetch, zoo

name, model, vae, old, *flags = sys.argv[1:]
given = dict(flag.partition("=")[::2] for flag in flags)
entry = zoo.KNOWN["var-d16"]
zoo.KNOWN["var-d16"] = replace(
    entry,
    transformer=replace(entry.transformer, sha256=model, superseded=(old,)),
    tokenizer=replace(entry.tokenizer, sha256=vae),
)
signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored where the tests run in a shell's background.
time.sleep = lambda seconds: None  # The client waits between its tries.
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 16

if "free" in given:
    shutil.disk_usage = lambda path: namedtuple("Usage", "free")(int(given["free"]))

class Full(io.BufferedWriter):
    def write(self, data):
        if self.tell() + len(data) > int(given["full"]):
            raise OSError(28, "No space left on device")
        return super().write(data)

if "full" in given:
    plain = Path.open
    Path.open = lambda self, *how, **more: (
        Full(plain(self, *how, **more).detach()) if self.suffix == ".incomplete" else plain(self, *how, **more)
    )

class Told(Progress):
    @contextmanager
    def task(self, label, total):
        task = Told.Task()
        yield task
        if "progress" in given:
            print(f"{label}: {task.done} of {total}")

    class Task(Task):
        done = 0
        def advance(self, units=1, note=""):
            self.done += units

    def say(self, message):
        print(f"said: {message}", flush=True)

try:
    print(fetch.fetch(name, force="force" in given, progress=Told()))
except ActvarError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_code)
"""


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def environment(home: Path, url: str, **more: str) -> dict[str, str]:
    return {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", **more}


def command(name: str, flags: Sequence[str], sha256: str, old: str, vae: str = sha(VAE)) -> list[str]:
    return [sys.executable, "-c", FETCH, name, sha256, vae, old, *flags]


def run(
    home: Path,
    url: str,
    name: str = "var-d16",
    *flags: str,
    sha256: str = sha(MODEL),
    vae: str = sha(VAE),
    old: str = "?",
    **env: str,
) -> tuple[int, list[str]]:
    """Exit code and lines of a fetch; whatever the library says besides must not exist."""
    done = subprocess.run(
        command(name, flags, sha256, old, vae),
        env=environment(home, url, **env),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def start(home: Path, url: str, name: str = "var-d16", **env: str) -> subprocess.Popen[str]:
    """A fetch that is left to itself."""
    return subprocess.Popen(
        command(name, (), sha(MODEL), "?"),
        env=environment(home, url, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def whole(home: Path, content: bytes) -> list[Path]:
    """Whatever under ``home`` has this content."""
    return [p for p in home.rglob("*") if p.is_file() and p.read_bytes() == content]


def partials(home: Path) -> list[Path]:
    return list(home.rglob("*.incomplete"))
