"""Overrides: `a.b=c` on the command line, `VARANGIAN__A__B=c` and `VARANGIAN_SETTINGS` in the environment.

An assignment replaces what stood there; it never merges. So `aggregator=flag` leaves nothing of the
aggregator in the file. A path through a name (`aggregator.krum.select=3`) chooses that name: if it was
chosen already its other fields are kept, and any other name is replaced.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varangian.config.aggregator import long_form, open_aggregator
from varangian.config.fields import beside_name
from varangian.config.yaml_text import parse
from varangian.registry import FIXES, ConfigError, Fix, Problem, join
from varangian.server.training.optimizers import OPTIMIZERS

PREFIX = "VARANGIAN__"
SETTINGS = "VARANGIAN_SETTINGS"
"""A variable with several `a.b=c`, for programs that are started from a file, as by Compose."""
ANY_ADDRESS = "::"
"""All addresses of a machine in IPv6, which YAML without quotes takes for a mapping."""
_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_PATH = re.compile(r"\w+([.:]\w+)*")


@dataclass(frozen=True)
class Assignment:
    """One override, with the text that the user wrote."""

    path: str
    value: Any
    source: str

    @classmethod
    def of(cls, text: str) -> Assignment:
        """From `a.b=value`, the value in YAML.

        Raises:
            ConfigError: not of this form.
        """
        path, equals, value = text.partition("=")
        if not equals or not _PATH.fullmatch(path):
            raise ConfigError([Problem("command line", "should be key=value with a dotted key", text)])
        return cls(path, _parse_value(value, path), text)


def from_environment(environ: Mapping[str, str]) -> list[Assignment]:
    """`VARANGIAN__SERVER__PORT=5000` and others, in the order of their names; then VARANGIAN_SETTINGS."""
    found = sorted((key, value) for key, value in environ.items() if key.startswith(PREFIX))
    paths = [(key, key.removeprefix(PREFIX).lower().replace("__", "."), value) for key, value in found]
    single = [Assignment(path, _parse_value(value, key), key) for key, path, value in paths]
    return [*single, *_from_one_variable(environ.get(SETTINGS, ""))]


def _from_one_variable(text: str) -> list[Assignment]:
    """The assignments in VARANGIAN_SETTINGS: split at spaces and quotes as a shell does, and no more."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        rule = f"should be key=value settings, separated by spaces: {str(error).lower()}"
        raise ConfigError([Problem(SETTINGS, rule, text)]) from None
    wrong = [word for word in words if "=" not in word or not _PATH.fullmatch(word.partition("=")[0])]
    if wrong:
        rule = "should be key=value settings, separated by spaces; no options, and no configuration file"
        hint = "Put a value with spaces into quotes."
        raise ConfigError([Problem(SETTINGS, rule, word, hint) for word in wrong])
    return from_command_line(words)


def from_command_line(texts: Iterable[str]) -> list[Assignment]:
    """One assignment per argument; every malformed one is reported."""
    assignments: list[Assignment] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            assignments.append(Assignment.of(text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return assignments


def apply_overrides(
    settings: Mapping[str, Any], assignments: Iterable[Assignment], groups: Mapping[str, str | None]
) -> dict[str, Any]:
    """The settings after the assignments, in order.

    Args:
        settings: what the file says; not changed.
        assignments: what to change.
        groups: paths where a name stands for a whole group, with the name that is there by default.

    Raises:
        ConfigError: a path leads through a value that has no parts.
    """
    result = _long(settings)
    problems: list[Problem] = []
    for assignment in assignments:
        try:
            keys = split_path(assignment.path, groups)
            changed = _assign(result, keys, assignment.value, "", groups)
            result = _long(changed)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return result


def split_path(path: str, groups: Mapping[str, str | None]) -> list[str]:
    """The keys of a path; `module:Class` is one of them, whose module may have dots.

    The module begins behind the longest path that stands for a group.
    """
    before, colon, after = path.partition(":")
    if not colon:
        return path.split(".")
    words, (name, *rest) = before.split("."), after.split(".")
    starts = [n for n in range(1, len(words)) if _NUMBER.sub(".*", ".".join(words[:n])) in groups]
    start = max(starts, default=len(words) - 1)
    return [*words[:start], f"{'.'.join(words[start:])}:{name}", *rest]


def _long(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with an aggregator and an optimizer whose parts have paths."""
    result = long_form(settings)
    if "optimizer" in result:
        result["optimizer"] = beside_name(result["optimizer"], OPTIMIZERS)
    return result


def _parse_value(text: str, path: str) -> Any:
    if not text.strip():
        setting = path.removeprefix(PREFIX).lower().replace("__", ".")
        null = Fix(setting, (None,), name=path)
        raise ConfigError([Problem(path, "is given no value", hint=f"Write {FIXES}.", fixes=(null,))])
    if text.strip() == ANY_ADDRESS:
        return ANY_ADDRESS
    return parse(text, path)


def _assign(old: Any, keys: Sequence[str], value: Any, at: str, groups: Mapping[str, str | None]) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if (group := _NUMBER.sub(".*", at)) in groups:
        old = _open_group(old or groups[group], key, at)
    old = {} if old is None else old
    here = join(at, key)
    if isinstance(old, list):
        index = _index(old, key, at)
        return [*old[:index], _assign(old[index], rest, value, here, groups), *old[index + 1 :]]
    if not isinstance(old, dict):
        raise ConfigError([Problem(at, f"is a single value, so {here} cannot be set", old)])
    return {**old, key: _assign(old.get(key), rest, value, here, groups)}


def _open_group(group: Any, key: str, at: str) -> Any:
    """A group as the mapping that an assignment below it may change."""
    named = {group: {}} if isinstance(group, str) else group
    if not isinstance(named, dict):
        return named
    return open_aggregator(named, key) if at == "aggregator" else named if key in named else {}


def _index(items: Sequence[Any], key: str, at: str) -> int:
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    raise ConfigError([Problem(at, f"is a list of {len(items)}, so a number from 0 should follow", key)])
