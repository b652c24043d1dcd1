"""Telling file formats apart."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from actvar_cli.weights.checkpoint import TRANSFORMER_MARK, read_checkpoint


def test_a_safetensors_file_whose_header_length_begins_like_a_pickle_keeps_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for length in range(600):
        save_file({TRANSFORMER_MARK: torch.zeros(1)}, path, metadata={"note": "x" * length})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert read_checkpoint(path).metadata["note"] == "x" * length
