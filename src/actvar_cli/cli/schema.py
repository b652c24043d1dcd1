"""actvar schema."""

from __future__ import annotations

import json


def schema() -> None:
    """Print the JSON schema of recipes, for editors.

    In VS Code: `actvar schema > recipe.schema.json`, then `# yaml-language-server: $schema=recipe.schema.json` as the
    first line of a recipe.
    """
    from actvar_cli.recipe.steps import Recipe

    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    print(json.dumps(made, indent=2, ensure_ascii=False), flush=True)
