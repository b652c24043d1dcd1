from __future__ import annotations

import re

import pytest

from actvar_cli.errors import InputError
from actvar_cli.weights.zoo import KNOWN, HubFile, entry_of


def test_names_are_those_of_the_readme() -> None:
    assert list(KNOWN) == ["var-fashion", "var-fashion-actvar", "var-d16", "var-d20", "var-d24", "var-d30", "var-d36"]
    assert [entry.fid for entry in KNOWN.values()] == [None, None, 3.55, 2.95, 2.33, 1.97, 2.63]
    assert [entry.embedded for entry in KNOWN.values()] == [True, True, False, False, False, False, False]


def test_digests_are_digests() -> None:
    files = [f for entry in KNOWN.values() for f in (entry.transformer, entry.tokenizer) if isinstance(f, HubFile)]
    assert len(files) == 10
    assert all(re.fullmatch("[0-9a-f]{64}", f.sha256) and re.fullmatch("[0-9a-f]{40}", f.revision) for f in files)


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"unknown model 'd16' \(did you mean 'var-d16'\?\)"):
        entry_of("d16")
