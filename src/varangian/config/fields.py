"""Fields of the tree of settings that hold objects of registries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from varangian.own_classes import names_class
from varangian.plugins import InputError
from varangian.registry import (
    ConfigError,
    Problem,
    Registry,
    construct,
    fields_of,
    is_target,
    named_in,
    suggestion,
    to_plain,
)

UNKNOWN = "there is no such setting"
NOTHING = ("none", "no", "nothing", "off", "false")
"""Words that are typed for null, in lower case."""
Build = Callable[[Any, int], Any]
"""An object from the value of a setting and the declared f."""


@dataclass(frozen=True)
class Group:
    """For `Annotated`: builds the object of a setting, and writes it to a configuration again."""

    build: Build
    spec: Callable[[Any], Any]
    schema: Callable[[], JsonSchemaValue]
    default: str | None
    """The name that is the default, if any."""
    none: bool = False
    """Whether null is a value."""
    named: bool = True
    """Whether the value is a name, perhaps with fields below it; otherwise it is the fields."""
    below: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """Paths below this one whose value is a name of a registry, with the default name."""
    settings: tuple[str, ...] = ()
    """The fields, where the value is the fields."""
    fit: Build = field(default=lambda built, f: built)
    """Makes the object of the setting from one that a program gave in its place."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(self._serialise),
        )

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = self.schema()
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]} if self.none else schema

    def _validate(self, value: Any, info: ValidationInfo) -> Any:
        # An f that failed its own check is reported once, not again by every rule.
        declared = info.data.get("f")
        f = declared if isinstance(declared, int) else 0
        if value is None and self.none:
            return value
        if self.none and isinstance(value, str) and value.lower() in NOTHING:
            raise ConfigError([Problem("", "should be null where none is meant", value)])
        if _is_built(value) or (isinstance(value, tuple) and value and all(map(_is_built, value))):
            return self._named(self.fit(value, f))
        return self.build(value, f)

    def _named(self, built: Any) -> Any:
        """An object that a program gave, if a configuration can name it."""
        try:
            self.spec(built)
        except (KeyError, InputError) as error:
            rule = "should be of a class or function that is found as module:Class, at the top of a module"
            raise ConfigError([Problem("", rule, type(built).__qualname__)]) from error
        return built

    def _serialise(self, value: Any) -> Any:
        return None if value is None else self.spec(value)


def _is_built(value: Any) -> bool:
    """Whether the value is an object already, from a program and not from a file."""
    written = (str, bytes, int, float, Mapping, list, tuple, set, type, type(None))
    return not isinstance(value, written)


def of_registry(registry: Registry[Any], default: str | None, *, none: bool = False) -> Group:
    """A setting whose value is a name of a registry, or a name with its fields."""
    from varangian.config.schema import names_schema, nested_groups

    def build(value: Any, f: int) -> Any:
        return registry.build(_as_custom(registry, value), "", {"f": f})

    schema: Callable[[], JsonSchemaValue] = lambda: {"anyOf": names_schema(registry)}  # noqa: E731
    return Group(build, registry.spec, schema, default, none, below=nested_groups(registry))


def _as_custom(registry: Registry[Any], value: Any) -> Any:
    """`module:function`, or that with its options, as the `custom` of a registry that has one.

    A class of the user stays as it is where the registry takes classes.
    """
    target: Any = value
    options: Any = None
    if isinstance(value, Mapping) and len(value) == 1:
        ((target, options),) = value.items()
    if not is_target(target) or "custom" not in registry:
        return value
    if registry.own is not None and names_class(target):
        return value
    return {"custom": {"target": target} | ({} if options is None else {"options": options})}


def many_of(registry: Registry[Any]) -> Group:
    """A setting whose value is a list of names of a registry, or null."""
    from varangian.config.schema import names_schema

    def build(value: Any, f: int) -> Any:
        given = [*value] if isinstance(value, list | tuple) else [value]
        built, problems = [], list[Problem]()
        for place, item in enumerate(given):
            try:
                new = _is_built(item)
                built.append(item if new else registry.build(_as_custom(registry, item), str(place)))
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return tuple(built)

    def spec(built: Any) -> list[Any]:
        return [registry.spec(one) for one in built]

    def schema() -> JsonSchemaValue:
        items = {"anyOf": names_schema(registry)}
        return {"anyOf": [{"type": "array", "items": items}, *items["anyOf"]]}

    return Group(build, spec, schema, None, none=True, named=False)


def beside_name(value: Any, registry: Registry[Any]) -> Any:
    """The settings of a class with its `name` among them, from below it too, as in {adam: {lr: 1}}."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping) or "name" in value:
        return value
    names = [key for key in value if isinstance(key, str) and key in registry]
    below = value[names[0]] if len(names) == 1 else ""
    if below is not None and not isinstance(below, Mapping):
        return value
    beside = {key: setting for key, setting in value.items() if key not in registry}
    return {"name": names[0], **(below or {}), **beside}


def of_settings(registry: Registry[Any], default: str, last: Sequence[str] = ()) -> Group:
    """A setting whose value is the fields of a class of a registry, with its `name` among them.

    Args:
        registry: with the classes.
        default: the name where none is given.
        last: fields that a configuration has after the others.
    """
    from varangian.config.schema import settings_schema

    known = {field.name: field for name in registry for field in registry.fields(name)}

    def build(value: Any, f: int) -> Any:
        given = beside_name({} if value is None else value, registry)
        if not isinstance(given, Mapping):
            raise ConfigError([Problem("", "should be a mapping of settings to values", value)])
        name = given.get("name", default)
        if not isinstance(name, str) or name not in registry:
            rule = f"there is no {registry.kind} of this name"
            raise ConfigError([Problem("name", rule, name, suggestion(str(name), registry))])
        fields = {key: value for key, value in given.items() if key != "name"}
        if nested := [key for key in fields if key in registry]:
            hint = f"Write `name: {nested[0]}`, and its settings beside it or below its name."
            raise ConfigError([Problem(nested[0], UNKNOWN, fields[nested[0]], hint)])
        return construct(registry.entry(name)[0], fields, "", {}, UNKNOWN)

    def spec(built: Any) -> dict[str, Any]:
        ((name, fields),) = registry.spec(built).items()
        return {"name": name} | dict(sorted(fields.items(), key=lambda entry: entry[0] in last))

    below = {name: field.short_default for name, field in known.items() if named_in(field.hint) is not None}
    schema: Callable[[], JsonSchemaValue] = lambda: settings_schema(registry, default)  # noqa: E731
    return Group(build, spec, schema, None, named=False, below=below, settings=("name", *known))


def of_fields(cls: type[Any], kind: str) -> Group:
    """A setting whose value is the fields of one class, or null."""
    from varangian.config.schema import fields_schema

    names = [field.name for field in fields_of(cls)]

    def build(value: Any, f: int) -> Any:
        if not isinstance(value, Mapping):
            rule = f"should be null, or the settings of {kind}: {', '.join(names)}"
            raise ConfigError([Problem("", rule, value)])
        return construct(cls, value, "", {})

    def spec(built: Any) -> dict[str, Any]:
        return {name: to_plain(getattr(built, name)) for name in names}

    return Group(
        build, spec, lambda: {"anyOf": [fields_schema(cls, fields_of(cls))]}, None, none=True, named=False
    )
