"""Triton's kernels run on the CPU here, by its interpreter; what it has decorated once it interprets ever after."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator

import pytest

from actvar_cli.model import dispatch, kernels
from actvar_cli.model.kernels import usable

if usable.INSTALLED:
    if "triton" in sys.modules:
        raise RuntimeError("Triton was imported before it is told to interpret: by another test module, at its top")
    os.environ["TRITON_INTERPRET"] = "1"
    importlib.reload(usable)
    for module in pkgutil.iter_modules(kernels.__path__, kernels.__name__ + "."):
        importlib.import_module(module.name)
    # Only here: other tests, and processes that tests start, do as users' do.
    del os.environ["TRITON_INTERPRET"]
    usable.INTERPRETED = False


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels are used on the CPU, and tiles however few tokens there are."""
    if not usable.INSTALLED:
        pytest.skip("Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(usable, "INTERPRETED", True)
    monkeypatch.setattr(dispatch, "TILES_FROM", 0)
    yield
