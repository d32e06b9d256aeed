"""JSON Schema (draft 2020-12) of the registries: names, and the fields of each.

pydantic makes the schemas, here of each class; `settings` makes the schema of all settings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from varangian.registry import MISSING, Field, Registry, named_in, validator

JsonSchema = dict[str, Any]
OWN = r"[\w.]+:[\w.]+"
"""The pattern of code of the user, `module:Class`."""
TARGET = f"^{OWN}$"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
NESTED = "nested"
"""Stands in a schema for the names of a registry in which these names are nested; see `with_references`."""


def names_schema(registry: Registry[Any]) -> list[JsonSchema]:
    """Alternatives for a name of a registry: the names alone, and each name with its fields."""
    names = {"enum": list(registry), "description": f"{registry.expected.capitalize()}."}
    return [names, *(_named_schema(registry, name) for name in registry), *_own_schema(registry)]


def _own_schema(registry: Registry[Any]) -> list[JsonSchema]:
    """Alternatives for code of the user: `module:Class`, and the same with its fields."""
    if registry.own is None and "custom" not in registry:
        return []
    what = "function" if registry.own is None else "Class"
    fields: JsonSchema = {
        "type": ["object", "null"],
        "description": f"The settings of that {what.lower()}.",
    }
    return [
        {"type": "string", "pattern": TARGET, "description": f"Your own, as `module:{what}`."},
        {
            "type": "object",
            "title": f"module:{what}",
            "patternProperties": {TARGET: fields},
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        },
    ]


def nested_groups(registry: Registry[Any]) -> dict[str, str | None]:
    """Fields of registered classes whose value is a name itself, as `name.field`, with the default."""
    return {
        f"{name}.{field.name}": None if field.default is MISSING else field.short_default
        for name in registry
        for field in registry.fields(name)
        if named_in(field.hint) is not None
    }


def nests_itself(registry: Registry[Any]) -> bool:
    """Whether a name of a registry can stand in a field of another name of it."""
    return any(named_in(field.hint) is registry for name in registry for field in registry.fields(name))


def with_references(schema: JsonSchema, *registries: Registry[Any]) -> JsonSchema:
    """A whole schema, in which fields for names of these registries refer to one definition of each.

    pydantic would take references for its own, so they are left to the end.
    """
    kinds = {registry.kind: {"anyOf": names_schema(registry)} for registry in registries}

    def refer(node: Any) -> Any:
        if isinstance(node, list):
            return [*map(refer, node)]
        if not isinstance(node, dict):
            return node
        tree = cast("JsonSchema", node)
        if NESTED in tree:
            return {"$ref": f"#/$defs/{tree[NESTED]}"}
        return {key: refer(value) for key, value in tree.items()}

    return cast("JsonSchema", refer({**schema, "$defs": {**schema.get("$defs", {}), **kinds}}))


class _Generator(GenerateJsonSchema):
    """Schemas of fields without titles and defaults, with alternatives for names of registries."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchema:
        return self.generate_inner(schema["schema"])  # defaults depend on the name, see `_field`

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchema:
        return {"enum": schema["expected"]}

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchema:
        marks = schema.get("metadata", {})
        registry: Registry[Any] = marks["registry"]
        names = [{NESTED: registry.kind}] if nests_itself(registry) else names_schema(registry)
        return {"anyOf": [*names, {"type": "null"}] if marks["none"] else names}


def _properties(cls: type[Any]) -> dict[str, JsonSchema]:
    """The schemas of the fields of a class, with the docstrings under them as one line each."""
    schemas: dict[str, JsonSchema] = validator(cls).json_schema(schema_generator=_Generator)["properties"]
    base = next((base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)), None)
    inherited = {} if base is None else field_docs(base)  # pydantic reads those of the class itself
    for name, schema in schemas.items():
        if docs := " ".join(schema.get("description", inherited.get(name, "")).split()):
            schema["description"] = docs
    return schemas


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a class, as one line each."""
    return {
        name: schema["description"] for name, schema in _properties(cls).items() if "description" in schema
    }


def fields_schema(cls: type[Any], fields: Sequence[Field]) -> JsonSchema:
    """The schema of an object with the fields of a class."""
    schemas = _properties(cls)
    return {
        "type": "object",
        "description": (cls.__doc__ or "").partition("\n")[0],
        "properties": {field.name: _field(field, schemas[field.name]) for field in fields},
        "required": [field.name for field in fields if field.default is MISSING],
        "additionalProperties": False,
    }


def settings_schema(registry: Registry[Any], default: str) -> JsonSchema:
    """Alternatives for fields with a `name` among them: the name alone, or the fields of each class.

    The fields may stand below the name, too.
    """
    names = names_schema(registry)[0]
    kinds = list[JsonSchema]()
    for name in registry:
        fields = fields_schema(registry.entry(name)[0], registry.fields(name))
        properties = {"name": {"enum": [name]}, **fields["properties"]}
        required = [] if name == default else ["name"]
        kinds.append({**fields, "title": name, "properties": properties, "required": required})
    return {"anyOf": [names, *kinds, *(_named_schema(registry, name) for name in registry)]}


def _named_schema(registry: Registry[Any], name: str) -> JsonSchema:
    cls, _ = registry.entry(name)
    fields = fields_schema(cls, registry.fields(name))
    # A mixing or a rule need not be told the f of the run.
    inside: JsonSchema = {
        **fields,
        "required": [],
        "type": ["object", "null"],
        "description": registry.summary(name),
    }
    return {
        "type": "object",
        "title": name,
        "properties": {name: inside},
        "required": [name],
        "additionalProperties": False,
    }


def _field(field: Field, schema: JsonSchema) -> JsonSchema:
    default = field.short_default
    representable = not (isinstance(default, float) and not math.isfinite(default))
    return schema | ({"default": default} if field.default is not MISSING and representable else {})
