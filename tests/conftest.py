"""What every test relies on, set before anything is imported that reads it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# No test reaches the real Hub or the user's cache.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="actvar-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "ACTVAR_DEBUG"):
    os.environ.pop(name, None)

# Processes that tests start run the same source as the tests themselves.
os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent / "src")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dense.safetensors and compressed.safetensors."""
    from tests.recipe import tiny_files  # the package only now: the environment above comes first

    folder = tmp_path_factory.mktemp("models")
    tiny_files.save_dense(folder)
    tiny_files.save_compressed(folder)
    return folder
