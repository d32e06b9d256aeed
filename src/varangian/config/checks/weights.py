"""Checks of weights: whether every worker has one, and whether the cap and the participation allow them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from varangian.aggregators.base import MIXINGS, RULES, takes_weights
from varangian.config.settings import RunConfig
from varangian.config.worker_names import SAMPLES
from varangian.registry import FIXES, NOTHING, Problem, Registry, fixes
from varangian.worker.data.partition import PARTITIONS, Shared

SHOWN = 5
"""Names of workers in a sentence."""


def check_weights(config: RunConfig) -> Iterator[Problem]:
    """Workers without a weight, and weights where vectors are only kept as a sum."""
    if config.weights is None:
        if config.weights_cap is not None:
            rule, offers = "truncates `weights`, and there are none", fixes(weights_cap=None)
            yield Problem("weights_cap", rule, hint=f"Set {FIXES}.", fixes=offers)
        return
    if config.participation.pushes_deltas:
        path = config.participation.setting("form")
        rule = f"should be null with {path} = delta: of deltas only their sum is kept"
        yield Problem("weights", rule, hint=f"Set {FIXES}.", fixes=fixes(weights=None))
    if config.weights == SAMPLES:
        return
    missing = [name for name in config.worker_names if name not in config.weights]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        rule = f"should have every worker of the run: {', '.join(missing[:SHOWN])}{more} missing"
        others = sorted(set(config.weights) - set(config.worker_names))
        hint = f"It has {others[0]!r}, which is no worker of the run." if others else ""
        yield Problem("weights", rule, hint=hint)


def check_form(config: RunConfig) -> Iterator[Problem]:
    """A rule without a form for weights, where these are not known yet; see also `check_guarantee`."""
    if config.weights == SAMPLES and (reason := config.aggregator.weightless):
        yield Problem("aggregator", f"should take weights, and {reason}", NOTHING, hint=takers_hint())


def takers_hint() -> str:
    """A sentence with the rules that take weights."""
    rules, mixings = ([name for name in known if takes(known, name)] for known in (RULES, MIXINGS))
    return f"Weights are taken by {', '.join(rules)}, alone or behind {', '.join(mixings)}."


def takes(known: Registry[Any], name: str) -> bool:
    """Whether a registered part takes weights."""
    return takes_weights(known.entry(name)[0])


def check_dealt(config: RunConfig) -> Iterator[Problem]:
    """Numbers of samples that nobody can know before a run, or that are all the same."""
    if config.weights == SAMPLES and isinstance(config.partition, Shared):
        dealt = PARTITIONS.name(config.partition)
        rule = f"should be numbers by worker with partition={dealt}, which deals no samples"
        yield Problem("weights", rule, SAMPLES)


def check_cap(config: RunConfig) -> Iterator[Problem]:
    """A cap that no truncation can meet: equal weights are the least that the heaviest can have."""
    cap, n = config.weights_cap, config.workers
    if cap is None or config.weights is None or cap.bound([1.0] * n, config.f) is not None:
        return
    k = cap.counted(n, config.f)
    rule = f"should be at least {k} / {n} = {k / n:.3g}, what {k} of {n} workers of equal weight have"
    yield Problem("weights_cap.alpha_star", rule, cap.alpha_star)


def weight_sentence(config: RunConfig) -> str | None:
    """What the f heaviest workers weigh, and what was truncated; None where all weigh the same."""
    weights = config.worker_weights
    if weights is None:
        return None
    total, f = sum(weights.values()), config.f
    heaviest = sorted(weights, key=lambda name: (-weights[name], name))
    budget = sum(weights[name] for name in heaviest[:f]) / total
    named = f" ({', '.join(heaviest[: min(f, SHOWN)])}{', ...' if f > SHOWN else ''})" if f else ""
    least, most = min(weights.values()), max(weights.values())
    held = f"the f = {f} heaviest{named} have {budget:.3g} of the weight"
    said = f"weights from {least:g} to {most:g}; {held}"
    assert not isinstance(config.weights, str)
    given = config.weights or {}
    cut = [name for name in heaviest if given.get(name, least) > weights[name]]
    return f"{said}; {len(cut)} truncated at {most:g}" if cut else said
