"""Short names of rules, attacks and other settings, with those of their fields that vary.

A part of a configuration that has a name, as `{dirichlet: {alpha: 0.1}}`, is one value: `dirichlet`, or
`dirichlet(alpha=0.1)` beside another `dirichlet`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

NONE = "none"
"""The attack of a run without attackers."""
ABSENT = "-"
"""The value of a setting that a run has not, as the momentum of Adam."""
CHAIN = frozenset({"mix", "rule", "per_block"})
PER_BLOCK = "per block"
"""Behind the name of an aggregator that is applied to each parameter tensor by itself."""


def key_of(value: Any) -> str:
    """A value as text that equal values share, to compare and to hash it by."""
    return json.dumps(value, sort_keys=True, default=str)


def flatten(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its path; a part that has a name is one value, and so is a list."""
    for key, value in settings.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and not is_named(cast("Mapping[str, Any]", value)):
            yield from flatten(cast("Mapping[str, Any]", value), here)
        else:
            yield here, value


def is_named(value: Any) -> bool:
    """Whether a value is a part with a name, and mixings with a rule."""
    if not isinstance(value, Mapping):
        return False
    fields = cast("Mapping[str, Any]", value)
    if "rule" in fields and fields.keys() <= CHAIN:
        return True
    return len(fields) == 1 and isinstance(next(iter(fields.values())), Mapping)


def without_f(value: Any, f: Any) -> Any:
    """The value without the fields `f` that are that of the run: they vary with it and are no choice."""
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        return {k: without_f(v, f) for k, v in fields.items() if not (k == "f" and v == f)}
    return [without_f(one, f) for one in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Axis:
    """Names of the different values of one setting."""

    title: str
    """The path of the setting; down to the one field in which its values differ, where that is so."""
    names: Mapping[str, str]
    """The short name of each value, by its key (`key_of`)."""

    def __getitem__(self, value: Any) -> str:
        return self.names[key_of(value)]


def axis_of(path: str, values: Iterable[Any], *, whole: bool = False) -> Axis:
    """The axis of a setting, from all values that it has.

    Args:
        path: of the setting.
        values: all of them.
        whole: whether each name stands for itself, also where the values differ in one field alone.
    """
    distinct = {key_of(value): value for value in values}
    parts = _shortened({key: parts_of(value) for key, value in distinct.items()})
    varying = _varying(parts.values())
    names = {key: _name(inner, varying) for key, inner in parts.items()}
    if len(varying) == 1 and not whole:
        (part, field), *_ = varying
        if all(
            len(inner) == 1 and inner[0][0] == part and field in inner[0][1] for inner in parts.values()
        ):
            title = ".".join(word for word in (path, part, field) if word)
            return Axis(title, {key: text_of(inner[0][1][field]) for key, inner in parts.items()})
    return Axis(path, names)


def text_of(value: Any) -> str:
    """A value as it stands in a configuration, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        return "{" + ", ".join(f"{key}: {text_of(inner)}" for key, inner in fields.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text_of, cast('Sequence[Any]', value)))}]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def natural(text: str) -> tuple[tuple[int, float, str], ...]:
    """A key that sorts names as people do: 2 before 10, 0.1 before 0.5, words by their letters."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return tuple((0, float(part), "") if part[:1].isdigit() else (1, 0.0, part) for part in parts if part)


def parts_of(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The names in a value with their fields: mixings, then the rule; "" for a value without a name."""
    if not is_named(value):
        return [("", {"": value})]
    fields = cast("Mapping[str, Any]", value)
    if "rule" in fields and fields.keys() <= CHAIN:
        parts = [part for one in [*(fields.get("mix") or []), fields["rule"]] for part in parts_of(one)]
        return [*parts, (PER_BLOCK, {})] if fields.get("per_block") is True else parts
    name, inner = next(iter(fields.items()))
    return [(str(name), inner)]


def _shortened(
    parts: Mapping[str, list[tuple[str, Mapping[str, Any]]]],
) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """The parts with `Rule` in place of `module:Rule`, unless two would have the same name."""
    names = {name for inner in parts.values() for name, _ in inner}
    shorter = {name: name.rpartition(":")[2] or name for name in names}
    used = Counter(shorter.values())
    return {
        key: [(shorter[name] if used[shorter[name]] == 1 else name, fields) for name, fields in inner]
        for key, inner in parts.items()
    }


def _varying(values: Iterable[list[tuple[str, Mapping[str, Any]]]]) -> list[tuple[str, str]]:
    """Names and fields that differ between parts of the same name."""
    seen: dict[tuple[str, str], set[str]] = {}
    fields: dict[str, list[Mapping[str, Any]]] = {}
    for inner in values:
        for name, given in inner:
            fields.setdefault(name, []).append(given)
    for name, all_given in fields.items():
        for field in dict.fromkeys(field for given in all_given for field in given):
            seen[name, field] = {key_of(given.get(field)) for given in all_given}
    return [place for place, found in seen.items() if len(found) > 1]


def _name(parts: list[tuple[str, Mapping[str, Any]]], varying: Sequence[tuple[str, str]]) -> str:
    words: list[str] = []
    for name, fields in parts:
        if not name:
            words.append(text_of(fields[""]) if "" in fields else ABSENT)
            continue
        # A field that is null is not in use: what it is elsewhere tells the others apart.
        shown = [
            f"{key}={text_of(value)}"
            for key, value in fields.items()
            if (name, key) in varying and value is not None
        ]
        words.append(f"{name}({', '.join(shown)})" if shown else name)
    names = [word for word in words if word != PER_BLOCK]
    return " ".join(["+".join(names), *([PER_BLOCK] if len(names) < len(words) else [])])
