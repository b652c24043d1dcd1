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
    export = schema["$defs"]["ExportStep"]["properties"]
    assert export["format"]["enum"] == ["actvar", "var"]
    assert {kind["type"] for kind in export["shard_size"]["anyOf"]} == {"string", "integer"}
    assert schema["$defs"]["DistillStep"]["properties"]["budget"]["exclusiveMaximum"] == 1
