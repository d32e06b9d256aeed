"""YAML in and out, as people expect it: `1e-3` is a number, `no` is text, a key stands once.

PyYAML follows YAML 1.1, where `1e-3` is text, `no` is false, `010` is eight and `12:30` is 750. The
loader follows the core schema of YAML 1.2 instead, and the dumper quotes what either version would change.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from varangian.registry import ConfigError, Problem, join

DEPTH = 32
"""Deepest nesting that is read; a configuration has five levels."""

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
    yaml_implicit_resolvers = {}  # noqa: RUF012 - replaces the table of YAML 1.1, which is a class attribute

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                message = f"the key {key.value!r} stands twice, first in line {seen[key.value]}"
                raise yaml.MarkedYAMLError(problem=message, problem_mark=key.start_mark)
            seen[key.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Keeps the table of YAML 1.1 as well: text that either version would misread is quoted."""


def _integer(loader: _Loader, node: Node) -> int:
    text = str(loader.construct_scalar(cast("ScalarNode", node)))
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


for _tag, (_pattern, _first) in _CORE.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse(text: str, source: str) -> Any:
    """The value of a YAML document; `source` says in messages where it stood.

    Raises:
        ConfigError: not YAML, with line and column.
    """
    try:
        return _plain(yaml.load(text, _Loader))
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
        text = path.read_text(encoding="utf-8")
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


def _plain(value: Any, path: str = "", depth: int = 0) -> Any:
    """A copy without shared parts (YAML aliases), so that overriding one place changes one place."""
    if depth > DEPTH:
        raise ConfigError([_too_deep(path.partition(".")[0])])
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ConfigError([Problem(path, "keys should be text", wrong[0])])
        return {key: _plain(item, join(path, key), depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, join(path, i), depth + 1) for i, item in enumerate(value)]
    return value


def _too_deep(source: str) -> Problem:
    return Problem(source, f"should nest at most {DEPTH} levels deep")
