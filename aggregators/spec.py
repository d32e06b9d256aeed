"""Aggregators from configurations, and back.

A rule is `krum`, or with fields `{krum: {select: 3}}`. Mixings stand before it: `bucketing+nnm+krum`, or
with fields `{mix: [{bucketing: {s: 2}}, nnm], rule: krum}`, and `per_block: true` beside them applies all
of it to each parameter tensor by itself. A class of the user stands in the place of any name, as
`module:Class`. A combination, as `default`, is a name for such a text in the place of a rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from varangian.aggregators.base import MIXINGS, RULES, Columnwise, Mixing, Weighting, Whole
from varangian.aggregators.pipeline import Aggregator
from varangian.registry import FIXES, ConfigError, Fix, Problem, Registry, join, suggestion

T = TypeVar("T")
CHAIN = ("mix", "rule", "per_block")
"""The keys of an aggregator with mixings, or that is applied to each block."""
JOINT = "+"
"""Separates the names of mixings and of the rule after them."""
COMBINATIONS = {"default": "arc+caf"}
"""Names for mixings and a rule; the objects and the resolved configuration have the parts. `default` is the
combination to take where nothing speaks for another."""
USUAL = "trimmed_mean"
"""The rule in suggestions where a mixing stands alone; it asks only for n >= 2 f + 1."""


def aggregator_from(spec: object, path: str, *, f: int) -> Aggregator:
    """An aggregator from its form in a configuration.

    Args:
        spec: a name, a mapping, or names joined by `+`.
        path: where it was written, for messages.
        f: how many workers may be Byzantine; every part that takes an f has this one by default.

    Raises:
        ConfigError: with every problem found.
    """
    if isinstance(spec, str):
        return _from_names(spec, path, f)
    if isinstance(spec, list) and spec and (problem := misordered(_names(spec), path)):
        raise ConfigError([dataclasses.replace(problem, value=spec)])
    spec = expanded(spec)
    if not is_chain(spec):
        return Aggregator(_part(RULES, spec, path, f), f=f)
    chain = cast("Mapping[str, object]", spec)
    problems = [
        Problem(join(path, key), "there is no such field", chain[key], suggestion(str(key), CHAIN))
        for key in chain
        if key not in CHAIN
    ]
    mix = _collected(problems, lambda: _mixings(chain.get("mix", []), join(path, "mix"), f))
    rule = _collected(problems, lambda: _rule(chain, join(path, "rule"), f))
    per_block = chain.get("per_block", False)
    if not isinstance(per_block, bool):
        problems.append(Problem(join(path, "per_block"), "should be true or false", per_block))
    if problems or mix is None or rule is None:
        raise ConfigError(problems)
    return Aggregator(rule, mix, f, per_block=bool(per_block))


def expanded(spec: Any) -> Any:
    """The long form of an aggregator: `nnm+krum` becomes `{mix: [nnm], rule: krum}`, also as a `rule`.

    Anything else is returned as it is.
    """
    if isinstance(spec, str):
        *mixings, rule = _all_names(spec)
        well = mixings and RULES.takes(rule) and all(map(MIXINGS.takes, mixings))
        return {"mix": mixings, "rule": rule} if well else spec
    inner: Any = expanded(spec["rule"]) if is_chain(spec) and isinstance(spec.get("rule"), str) else ""
    before = spec.get("mix") or [] if is_chain(inner) else None
    if isinstance(before, list | tuple):
        return {**spec, "mix": [*before, *inner["mix"]], "rule": inner["rule"]}
    return spec


def misordered(text: str, path: str) -> Problem | None:
    """The problem of known names in the wrong order, as a mixing without a rule; None if there is none."""
    names = [name for name in _all_names(text.replace(",", JOINT)) if name]
    mixings, rules = ([name for name in names if _is_one(kind, name)] for kind in (MIXINGS, RULES))
    if not names or len(mixings) + len(rules) < len(names):
        return None
    if names == [*mixings, *rules] and len(rules) == 1 and len(names) == len(_all_names(text)):
        return None
    better = JOINT.join([*mixings, *(rules or [USUAL])])
    if len(rules) > 1:
        hint = f"{' and '.join(map(repr, rules))} are rules, and there is one, which stands last."
    elif not rules:
        hint = f"{mixings[-1]!r} is a mixing, a step before a rule: write {FIXES}."
    elif "," in text and names == [*mixings, *rules]:
        hint = f"Between names stands {JOINT}: write {FIXES}."
    else:
        hint = f"The rule stands last: write {FIXES}."
    fixes = () if len(rules) > 1 else (Fix(path, (better,), bare=True),)
    rule = f"should be a rule, or mixings and then a rule, joined by {JOINT}"
    return Problem(path, rule, text, hint, fixes)


def _is_one(registry: Registry[Any], name: str) -> bool:
    """Whether a name stands for a part of this kind, or for a class of the user that is one."""
    if name in registry or not registry.takes(name):
        return name in registry
    try:
        registry.entry(name)
    except ValueError:  # said where it is built
        return False
    return True


def _all_names(text: str) -> list[str]:
    """The names joined by `+`, with those of its parts in place of a combination."""
    names = [COMBINATIONS.get(name.strip(), name) for name in text.split(JOINT)]
    return [name.strip() for part in names for name in part.split(JOINT)]


def _names(spec: Sequence[object]) -> str:
    """A list of names as one text, joined by commas."""
    return ",".join(map(str, spec))


def _from_names(text: str, path: str, f: int) -> Aggregator:
    """An aggregator from names alone."""
    if problem := misordered(text, path):
        raise ConfigError([problem])
    *mixings, rule = _all_names(text)
    problems: list[Problem] = []
    mix = [_collected(problems, partial(_part, MIXINGS, name, path, f)) for name in mixings]
    last = _collected(problems, partial(_part, RULES, rule, path, f))
    if problems or last is None:
        raise ConfigError(problems)
    return Aggregator(last, tuple(part for part in mix if part is not None), f)


def spec_of(aggregator: Aggregator) -> dict[str, Any]:
    """An aggregator in the form of a configuration, with every field: names and plain values only.

    Raises:
        KeyError: a part of it is in no registry.
    """
    rule = RULES.spec(aggregator.rule)
    mix = {"mix": [MIXINGS.spec(mixing) for mixing in aggregator.mix]} if aggregator.mix else {}
    if aggregator.per_block:
        return {**mix, "rule": rule, "per_block": True}
    return {**mix, "rule": rule} if mix else rule


def parts_of(aggregator: Aggregator) -> dict[str, Mixing | Weighting | Columnwise | Whole]:
    """The mixings and the rule, each by its path below the aggregator: `mix.0.nnm`, `rule.krum` or `krum`.

    Raises:
        KeyError: a part of it is in no registry.
    """
    mix = {f"mix.{i}.{MIXINGS.name(part)}": part for i, part in enumerate(aggregator.mix)}
    rule = RULES.name(aggregator.rule)
    return {**mix, f"rule.{rule}" if mix or aggregator.per_block else rule: aggregator.rule}


def is_chain(spec: object) -> bool:
    """Whether an aggregator is written as `{mix: [...], rule: ...}`, or with one of these keys."""
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


def _rule(chain: Mapping[str, object], path: str, f: int) -> Weighting | Columnwise | Whole:
    if "rule" not in chain:
        known = f"Known: {', '.join(RULES)}."
        raise ConfigError([Problem(path, "is required (the aggregator after the mixings)", hint=known)])
    rule = chain["rule"]
    if isinstance(rule, str) and (problem := misordered(rule, path)):
        raise ConfigError([problem])
    return _part(RULES, rule, path, f)


def _part(registry: Registry[T], spec: object, path: str, f: int) -> T:
    try:
        return registry.build(spec, path, {"f": f})
    except ConfigError as error:
        kind = _wrong_kind(registry, spec)
        hints = [kind or _wrong_place(problem) or problem.hint for problem in error.problems]
        problems = zip(error.problems, hints, strict=True)
        raise ConfigError([dataclasses.replace(one, hint=hint) for one, hint in problems]) from None


def _wrong_kind(registry: Registry[Any], spec: object) -> str:
    """The hint for a mixing in the place of a rule, or a rule in the place of a mixing."""
    name = next(iter(spec)) if isinstance(spec, Mapping) and len(spec) == 1 else spec
    if not isinstance(name, str) or name in registry:
        return ""
    if name in MIXINGS:
        return f"{name!r} is a mixing, a step before a rule: write {{mix: [{name}], rule: {USUAL}}}."
    return f"{name!r} is a rule, and stands after `rule`." if name in RULES else ""


def _wrong_place(problem: Problem) -> str:
    """The hint for `per_block` among the fields of a rule or a mixing."""
    if not problem.path.endswith(".per_block") or problem.rule != "there is no such field":
        return ""
    return "It stands beside `rule`: write {rule: krum, per_block: true}."


def _collected(problems: list[Problem], build: Callable[[], T]) -> T | None:
    try:
        return build()
    except ConfigError as error:
        problems.extend(error.problems)
        return None
