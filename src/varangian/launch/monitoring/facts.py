"""Facts of a run for its page, from its resolved settings as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from varangian.protos.text import escape

WORD = 80
"""Characters of a name."""


def name_of(value: Any) -> str:
    """The name of what stands in a setting: `krum` of `{krum: {select: 3}}`, `nnm+krum` of a pipeline."""
    if isinstance(value, Mapping):
        if "rule" in value:
            return "+".join(map(name_of, [*(value.get("mix") or []), value["rule"]]))
        value = value.get("name") or next(iter(value), "")
    if isinstance(value, list | tuple):
        return "+".join(map(name_of, value))
    return escape(str(value).rpartition(":")[2], WORD)


def title_of(settings: Mapping[str, Any]) -> str:
    """What a run shows: its rule, and who attacks."""
    byzantine = settings.get("byzantine") or {}
    rule = name_of(settings.get("aggregator"))
    count = byzantine.get("count") or 0
    if not count:
        return rule
    return f"{rule} against {count} x {name_of(byzantine.get('attack'))}"


def facts_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings worth a word, by name."""
    optimizer = settings.get("optimizer") or {}
    found = {
        "aggregator": name_of(settings.get("aggregator")),
        "participation": name_of(settings.get("participation")),
        "workers, of them f Byzantine": f"{settings.get('workers')}, {settings.get('f')}",
        "model, data": f"{_program_name(settings.get('model'))}, {name_of(settings.get('data'))}",
        "optimizer": f"{_program_name(optimizer)}, learning rate {optimizer.get('lr')}",
        "seed": str(settings.get("seed")),
    }
    return {name: escape(text, 2 * WORD) for name, text in found.items()}


def _program_name(value: Any) -> str:
    """As `name_of`; of what a program has made with its class, as `Sequential (own)`."""
    if isinstance(value, Mapping):
        match value:
            case {"own": {"name": str(name)}} | {"name": "own", "optimizer": str(name)} if name:
                return f"{escape(name, WORD)} (own)"
            case _:
                pass
    return name_of(value)


def names_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of all workers."""
    given = settings.get("names")
    if given:
        return tuple(map(str, given))
    count = int(settings.get("workers") or 0)
    width = max(2, len(str(count - 1)))
    return tuple(f"w{place:0{width}}" for place in range(count))


def byzantine_of(settings: Mapping[str, Any]) -> frozenset[str]:
    """The workers that attack in an experiment: the last names."""
    count = int((settings.get("byzantine") or {}).get("count") or 0)
    return frozenset(names_of(settings)[-count:] if count else ())


def short_date(text: str) -> str:
    """A time of the manifest, `2026-11-29T16:31:57+0000`, as people read it."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d.*", text)
    return f"{found[1]} {found[2]}" if found else escape(text, WORD)
