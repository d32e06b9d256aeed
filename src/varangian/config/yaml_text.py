"""YAML 1.2 with bounds: `1e-3` is a number, `no` is text, and a key stands once.

PyYAML follows YAML 1.1, where `1e-3` is text, `no` is false, `010` is eight and `12:30` is 750. The
loader follows the core schema of YAML 1.2 instead, and the dumper quotes what either version would change.

A document is bounded in its size, its depth and the number of its values, where an alias counts as often as
it repeats them: a few lines of aliases of aliases would otherwise fill any memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from varangian.registry import ConfigError, Problem, format_value, join

DEPTH = 32
"""Deepest nesting that is read; a configuration has five levels."""
CHARACTERS = 512 << 10
"""Longest text that is read."""
VALUES = 50_000
"""Most values in a document, those that aliases repeat included; the name of a worker is one."""
TOO_DEEP = f"should nest at most {DEPTH} levels deep"
TOO_MANY = f"should have at most {VALUES} values, those that aliases repeat included"
DIGITS = 40
"""Longest number that is read."""

_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": ("<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    """The core schema, within bounds that hold before anything is built."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - replaces the table of YAML 1.1, which is a class attribute
    yaml_constructors = {}  # noqa: RUF012 - as above: no tag but those below

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nesting = -1
        self._extent: dict[int, tuple[int, int]] = {}
        """Of each complete node: its values, with all aliases replaced, and its depth."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._nesting += 1
        if self._nesting > DEPTH:
            raise _error_at(TOO_DEEP, event)
        node = super().compose_node(parent, index)
        self._nesting -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent) and id(node) not in self._extent:
            raise _error_at("an alias should not stand inside of what it names", event)
        if id(node) not in self._extent:
            self._extent[id(node)] = self._measure(node)
        values, depth = self._extent[id(node)]
        if values > VALUES:
            raise _error_at(TOO_MANY, event)
        if self._nesting + 1 + depth > DEPTH:
            raise _error_at(TOO_DEEP, event)
        return node

    def _measure(self, node: Node) -> tuple[int, int]:
        parts: list[Node] = []
        if isinstance(node, MappingNode):
            _check_keys(node)
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            parts = node.value
        extents = [self._extent[id(part)] for part in parts]
        depth = 1 + max((below for _, below in extents), default=0) if parts else 0
        return 1 + sum(size for size, _ in extents), depth


def _check_keys(node: MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in seen:
            message = f"the key {format_value(key.value)} stands twice, first in line {seen[key.value]}"
            raise yaml.MarkedYAMLError(problem=message, problem_mark=key.start_mark)
        seen[key.value] = line


class _Dumper(yaml.SafeDumper):
    """Keeps the table of YAML 1.1 as well: text that either version would misread is quoted."""


def _error_at(rule: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=rule, problem_mark=cast("yaml.Mark", event.start_mark))


def _scalar_constructor(
    read: Callable[[str], Any], rule: str, most: int = DIGITS
) -> Callable[[_Loader, ScalarNode], Any]:
    """A constructor of values that are written in at most so many characters."""

    def construct(loader: _Loader, node: ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        try:
            if len(text) <= most:
                return read(text)
        except (ValueError, KeyError):
            pass
        raise yaml.MarkedYAMLError(problem=rule, problem_mark=node.start_mark)

    return construct


def _integer(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _real(text: str) -> float:
    named = re.fullmatch(r"([-+]?)\.(inf|nan)", text.lower())
    return float(f"{named[1]}{named[2]}" if named else text)


for _tag, (_pattern, _first) in _CORE.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_TRUTH = {"true": True, "false": False}
_KINDS: dict[str, Callable[[Any, Any], Any]] = {
    "null": yaml.SafeLoader.construct_yaml_null,
    "str": yaml.SafeLoader.construct_yaml_str,
    "seq": yaml.SafeLoader.construct_yaml_seq,
    "map": yaml.SafeLoader.construct_yaml_map,
    "bool": _scalar_constructor(lambda text: _TRUTH[text.lower()], "should be true or false"),
    "int": _scalar_constructor(_integer, f"should be a whole number of at most {DIGITS} digits"),
    "float": _scalar_constructor(_real, f"should be a number of at most {DIGITS} digits"),
}
for _tag, _construct in _KINDS.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)
_Loader.yaml_constructors[None] = yaml.SafeLoader.construct_undefined


def parse(text: str, source: str) -> Any:
    """The value of a YAML document; `source` says in messages where it stood.

    Raises:
        ConfigError: not YAML, or more of it than is read; with line and column.
    """
    if len(text) > CHARACTERS:
        raise ConfigError([Problem(source, f"should have at most {CHARACTERS} characters")])
    try:
        return _copy(yaml.load(text, _Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError([Problem(f"{source}{where}", f"is not valid YAML: {what}")]) from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError([Problem(source, f"is not valid YAML: {reason}")]) from error
    except RecursionError as error:
        raise ConfigError([_too_deep(source)]) from error


def read(path: Path) -> dict[str, Any]:
    """The settings in a file.

    Raises:
        ConfigError: no such file, not UTF-8, not YAML, or not a mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(CHARACTERS + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([Problem(str(path), f"the configuration cannot be read: {reason}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), "the configuration should be UTF-8 text")]) from error
    value = parse(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError([Problem(str(path), "should be a mapping of settings to values", value)])
    return value


def dump(value: Mapping[str, Any]) -> str:
    """YAML that `parse` reads back equal."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def dump_line(value: Any) -> str:
    """The same in one line, of any value, as an override has it: `{krum: {select: 3}}`."""
    text = str(
        yaml.dump(
            [value],
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            width=math.inf,
            default_flow_style=True,
        )
    )
    return str(text).strip().removeprefix("[").removesuffix("]")


def _copy(value: Any, path: str = "", depth: int = 0) -> Any:
    """A copy without shared parts (YAML aliases), so that overriding one place changes one place."""
    if depth > DEPTH:
        raise ConfigError([_too_deep(path.partition(".")[0])])
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ConfigError([Problem(path, "keys should be text", wrong[0])])
        return {key: _copy(item, join(path, key), depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item, join(path, i), depth + 1) for i, item in enumerate(value)]
    return value


def _too_deep(source: str) -> Problem:
    return Problem(source, TOO_DEEP)
