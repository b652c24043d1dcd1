"""What pydantic finds wrong, in this program's words."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from actvar_cli.errors import InputError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


def in_words(error: ErrorDetails, key: str, known: list[str]) -> str:
    """One error as a message about ``key``; ``known`` are the keys that could stand in its place."""
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key!r}{did_you_mean(key, known)}"
    if kind == "missing":
        return f"{key!r} is missing"
    if kind == "literal_error":
        choices = str(context["expected"])
        options = [part.strip(" '") for part in choices.replace(" or ", ",").split(",")]
        return f"{key} must be {choices}, not {_shown(given)}{did_you_mean(str(given), options)}"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"{key} must hold keys, not {_shown(given)}"
    if kind == "tuple_type":
        return f"{key} must be a list, not {_shown(given)}"
    if kind == "too_short":
        return f"{key} must not be empty"
    if kind in ("byte_size", "byte_size_unit"):
        return f"{key} must be a size such as 500MB or 5GB, not {_shown(given)}"
    message = error["msg"].replace("Input should", "should").removeprefix("Value ")
    if kind.endswith("_type") or kind.endswith("_parsing"):
        # The first half says what was expected; how the parsing failed helps nobody.
        message = message.split(",")[0]
    return f"{key} {message.replace('should', 'must', 1)}, not {_shown(given)}"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        # Numbers are shown: that it is a list is not what is wrong with `--experts 1,2`.
        return str(value)
    if isinstance(value, dict | list):
        return "keys" if isinstance(value, dict) else "a list"
    return repr(value)


def is_echo(error: ErrorDetails) -> bool:
    """Whether the error only follows from others: a list counted short because its items were wrong."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def keys_of(annotation: Any, path: tuple[str | int, ...]) -> list[str]:
    """The keys that a model of type ``annotation`` takes at ``path``; none where it is no model."""
    if get_origin(annotation) is Annotated:
        return keys_of(get_args(annotation)[0], path)
    if get_origin(annotation) in (Union, UnionType):
        return next((keys for part in get_args(annotation) if (keys := keys_of(part, path))), [])
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return []
    fields = annotation.model_fields
    if not path:
        return list(fields)
    return keys_of(fields[path[0]].annotation, path[1:]) if path[0] in fields else []


def checked(model: type[Model], values: Mapping[str, Any], names: Mapping[str, str]) -> Model:
    """``model`` made from what the user chose on the command line.

    ``names`` gives the option for each field that is not called like its option. Raises InputError naming the options.
    """
    try:
        return model(**values)
    except ValidationError as error:
        lines = []
        for details in error.errors():
            if is_echo(details):
                continue
            field = str(details["loc"][0]) if details["loc"] else ""
            lines.append(in_words(details, names.get(field, f"--{field.replace('_', '-')}"), []))
        raise InputError("\n".join(lines)) from error
