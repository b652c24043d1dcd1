"""What several tests of this folder distil."""

from __future__ import annotations

import pytest

from actvar_cli.convert.convert import convert
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.model.sampling import ActVAR
from tests.tiny import tiny_model


def teacher_model() -> ActVAR:
    """A tiny model whose FFNs matter: with the weights it is born with, leaving experts out would change nothing."""
    model = tiny_model()
    for block in model.transformer.blocks:
        block.ffn.fc1.weight.data.mul_(4)
        block.ffn.fc2.weight.data.mul_(8)
    return model


@pytest.fixture(scope="module")
def converted() -> ActVAR:
    return convert(teacher_model(), ConvertSettings(experts=4, images=16)).model
