"""A field of the tree that holds an object named in a registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from varangian.registry import (
    ConfigError,
    Problem,
    Registry,
    construct,
    fields_of,
    named_in,
    plain,
    suggestion,
)

UNKNOWN = "there is no such setting"
Build = Callable[[Any, int], Any]
"""From what the user wrote and the declared f."""


@dataclass(frozen=True)
class Group:
    """For `Annotated`: how a name becomes an object and goes back to a file."""

    build: Build
    spec: Callable[[Any], Any]
    schema: Callable[[], JsonSchemaValue]
    default: str | None
    """The name that stands there when the user says nothing, if any."""
    none: bool = False
    """Whether null is a value."""
    named: bool = True
    """Whether a name chooses among several; otherwise the fields stand there by themselves."""
    below: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """Paths further down where a name stands for an object, with the name by default."""
    settings: tuple[str, ...] = ()
    """The fields of the objects, where they stand there by themselves."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validated,
            serialization=core_schema.plain_serializer_function_ser_schema(self._serialised),
        )

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = self.schema()
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]} if self.none else schema

    def _validated(self, value: Any, info: ValidationInfo) -> Any:
        if (value is None and self.none) or _is_built(value):
            return value
        if isinstance(value, tuple) and all(map(_is_built, value)):
            return value
        # An f that failed its own check is reported once, not again by every rule.
        declared = info.data.get("f")
        return self.build(value, declared if isinstance(declared, int) else 0)

    def _serialised(self, value: Any) -> Any:
        return None if value is None else self.spec(value)


def _is_built(value: Any) -> bool:
    """Whether a program, not a file, has put an object here."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def of_registry(registry: Registry[Any], default: str | None, *, none: bool = False) -> Group:
    """The group of everything in one registry."""
    from varangian.config.schema import below, named

    def build(value: Any, f: int) -> Any:
        if isinstance(value, str) and ":" in value and "custom" in registry:
            value = {"custom": {"target": value}}
        return registry.build(value, "", {"f": f})

    schema: Callable[[], JsonSchemaValue] = lambda: {"anyOf": named(registry)}  # noqa: E731
    return Group(build, registry.spec, schema, default, none, below=below(registry))


def many_of(registry: Registry[Any]) -> Group:
    """The group of a list of things in one registry, or of null."""
    from varangian.config.schema import named

    def build(value: Any, f: int) -> Any:
        given = [*value] if isinstance(value, list | tuple) else [value]
        built, problems = [], list[Problem]()
        for place, item in enumerate(given):
            named = {"custom": {"target": item}} if isinstance(item, str) and ":" in item else item
            try:
                built.append(registry.build(named, str(place)))
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return tuple(built)

    def spec(built: Any) -> list[Any]:
        return [registry.spec(one) for one in built]

    def schema() -> JsonSchemaValue:
        items = {"anyOf": named(registry)}
        return {"anyOf": [{"type": "array", "items": items}, *items["anyOf"]]}

    return Group(build, spec, schema, None, none=True, named=False)


def of_settings(registry: Registry[Any], default: str, last: Sequence[str] = ()) -> Group:
    """The group of everything in one registry, written as settings with a `name` among them.

    Args:
        registry: of which one is chosen.
        default: the name where none is written.
        last: fields that are written after the others.
    """
    from varangian.config.schema import settings_of

    known = {field.name: field for name in registry for field in registry.fields(name)}

    def build(value: Any, f: int) -> Any:
        given = {"name": value} if isinstance(value, str) else {} if value is None else value
        if not isinstance(given, Mapping):
            raise ConfigError([Problem("", "should be a mapping of settings to values", value)])
        name = given.get("name", default)
        if not isinstance(name, str) or name not in registry:
            rule = f"there is no {registry.kind} of this name"
            raise ConfigError([Problem("name", rule, name, suggestion(str(name), registry))])
        fields = {key: value for key, value in given.items() if key != "name"}
        if nested := [key for key in fields if key in registry]:
            hint = f"Write `name: {nested[0]}`, and its settings beside it."
            raise ConfigError([Problem(nested[0], UNKNOWN, fields[nested[0]], hint)])
        return construct(registry.entry(name)[0], fields, "", {}, UNKNOWN)

    def spec(built: Any) -> dict[str, Any]:
        ((name, fields),) = registry.spec(built).items()
        return {"name": name} | dict(sorted(fields.items(), key=lambda entry: entry[0] in last))

    below = {name: field.shown for name, field in known.items() if named_in(field.hint) is not None}
    schema: Callable[[], JsonSchemaValue] = lambda: settings_of(registry, default)  # noqa: E731
    return Group(build, spec, schema, None, named=False, below=below, settings=("name", *known))


def of_fields(cls: type[Any], kind: str) -> Group:
    """The group of one class, or of null: there is nothing to choose."""
    from varangian.config.schema import with_fields

    names = [field.name for field in fields_of(cls)]

    def build(value: Any, f: int) -> Any:
        if not isinstance(value, Mapping):
            rule = f"should be null, or the settings of {kind}: {', '.join(names)}"
            raise ConfigError([Problem("", rule, value)])
        return construct(cls, value, "", {})

    def spec(built: Any) -> dict[str, Any]:
        return {name: plain(getattr(built, name)) for name in names}

    return Group(
        build, spec, lambda: {"anyOf": [with_fields(cls, fields_of(cls))]}, None, none=True, named=False
    )
