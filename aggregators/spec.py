"""An aggregator as a user writes it, and back.

`krum`, `{krum: {select: 3}}`, or `{mix: [nnm, {bucketing: {s: 2}}], rule: krum}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from varangian.aggregators.base import MIXINGS, RULES, Columnwise, Mixing, Weighting
from varangian.aggregators.pipeline import Aggregator
from varangian.registry import ConfigError, Problem, Registry, join, suggestion

T = TypeVar("T")
CHAIN = ("mix", "rule")


def aggregator_from(spec: object, path: str, *, f: int) -> Aggregator:
    """An aggregator from what a user wrote.

    Args:
        spec: what the user wrote.
        path: where it was written, for messages.
        f: how many workers may be Byzantine; every part that takes an f has this one by default.

    Raises:
        ConfigError: with every problem found.
    """
    if not _is_chain(spec):
        return Aggregator(_part(RULES, spec, path, f), f=f)
    chain = cast("Mapping[str, object]", spec)
    problems = [
        Problem(join(path, key), "there is no such field", chain[key], suggestion(str(key), CHAIN))
        for key in chain
        if key not in CHAIN
    ]
    mix = _collected(problems, lambda: _mixings(chain.get("mix", []), join(path, "mix"), f))
    rule = _collected(problems, lambda: _rule(chain, join(path, "rule"), f))
    if problems or mix is None or rule is None:
        raise ConfigError(problems)
    return Aggregator(rule, mix, f)


def spec_of(aggregator: Aggregator) -> dict[str, Any]:
    """What a user would write to get this aggregator, with every field: names and plain values only.

    Raises:
        KeyError: a part of it is in no registry.
    """
    rule = RULES.spec(aggregator.rule)
    if not aggregator.mix:
        return rule
    return {"mix": [MIXINGS.spec(mixing) for mixing in aggregator.mix], "rule": rule}


def _is_chain(spec: object) -> bool:
    return isinstance(spec, Mapping) and any(key in spec for key in CHAIN)


def _mixings(spec: object, path: str, f: int) -> tuple[Mixing, ...]:
    if isinstance(spec, str) or not isinstance(spec, Sequence):
        raise ConfigError([Problem(path, "should be a list of mixings", spec, "Put it in brackets.")])
    problems: list[Problem] = []
    parts: list[Mixing | None] = []
    for i, one in enumerate(cast("Sequence[object]", spec)):
        parts.append(_collected(problems, partial(_part, MIXINGS, one, join(path, i), f)))
    if problems:
        raise ConfigError(problems)
    return tuple(part for part in parts if part is not None)


def _rule(chain: Mapping[str, object], path: str, f: int) -> Weighting | Columnwise:
    if "rule" not in chain:
        known = f"Known: {', '.join(RULES)}."
        raise ConfigError([Problem(path, "is required (the aggregator after the mixings)", hint=known)])
    return _part(RULES, chain["rule"], path, f)


def _part(registry: Registry[T], spec: object, path: str, f: int) -> T:
    try:
        return registry.build(spec, path, {"f": f})
    except ConfigError as error:
        if hint := _wrong_kind(registry, spec):
            raise ConfigError([dataclasses.replace(p, hint=hint) for p in error.problems]) from None
        raise


def _wrong_kind(registry: Registry[Any], spec: object) -> str:
    """The hint for a mixing in the place of a rule, or a rule in the place of a mixing."""
    name = next(iter(spec)) if isinstance(spec, Mapping) and len(spec) == 1 else spec
    if not isinstance(name, str) or name in registry:
        return ""
    if name in MIXINGS:
        return f"{name!r} is a mixing: write {{mix: [{name}], rule: ...}}."
    return f"{name!r} is an aggregator: it stands after `rule`." if name in RULES else ""


def _collected(problems: list[Problem], build: Callable[[], T]) -> T | None:
    try:
        return build()
    except ConfigError as error:
        problems.extend(error.problems)
        return None
