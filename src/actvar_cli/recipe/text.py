"""YAML text as plain data that remembers where everything stood.

Scalars are read by YAML 1.2's core schema, which closes PyYAML's traps: ``1e-4`` is a number, ``no`` and ``1:30`` are
text, ``010`` is ten, and a key that stands twice is an error instead of the last one winning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

Place = tuple[str | int, ...]
"""Where a value is in the data: keys and indices from the root."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``where`` is ``file:line:column`` or the ``--set`` it came from."""

    where: str
    message: str

    def __str__(self) -> str:
        """As one line."""
        return f"{self.where}: {self.message}"


@dataclass
class Document:
    """Plain data, and where each of its keys and values stood, ready to show."""

    file: str
    data: Any = None
    keys: dict[Place, str] = field(default_factory=dict)
    values: dict[Place, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def where(self, path: Place, *, key: bool = False) -> str:
        """The position of the value at ``path`` (of its key if asked), or of the nearest thing around it."""
        if key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, self.file)


class _Loader(yaml.SafeLoader):
    """Splits text into nodes; which type a plain scalar has is decided by `_scalar` alone."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the name and shape are PyYAML's


_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}
_MERGE = "<<"
_MOST_DIGITS = 100

_INTEGER = re.compile(r"[-+]?[0-9]+")
_PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **{word: None for word in ("", "~", "null", "Null", "NULL")},
    **{word: True for word in ("true", "True", "TRUE")},
    **{word: False for word in ("false", "False", "FALSE")},
    **{word: math.inf for word in (".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF")},
    **{word: -math.inf for word in ("-.inf", "-.Inf", "-.INF")},
    **{word: math.nan for word in (".nan", ".NaN", ".NAN")},
}


def _scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        # Of more digits it is no number that anything here could be.
        return int(text) if len(text) <= _MOST_DIGITS else text
    if _PREFIXED.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def parse(text: str, file: str) -> Document:
    """Read ``text``; whatever is wrong with it as YAML is in the document's ``problems``."""
    return _parse(text, file, lambda mark: f"{file}:{mark.line + 1}:{mark.column + 1}")


def parse_value(text: str, where: str) -> Document:
    """Read ``text`` as the value of a ``--set``; every position in it is ``where``."""
    return _parse(text, where, lambda _: where)


def _parse(text: str, file: str, position: Callable[[yaml.Mark], str]) -> Document:
    document = Document(file)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        # What went wrong is at the problem's mark; what it was part of, if anything, is the context.
        mark = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part)
        document.problems.append(Problem(position(mark) if mark else file, f"not YAML: {message}"))
        return document
    except yaml.YAMLError as error:
        document.problems.append(Problem(file, f"not YAML: {' '.join(str(error).split())}"))
        return document
    except RecursionError:
        document.problems.append(Problem(file, "not a recipe: one thing inside another, too many times"))
        return document
    if root is not None:
        document.data = _Walk(document, position).plain(root, (), ())
    return document


class _Walk:
    def __init__(self, document: Document, position: Callable[[yaml.Mark], str]) -> None:
        self.document, self.position = document, position

    def complain(self, node: yaml.Node, message: str) -> None:
        self.document.problems.append(Problem(self.position(node.start_mark), message))

    def plain(self, node: yaml.Node, path: Place, around: tuple[int, ...]) -> Any:
        """The node as plain data; ``around`` holds the nodes it is inside of."""
        self.document.values[path] = self.position(node.start_mark)
        if id(node) in around:
            self.complain(node, "an alias inside the very thing it stands for")
            return None
        if node.tag not in _TAGS:
            self.complain(node, f"the tag {node.tag} has no meaning here")
            return None
        around = (*around, id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, around)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(child, (*path, i), around) for i, child in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return node.value if node.style else _scalar(node.value)

    def mapping(self, node: yaml.MappingNode, path: Place, around: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key == _MERGE:
                self.complain(key_node, "merge keys are not supported" if key else "a key must be a word")
                continue
            if key in result:
                first = self.document.keys[*path, key].removeprefix(f"{self.document.file}:")
                self.complain(key_node, f"key {key!r} stands twice, first at {first}")
                continue
            self.document.keys[*path, key] = self.position(key_node.start_mark)
            result[key] = self.plain(value_node, (*path, key), around)
        return result
