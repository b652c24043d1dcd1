"""What a name on the Hub stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actvar_cli.errors import ActvarError
from actvar_cli.weights import hub_model as module
from actvar_cli.weights.hub_model import hub_model
from actvar_cli.weights.shards import INDEX
from actvar_cli.weights.zoo import HubFile


def test_shards_that_are_here_are_found_while_the_network_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = tmp_path / "abc"
    commit.mkdir()
    (commit / "model-00001-of-00001.safetensors").touch()
    (commit / INDEX).write_text(json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}))

    def cached(file: HubFile, **_: Any) -> Path:
        if not (commit / file.file).exists():
            raise ActvarError("connection refused")
        return commit / file.file

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "hub_file", cached)
    monkeypatch.setattr(module, "here", lambda file: commit / file.file)
    assert hub_model("hf://me/tiny")[1] == commit / INDEX
    monkeypatch.setattr(module, "here", lambda _: None)
    with pytest.raises(ActvarError, match="connection refused"):
        hub_model("hf://me/tiny")
