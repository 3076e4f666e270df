"""Settings as query parameters, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from parallm_openai.setting_types import Settings


def query_parameters(model: type[Settings]) -> list[dict[str, Any]]:
    """A parameter for each field, which may be left out."""
    parameters = []
    for name, schema in model.model_json_schema()["properties"].items():
        # A setting that is left out keeps the value that it has, and not its default.
        described = {key: value for key, value in schema.items() if key not in ("default", "description", "title")}
        parameters.append(
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": schema["description"],
                "schema": described,
            }
        )
    return parameters
