"""Names of workers: the default ones, and `workers: [alice, bob]` in place of a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from varangian.protos.identity.bundle import NAME
from varangian.registry import ConfigError, Problem

RULE = "should be letters, digits, '.', '_' and '-', at most 63, the first a letter or a digit"


def default_names(n: int) -> tuple[str, ...]:
    """`w00` to `w14` for n = 15: padded, so that sorting by name is sorting by number."""
    width = max(2, len(str(n - 1)))
    return tuple(f"w{i:0{width}d}" for i in range(n))


def read_names(settings: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """The settings with a number in `workers`, and its names, sorted, in `names`.

    Args:
        settings: of a run, as they were written.
        most: the largest number of workers.

    Raises:
        ConfigError: a name that no worker can have, or a name twice.
    """
    given: Any = settings.get("workers")
    path = "workers" if isinstance(given, list) else "names"
    names: Any = settings.get(path)
    if not isinstance(names, list):
        return settings
    if problems := [*_name_problems(names, path, most), *_count_problems(given, names)]:
        raise ConfigError(problems)
    return {**settings, "workers": len(names), "names": sorted(names)}


def _name_problems(names: list[Any], path: str, most: int) -> list[Problem]:
    if not 1 <= len(names) <= most:
        return [Problem(path, f"should be 1 to {most} names", len(names))]
    if wrong := [name for name in names if not (isinstance(name, str) and NAME.fullmatch(name))]:
        hint = "" if isinstance(wrong[0], str) else f"Quote it: '{wrong[0]}'."
        return [Problem(path, RULE, wrong[0], hint)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        return [Problem(path, "should have each name once", twice[0])]
    return []


def _count_problems(given: Any, names: list[Any]) -> list[Problem]:
    """The problem when the number of workers was changed and their names were not."""
    if not isinstance(given, int) or given == len(names):
        return []
    rule = f"should be as many as `workers` says, {given}"
    return [Problem("names", rule, len(names), "Give `workers` a list of names, or set names=null.")]
