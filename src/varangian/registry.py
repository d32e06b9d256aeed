"""Registries: classes by the names that a configuration uses, and errors of configurations.

A registered class is a frozen dataclass, and its fields are its settings. `Registry.build` makes an object
of what a user wrote (`krum`, or `{krum: {select: 3}}`); pydantic checks the values. Anything else is
refused with the path, the value found, the rule it breaks and, where one is similar, the name that was
meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import CoreSchema, ErrorDetails

T = TypeVar("T")
C = TypeVar("C")
MISSING: Any = dataclasses.MISSING
NOTHING: Any = object()
"""The value of a setting that is missing; None is a value."""


SHOWN = 300
"""Most characters of a value in a message."""
STRICT: dict[str, Any] = {
    "extra": "forbid",
    "strict": True,
    "use_attribute_docstrings": True,
    "arbitrary_types_allowed": True,
}
"""The configuration of pydantic for registered dataclasses."""
LIMITS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}
"""Errors of pydantic about the size of a value of the right type."""
FIXES = "{fixes}"
"""Placeholder for the fixes of a problem in its hint."""


@dataclasses.dataclass(frozen=True)
class Fix:
    """A change of one setting that may solve a problem."""

    path: str
    values: tuple[Any, ...]
    """Values to try, in order; the first that works is suggested."""
    name: str = ""
    """The name that the user types in place of the path, if it differs."""
    bare: bool = False
    """Whether the value alone is shown, because it belongs where the problem is."""

    def as_typed(self, value: Any) -> str:
        """The change as a user types it: `path=value`."""
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        return text if self.bare else f"{self.name or self.path}={text}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One error of a configuration."""

    path: str
    """The setting: `aggregator.rule.krum.f`."""
    rule: str
    """The rule that was not kept, as a sentence without the path."""
    value: Any = NOTHING
    """The value found; NOTHING where a setting is missing."""
    hint: str = ""
    """Advice, as a sentence; `FIXES` is replaced by the fixes."""
    fixes: tuple[Fix, ...] = ()
    """Suggestions; the reader of a configuration keeps those that work (`with_fixes`)."""

    def __str__(self) -> str:
        found = "" if self.value is NOTHING else f" Found {format_value(self.value)}."
        hint = self.with_fixes([fix.as_typed(fix.values[0]) for fix in self.fixes if fix.values]).hint
        stop = "" if self.rule.endswith("?") else "."
        return f"{self.path or '(top level)'}: {self.rule}{stop}{found}{f' {hint}' if hint else ''}"

    def below(self, path: str) -> Problem:
        """The problem of a part, with the path of the part before its own."""

        def here(inner: str) -> str:
            return join(path, inner) if inner else path

        fixes = tuple(dataclasses.replace(fix, path=here(fix.path)) for fix in self.fixes)
        return dataclasses.replace(self, path=here(self.path), fixes=fixes)

    def with_fixes(self, by: Sequence[str]) -> Problem:
        """The problem with these fixes in its hint; without that clause of the hint where there is none."""
        if FIXES not in self.hint:
            return dataclasses.replace(self, fixes=())
        hint = self.hint.replace(FIXES, " or ".join(by))
        if not by:
            before = self.hint[: self.hint.index(FIXES)]
            kept = before[: max(before.rfind(": "), before.rfind(". "), 0)]
            hint = f"{kept.rstrip('.')}." if kept else ""
        return dataclasses.replace(self, hint=hint, fixes=())


def format_value(value: Any) -> str:
    """A value as it stands in a message, cut after `SHOWN` characters."""
    text = repr(value[:SHOWN] if isinstance(value, str | bytes | list | tuple) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def fixes(**values: Any) -> tuple[Fix, ...]:
    """Fixes that each set one setting to a value; `__` in a name stands for the dot."""
    return tuple(Fix(path.replace("__", "."), (value,)) for path, value in values.items())


class ConfigError(ValueError):
    """A configuration that cannot be used, with every problem found in it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def suggestion(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'f'?`, or the list of known names."""
    known = sorted(known)
    by_lowercase = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lowercase, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {by_lowercase[near[0]]!r}?"
    return f"Known: {', '.join(known)}." if known else ""


def join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting of a registered class."""

    name: str
    hint: Any
    """The type as annotated; with `Annotated[Graph, GRAPHS]` the value is a name of that registry, with
    `Annotated[Graph | None, GRAPHS]` or null."""
    default: Any
    """MISSING when the user must give it."""

    def to_config(self, value: Any) -> Any:
        """A value of this field as it stands in a configuration file."""
        registry = named_in(self.hint)
        return to_plain(value) if registry is None or value is None else registry.spec(value)

    @property
    def short_default(self) -> Any:
        """The default, of an object its name alone."""
        written = self.default if self.default is MISSING else self.to_config(self.default)
        return written if named_in(self.hint) is None or written in (MISSING, None) else next(iter(written))


class OwnClasses(Protocol):
    """The classes of the user that a registry takes, as `module:Class`."""

    def find(self, target: str, /) -> type[Any]:
        """The class of this name.

        Raises:
            ValueError: there is none, or it is of another kind.
        """
        ...

    def fields(self, cls: type[Any], /) -> tuple[Field, ...]:
        """The settings of a class."""
        ...

    def target(self, cls: type[Any], /) -> str | None:
        """The name of a class; None if it cannot be found under one."""
        ...

    def build(
        self, target: str, fields: Mapping[str, Any], path: str, defaults: Mapping[str, Any], /
    ) -> Any:
        """An object; see `Registry.build`."""
        ...


class Registry(Generic[T]):
    """The classes of one kind that can be named in a configuration.

    Args:
        kind: for messages, as `graph`.
        own: takes classes of the user by `module:Class`; None where there are only those registered here.
    """

    def __init__(self, kind: str, own: OwnClasses | None = None) -> None:
        self.kind = kind
        self.own = own
        self._entries: dict[str, tuple[type[T], dict[str, Any]]] = {}

    def register(self, name: str, **preset: Any) -> Callable[[type[C]], type[C]]:
        """Class decorator; `preset` fills fields that a user of this name leaves out."""

        def add(cls: type[C]) -> type[C]:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = (typing.cast("type[T]", cls), preset)
            return cls

        return add

    @property
    def expected(self) -> str:
        """`the name of a graph`, for messages."""
        return f"the name of {'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def takes(self, name: object) -> bool:
        """Whether a name is registered here, or has the form of a class of the user."""
        return name in self._entries or (self.own is not None and is_target(name))

    def entry(self, name: str) -> tuple[type[T], Mapping[str, Any]]:
        """The class behind a name, and the fields that the name presets."""
        if name not in self._entries and self.own is not None and is_target(name):
            return self.own.find(name), {}
        return self._entries[name]

    def fields(self, name: str) -> tuple[Field, ...]:
        """The settings under `name`, with the defaults of this name."""
        cls, preset = self.entry(name)
        return fields_of(cls, preset) if name in self or self.own is None else self.own.fields(cls)

    def name(self, built: object) -> str:
        """The name of an object; of several the one with the most presets.

        Raises:
            KeyError: no name stands for an object of this class.
        """
        names = [
            (len(preset), name)
            for name, (cls, preset) in self._entries.items()
            if cls is type(built) and all(getattr(built, k) == v for k, v in preset.items())
        ]
        if not names:
            target = None if self.own is None else self.own.target(type(built))
            if target is None:
                raise KeyError(f"{built!r} is not a registered {self.kind}")
            return target
        return max(names, key=lambda entry: entry[0])[1]

    def spec(self, built: object) -> dict[str, dict[str, Any]]:
        """The `{name: {field: value}}` that builds an equal object.

        Raises:
            KeyError: no name stands for an object of this class.
        """
        name = self.name(built)
        if name in self._entries or self.own is None:
            fields = self.fields(name)
        else:
            fields = self.own.fields(type(built))
        return {name: {field.name: field.to_config(getattr(built, field.name)) for field in fields}}

    def summary(self, name: str) -> str:
        """First line of the docstring of the class behind `name`."""
        return (self.entry(name)[0].__doc__ or "").strip().partition("\n")[0]

    def build(self, spec: object, path: str, defaults: Mapping[str, Any] | None = None) -> T:
        """An object from `name` or `{name: {field: value}}`; also from `module:Class` where `own` takes it.

        Args:
            spec: a name, or a mapping from one name to its fields.
            path: of the setting, for messages.
            defaults: values of fields that the user left out (the declared f); others are ignored.

        Raises:
            ConfigError: with every problem found.
        """
        name, fields = self._split(spec, path)
        if name not in self._entries and self.own is not None:
            built: T = self.own.build(name, fields, path, defaults or {})
            return built
        cls, preset = self._entries[name]
        return construct(cls, {**preset, **fields}, join(path, name), defaults or {})

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """For `Annotated[Graph, GRAPHS]`: an object, or what builds one."""
        from pydantic_core import core_schema

        def validate(value: Any) -> Any:
            return value if isinstance(value, source) else self.build(value, "")

        marks = {"registry": self, "none": optional(source)}
        return core_schema.no_info_plain_validator_function(validate, metadata=marks)

    def _split(self, spec: object, path: str) -> tuple[str, dict[str, Any]]:
        rule = f"should be {self.expected}, or one name with its fields"
        name: object
        fields: object
        if isinstance(spec, str):
            name, fields = spec, {}
        elif isinstance(spec, Mapping) and len(spec) == 1:
            ((name, given),) = spec.items()
            fields = {} if given is None else given
        else:
            raise ConfigError([Problem(path, rule, spec, f"Known: {', '.join(self)}.")])
        if not isinstance(name, str) or not self.takes(name):
            known = suggestion(str(name), self._entries)
            if self.own is not None and "." in str(name).strip("."):
                known = f"A class of your own is written as {':'.join(str(name).rsplit('.', 1))!r}."
            raise ConfigError([Problem(path, f"there is no {self.kind} of this name", name, known)])
        if not isinstance(fields, Mapping):
            here = join(path, name)
            raise ConfigError([Problem(here, "should be a mapping of fields to values", fields)])
        return name, dict(typing.cast("Mapping[str, Any]", fields))


def is_target(name: object) -> bool:
    """Whether a name is that of code of the user, `module:Class`."""
    return isinstance(name, str) and ":" in name


def fields_of(cls: type[Any], preset: Mapping[str, Any] | None = None) -> tuple[Field, ...]:
    """The fields of a dataclass that its constructor takes."""
    hints: dict[str, Any] = _hints(typing.cast("typing.Hashable", cls))

    def default(field: dataclasses.Field[Any]) -> Any:
        if preset and field.name in preset:
            return preset[field.name]
        return field.default_factory() if callable(field.default_factory) else field.default

    return tuple(Field(f.name, hints[f.name], default(f)) for f in dataclasses.fields(cls) if f.init)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def to_plain(value: Any) -> Any:
    """The value of a field as it stands in a configuration file: lists in place of tuples."""
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def construct(
    cls: type[C],
    fields: Mapping[str, Any],
    path: str,
    defaults: Mapping[str, Any],
    unknown: str = "there is no such field",
) -> C:
    """Build a dataclass from a mapping, strictly; see `Registry.build`.

    pydantic decides what fits a field. Nothing is converted but an integer to a float, a list to a tuple.
    """
    from pydantic import ValidationError
    from pydantic_core import ArgsKwargs

    known = {field.name: field for field in fields_of(cls)}
    values = {k: v for k, v in defaults.items() if k in known} | dict(fields)
    given = {
        k: tuple(v) if isinstance(v, list) and not (k in known and _takes_list(known[k].hint)) else v
        for k, v in values.items()
    }
    try:
        # Strictly, pydantic takes a mapping for a dataclass only as the arguments of its constructor.
        cls_validator = validator(cls).validator
        built: C = cls_validator.validate_python(ArgsKwargs((), given), self_instance=object.__new__(cls))
        return built
    except ValidationError as error:
        problems = list[Problem]()
        for name, found in _by_field(error.errors()).items():
            if name in known:
                problems += _misfit(found, known[name], values.get(name), join(path, name))
            elif name:
                problems.append(Problem(join(path, name), unknown, values[name], suggestion(name, known)))
            else:
                problems.append(Problem(path, str(found[0].get("ctx", {}).get("error")).rstrip(".")))
        problems.sort(key=lambda problem: problem.rule != unknown)
        raise ConfigError(problems) from error


def _takes_list(hint: Any) -> bool:
    """Whether a field is annotated as a list, and not as a tuple."""
    return typing.get_origin(hint) is list or hint is list or any(map(_takes_list, typing.get_args(hint)))


def validator(cls: type[C]) -> TypeAdapter[C]:
    """A dataclass as pydantic takes it; made on first use, as not every program needs pydantic."""
    adapter: TypeAdapter[C] = _validator(typing.cast("typing.Hashable", cls))
    return adapter


@functools.cache
def _validator(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    cls.__pydantic_config__ = STRICT | getattr(cls, "__pydantic_config__", {})
    return TypeAdapter(cls)


def _by_field(errors: Iterable[ErrorDetails]) -> dict[str, list[ErrorDetails]]:
    found: dict[str, list[ErrorDetails]] = {}
    for details in errors:
        found.setdefault(str(details["loc"][0]) if details["loc"] else "", []).append(details)
    return found


def _misfit(found: Sequence[ErrorDetails], field: Field, value: Any, path: str) -> Iterator[Problem]:
    """The problems of one field, from the errors of pydantic."""
    first = found[0]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        for problem in inner.problems:
            yield problem.below(path)
    elif first["type"] == "missing" and len(first["loc"]) == 1:
        yield Problem(path, f"is required ({describe_type(field.hint)})")
    elif all(details["type"] in LIMITS for details in found):
        for details in found:
            here = ".".join([path, *map(str, details["loc"][1:])])
            yield Problem(here, details["msg"].removeprefix("Input "), details["input"])
    else:
        yield Problem(path, f"should be {describe_type(field.hint)}", value, _example(field))


def _example(field: Field) -> str:
    """The default of a list of texts, of which the type alone says little."""
    default = field.default
    texts = isinstance(default, tuple) and default and all(isinstance(item, str) for item in default)
    return f"As [{', '.join(default)}]." if texts else ""


def named_in(hint: Any) -> Registry[Any] | None:
    """The registry whose names stand in a field, if it is one of objects."""
    marks: tuple[Any, ...] = getattr(hint, "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, Registry)), None)


def optional(hint: Any) -> bool:
    """Whether null is a value of a type."""
    return type(None) in typing.get_args(hint)


def describe_type(hint: Any) -> str:
    """A type in words: `an integer or null`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if registry := named_in(hint):
        return f"{registry.expected} or null" if optional(hint.__origin__) else registry.expected
    if hasattr(hint, "__metadata__"):
        return describe_type(hint.__origin__)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(arg) for arg in args)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(repr(arg) for arg in args)
    if origin in (tuple, list):
        length = "" if args[1:] in ((), (...,)) else f" of {len(args)}"
        return f"a list{length} ({describe_type(args[0])} each)"
    if origin is not None:
        return "a mapping" if issubclass(origin, Mapping) else str(hint)
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, "null" if hint in (None, type(None)) else getattr(hint, "__name__", str(hint)))
