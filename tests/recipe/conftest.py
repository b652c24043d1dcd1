from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe import tiny_files


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dense.safetensors and compressed.safetensors."""
    folder = tmp_path_factory.mktemp("models")
    tiny_files.save_dense(folder)
    tiny_files.save_compressed(folder)
    return folder
