"""actvar schema."""

from __future__ import annotations

from tests.cli.conftest import Actvar


def test_the_schema_of_recipes(actvar: Actvar) -> None:
    done = actvar("schema")
    assert (done.code, done.err) == (0, "")
    schema = done.json
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["title"] == "actvar recipe"
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["version", "steps"]
    assert schema["$defs"]["DistillStep"]["properties"]["budget"]["exclusiveMaximum"] == 1
