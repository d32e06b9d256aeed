"""Classes of the user as `module:Class`: rules, attacks and the like that no registry has.

A class of the user is as those of the registries: its fields are its settings. A class that is no dataclass
has the parameters of its constructor as settings, and keeps each in an attribute of the same name. A
function becomes a class whose settings are its parameters after the ones that it is called with.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar, TypeVar

from varangian.plugins import InputError, UserCodeError, describe_error, resolve
from varangian.registry import MISSING, ConfigError, Field, Problem, construct, fields_of, join, to_plain

T = TypeVar("T")
OURS = "varangian"
"""The package whose classes are not the user's."""
PLAIN = (str, int, float, bool, type(None))
"""Types of values that a configuration file holds, besides lists and mappings of them."""


class OwnFunction:
    """Base of the classes that are made of a function; its frozen fields are options of the function.

    An option may have any name, so what is not one has a name that hardly is.
    """

    function_target: ClassVar[str]
    function_called: ClassVar[Callable[..., Any]]
    function_given: ClassVar[tuple[str, ...]]
    """Names of the arguments that every call gives, before the options."""

    def call_function(self, *given: Any) -> Any:
        """Call the function with these arguments and its options."""
        return type(self).function_called(*given, **_options(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self).__mro__[1], self.function_target, _options(self))


def _options(built: OwnFunction) -> dict[str, Any]:
    return {field.name: getattr(built, field.name) for field in fields_of(type(built))}


def _rebuilt(base: type[OwnFunction], target: str, options: Mapping[str, Any]) -> OwnFunction:
    return class_of(base, target, typing.cast("FunctionType", resolve(target)))(**options)


def class_of(base: type[OwnFunction], target: str, function: FunctionType) -> type[OwnFunction]:
    """A class of the kind of `base` whose fields are the parameters of a function.

    Raises:
        UserCodeError: the function does not take what it is called with.
    """
    return _class_of(typing.cast("typing.Hashable", base), target, function)


@functools.cache
def _class_of(base: Any, target: str, function: Any) -> type[OwnFunction]:
    parameters = [*inspect.signature(function).parameters.values()]
    given = base.function_given
    first, rest = parameters[: len(given)], parameters[len(given) :]
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(first) < len(given) or any(parameter.kind not in by_place for parameter in first):
        takes = ", ".join(given)
        raise UserCodeError(f"{target!r} is called with ({takes}), which it does not take")
    namespace = {
        "function_target": target,
        "function_called": staticmethod(function),
        "__module__": base.__module__,
        "__doc__": function.__doc__,
    }
    fields = _fields_from(target, function, rest)
    return dataclasses.make_dataclass(
        function.__name__, fields, bases=(base,), namespace=namespace, frozen=True, kw_only=True
    )


def settings_class(cls: type[Any]) -> type[Any]:
    """The dataclass with the settings of a class: itself, or one of the parameters of its constructor.

    Raises:
        UserCodeError: the parameters have no names.
    """
    return _settings_class(typing.cast("typing.Hashable", cls))


@functools.cache
def _settings_class(cls: Any) -> type[Any]:
    owner: Any = next(base for base in cls.__mro__ if "__init__" in vars(base))
    made = vars(owner).get("__dataclass_params__")
    if made is not None and made.init:
        return cls  # type: ignore[no-any-return]
    parameters: list[inspect.Parameter] = []
    if owner is not object:
        parameters = [*inspect.signature(owner.__init__).parameters.values()][1:]
    fields = _fields_from(cls.__qualname__, owner.__init__, parameters)
    return dataclasses.make_dataclass(cls.__name__, fields, frozen=True, kw_only=True)


def _fields_from(
    target: str, function: Callable[..., Any], parameters: list[inspect.Parameter]
) -> list[tuple[str, Any, Any]]:
    """Parameters as fields of a dataclass."""
    hints = typing.get_type_hints(function, include_extras=True) if parameters else {}
    fields = list[tuple[str, Any, Any]]()
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserCodeError(f"{target!r} should name each of its settings. Found {parameter}")
        default: Any = dataclasses.field()
        if parameter.default is not parameter.empty:
            default = dataclasses.field(default_factory=functools.partial(_same, parameter.default))
        fields.append((parameter.name, hints.get(parameter.name, Any), default))
    return fields


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class OwnClasses:
    """The classes of the user that a registry takes, as `module:Class`."""

    lacks: Callable[[type[Any]], str]
    """From a class to the methods of this kind that it lacks, as the end of a sentence; empty if none."""
    of_function: type[OwnFunction] | None = None
    """The base of a class that is made of a function; None where functions are not taken."""

    def find(self, target: str) -> type[Any]:
        """The class of this name.

        Raises:
            InputError: it cannot be imported, or is not of this kind.
        """
        found = resolve(target, what="")
        if isinstance(found, FunctionType) and self.of_function is not None:
            cls: type[Any] = class_of(self.of_function, target, found)
        elif inspect.isclass(found):
            cls = found
        else:
            expected = "a class or a function" if self.of_function else "a class"
            raise UserCodeError(f"{target!r} should be {expected}. Found {type(found).__name__}.")
        if lacking := self.lacks(cls):
            raise UserCodeError(f"{target!r} {lacking}.")
        if target_of(cls) is None:
            raise UserCodeError(
                f"{target!r} should be found under its own name, at the top of its module. Found "
                f"{getattr(found, '__module__', '?')}:{getattr(found, '__qualname__', found)}."
            )
        return cls

    def fields(self, cls: type[Any]) -> tuple[Field, ...]:
        """The settings of a class."""
        return fields_of(settings_class(cls))

    def target(self, cls: type[Any]) -> str | None:
        """`module:Class`; None for a class that is not found there, not the user's, or of another kind."""
        return target_of(cls) if _is_theirs(cls) and not self.lacks(cls) else None

    def build(self, target: str, fields: Mapping[str, Any], path: str, defaults: Mapping[str, Any]) -> Any:
        """An object of a class of the user; see `Registry.build`.

        Raises:
            ConfigError: with every problem found.
        """
        try:
            cls = self.find(target)
            settings = settings_class(cls)
            built = construct(settings, fields, join(path, target), defaults)
            if settings is not cls:
                built = _constructed(cls, built, join(path, target))
            _check_plain(target, settings, built)
            return built
        except ConfigError:
            raise
        except InputError as error:
            rule, _, hint = str(error).partition(". ")
            raise ConfigError([Problem(path, rule.rstrip("."), hint=hint)]) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            rule = f"failed: {describe_error(error, target)}"
            raise ConfigError([Problem(join(path, target), rule)]) from error


def names_class(target: str) -> bool:
    """Whether `module:Class` is a class; not where it cannot be imported, which is said when it is used."""
    try:
        return inspect.isclass(resolve(target))
    except InputError:
        return False


def is_own(built: object) -> bool:
    """Whether an object is of a class of the user."""
    return _is_theirs(type(built))


def _is_theirs(cls: type[Any]) -> bool:
    return cls.__module__.partition(".")[0] != OURS or issubclass(cls, OwnFunction)


def target_of(cls: type[Any]) -> str | None:
    """`module:Class` of a class, or of the function that it is made of; None if it is not found there."""
    if issubclass(cls, OwnFunction):
        return cls.function_target
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return f"{cls.__module__}:{cls.__qualname__}" if found is cls else None


def target_of_function(function: Any) -> str | None:
    """`module:function` of a function or another object that is called; None if it is not found there."""
    name = getattr(function, "__qualname__", None)
    found: Any = sys.modules.get(str(getattr(function, "__module__", "")))
    for part in str(name).split("."):
        found = getattr(found, part, None)
    return f"{function.__module__}:{name}" if found is function else None


def named(built: object) -> str:
    """`module:Class` of an object of the user, for messages; the name of its class if it has none."""
    return target_of(type(built)) or type(built).__name__


def shown(built: object) -> str:
    """`Class(setting=value)`, also of an object whose class does not say how it is shown."""
    if type(built).__repr__ is not object.__repr__:
        return repr(built)
    try:
        values = ((name, getattr(built, name)) for name in settings_names(type(built)))
        return f"{type(built).__name__}({', '.join(f'{name}={value!r}' for name, value in values)})"
    except (AttributeError, UserCodeError):
        return repr(built)


def settings_names(cls: type[Any]) -> list[str]:
    """The names of the settings of a class."""
    return [field.name for field in dataclasses.fields(settings_class(cls)) if field.init]


def replaced(built: T, **changes: Any) -> T:
    """The same object with other values of some settings."""
    settings = settings_class(type(built))
    if settings is type(built):
        return dataclasses.replace(built, **changes)  # type: ignore[type-var]
    kept = {field.name: getattr(built, field.name) for field in dataclasses.fields(settings)}
    return type(built)(**kept | changes)


def _constructed(cls: type[T], settings: Any, path: str) -> T:
    """An object of a class that is no dataclass, from values that were checked."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    try:
        built = cls(**values)
    except ValueError as error:
        raise ConfigError([Problem(path, str(error).rstrip("."))]) from error
    for name, value in values.items():
        if to_plain(getattr(built, name, MISSING)) != to_plain(value):
            rule = f"should keep `{name}` as an attribute of this name, so that it can be written again"
            raise ConfigError([Problem(path, rule, hint=f"Add self.{name} = {name} to __init__.")])
    return built


def _check_plain(target: str, settings: type[Any], built: Any) -> None:
    """See that the settings can be written to a file again."""
    for field in fields_of(settings):
        value = getattr(built, field.name)
        if not _is_plain(to_plain(value)):
            raise UserCodeError(
                f"{target!r} should keep its settings as they are written. Found {type(value).__name__} in "
                f"`{field.name}`"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, PLAIN)
