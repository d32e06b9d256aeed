"""Helpers of the tests of configurations."""

import re
from functools import cache

import pytest

from varangian.config import load
from varangian.config.settings import json_schema
from varangian.registry import ConfigError


def problems(*overrides, file=None):
    with pytest.raises(ConfigError) as error:
        load(file, overrides)
    return {problem.path: str(problem) for problem in error.value.problems}


class Schema:
    """As much of JSON Schema as ours uses."""

    def __init__(self, schema):
        self.root = schema

    def accepts(self, value, schema=None):
        schema = self.root if schema is None else schema
        if "$ref" in schema:
            schema = self.root["$defs"][schema["$ref"].rpartition("/")[2]] | {"$ref": None}
            schema.pop("$ref")
        if "anyOf" in schema and not any(self.accepts(value, option) for option in schema["anyOf"]):
            return False
        if "const" in schema and value != schema["const"]:
            return False
        if "enum" in schema and value not in schema["enum"]:
            return False
        if "type" in schema and not self._is(value, schema["type"]):
            return False
        if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
            return False
        if isinstance(value, list):
            return all(self.accepts(item, schema.get("items", {})) for item in value)
        return self._object(value, schema) if isinstance(value, dict) else True

    def _is(self, value, kinds):
        python = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
        python |= {"integer": int, "number": int | float}
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if isinstance(value, bool):
            return "boolean" in kinds
        return any(isinstance(value, python[kind]) for kind in kinds)

    def _object(self, value, schema):
        known = dict(schema.get("properties", {}))
        for pattern, below in schema.get("patternProperties", {}).items():
            known |= {key: below for key in value if key not in known and re.search(pattern, key)}
        if schema.get("additionalProperties") is False and not set(value) <= set(known):
            return False
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            return False
        return set(schema.get("required", ())) <= set(value) and all(
            self.accepts(item, known.get(key, {})) for key, item in value.items()
        )


@cache
def accepted():
    """The schema of everything."""
    return Schema(json_schema())
