"""Names and weights of workers: `workers: [alice, bob]` in place of a number, and `weights` by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from varangian.config.yaml_text import read
from varangian.files import user_path
from varangian.protos.identity.bundle import NAME
from varangian.registry import ConfigError, Problem

RULE = "should be letters, digits, '.', '_' and '-', at most 63, the first a letter or a digit"

SAMPLES = "samples"
"""In the place of weights: the numbers of training samples."""
MOST_WEIGHT = 1e300
WEIGHTS_RULE = "should be a mapping from workers to weights, a file with one, or samples"


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


def read_weights(value: Any) -> Any:
    """Weights by worker, sorted by name; null and `samples` stay what they are, and a file is read.

    Raises:
        ConfigError: not a mapping, or a weight that is no positive number.
    """
    if value is None or value == SAMPLES:
        return value
    if isinstance(value, str):
        try:
            value = read(user_path(value))
        except ConfigError as error:
            reasons = "; ".join(f"{problem.path}: {problem.rule}" for problem in error.problems)
            raise ConfigError([Problem("", f"{WEIGHTS_RULE}. {reasons}", value)]) from None
    if not isinstance(value, Mapping) or not value:
        raise ConfigError([Problem("", WEIGHTS_RULE, value)])
    given: Mapping[Any, Any] = value
    if problems := [*_weight_problems(given)]:
        raise ConfigError(problems)
    return {name: float(given[name]) for name in sorted(given)}


def _weight_problems(weights: Mapping[Any, Any]) -> Iterator[Problem]:
    for name, weight in weights.items():
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            yield Problem("", f"should have names of workers. A name {RULE}", name)
        elif isinstance(weight, bool) or not isinstance(weight, int | float):
            yield Problem(name, "should be a positive number", weight)
        elif not 0 < weight < MOST_WEIGHT:
            yield Problem(name, "should be positive and finite", weight)
