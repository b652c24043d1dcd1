"""YAML with positions, its traps closed."""

from __future__ import annotations

import pytest

from actvar_cli.recipe.text import parse, parse_value


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("0x10", 16),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ('"1e-4"', "1e-4"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_values_are_what_they_look_like(written: str, read: object) -> None:
    document = parse_value(written, "--set x")
    assert document.problems == []
    assert document.data == read
    assert type(document.data) is type(read)


def test_positions_of_keys_and_values() -> None:
    document = parse("a: 1\nsteps:\n  - step: convert\n    experts:   8\n", "r.yaml")
    assert document.where(("steps", 0, "experts")) == "r.yaml:4:16"
    assert document.where(("steps", 0, "experts"), key=True) == "r.yaml:4:5"
    # What is not there stands where it would have to.
    assert document.where(("steps", 0, "method")) == "r.yaml:3:5"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3:1: key 'a' stands twice, first at 1:1"),
        ("a: !!python/name:os.x 1\n", "r.yaml:1:4: the tag tag:yaml.org,2002:python/name:os.x has no meaning here"),
        ("a: &x {b: 1}\n<<: *x\n", "r.yaml:2:1: merge keys are not supported"),
        ("? [1]\n: 2\n", "r.yaml:1:3: a key must be a word"),
        ("[" * 2000, "r.yaml: not a recipe: one thing inside another, too many times"),
        ("a: &x [*x]\n", "r.yaml:1:4: an alias inside the very thing it stands for"),
        (
            "a: 1\n---\nb: 2\n",
            "r.yaml:2:1: not YAML: expected a single document in the stream, but found another document",
        ),
        ("a: [1\nb: 2\n", "r.yaml:2:2: not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        (
            "a:\n\tb: 1\n",
            "r.yaml:2:1: not YAML: while scanning for the next token, "
            "found character '\\t' that cannot start any token",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_position(text: str, problem: str) -> None:
    assert [str(p) for p in parse(text, "r.yaml").problems] == [problem]


def test_an_alias_is_what_it_stands_for() -> None:
    assert parse("a: &x {b: 1}\nc: *x\n", "r.yaml").data == {"a": {"b": 1}, "c": {"b": 1}}
