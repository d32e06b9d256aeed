"""Whether the rounds of a run can come to an end, and what the rule promises of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from varangian.aggregators import MIXINGS, RULES, Aggregator, Mean
from varangian.aggregators.base import spent, tolerance
from varangian.aggregators.graphs import requires
from varangian.config.tree import RunConfig
from varangian.paths import user_path
from varangian.protos.encoding import FLOAT32
from varangian.registry import FIXES, NOTHING, Fix, Problem, Registry, fixes
from varangian.server.participation import PARTICIPATION, Asap, Async, FedAvg, FedLaAvg, Participation, Sync
from varangian.worker.attacks import GradientAttack

FAR = 1000
"""How far to look for numbers that would do."""
TRIES = 4
"""How many numbers to try of those that look well."""
SIZES: Mapping[type[Participation], str] = {Async: "buffer", FedAvg: "participants"}
"""The setting that says how many vectors make a round."""


def here(config: RunConfig, field: str = "") -> str:
    """Where the participation, or a field of it, stands."""
    (name,) = PARTICIPATION.spec(config.participation)
    return f"participation.{name}.{field}" if field else f"participation.{name}"


def check_answers(config: RunConfig) -> Iterator[Problem]:
    """More Byzantine workers than there are, or a quorum that no round can have."""
    if config.f >= config.workers:
        rule = f"should be below the number of workers, {config.workers}"
        yield Problem("f", rule, config.f)
    elif config.quorum > (most := config.participation.answers(config.workers, config.f)):
        yield Problem("server.quorum", f"should be at most {_what(config, most)}", config.quorum)


def check_participation(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with the participation for so many workers."""
    if config.f < config.workers:
        for problem in config.participation.problems(config.workers, config.f):
            yield dataclasses.replace(problem, path=here(config, problem.path))
    gather, deadline = getattr(config.participation, "gather", 0.0), config.server.deadline
    if gather >= deadline:
        rule = f"should be less than server.deadline, {deadline:g} seconds"
        yield Problem(here(config, "gather"), rule, gather)


def check_deltas(config: RunConfig) -> Iterator[Problem]:
    """Deltas with something else than the mean, or with numbers that are rounded on their way."""
    way = config.participation
    if not isinstance(way, FedLaAvg) or way.form != "delta":
        return
    if not _is_mean(config.aggregator):
        rule = "should be `latest` with this aggregator: of deltas only their sum is kept, for the mean"
        offers = Fix(here(config, "form"), ("latest",)), Fix("aggregator.rule", ("mean",))
        yield Problem(here(config, "form"), rule, way.form, f"Set {FIXES}.", offers)
    for path, dtype in (("wire.dtype", config.wire.dtype), ("server.rows", config.server.rows)):
        if dtype != FLOAT32:
            rule = f"should be {FLOAT32} with {here(config, 'form')} = delta: a sum never loses a rounding"
            yield Problem(path, rule, dtype)


def check_latest_place(config: RunConfig) -> Iterator[Problem]:
    """A place for latest vectors that is not there."""
    folder = getattr(config.participation, "folder", None)
    if folder is not None and not user_path(folder).is_dir():
        yield Problem(here(config, "folder"), "should be a folder that exists", folder)


def check_guarantee(config: RunConfig) -> Iterator[Problem]:
    """A missing worker never lowers f, so the rule must keep its promise for the quorum."""
    if config.f >= config.workers or [*check_answers(config), *check_participation(config)]:
        return
    way = config.participation
    if isinstance(way, Asap) and (
        reason := requires(way.graph, config.aggregator, config.workers, config.f)
    ):
        yield Problem(here(config, "graph"), reason.rstrip("."))
    elif found := _unkept(config):
        rows, reason = found
        rule = f"{_rows(config, rows)} the rule promises nothing: {reason}"
        hint = f"{_cost(config, rows)}It would hold with {FIXES}."
        yield Problem("aggregator", rule, NOTHING, hint, _remedies(config))


def check_window(config: RunConfig) -> Iterator[Problem]:
    """Rows that are forgotten as they come, where they are needed later."""
    if config.server.memory == "window" and not isinstance(config.participation, Sync):
        rule = (
            f"should be `rows` with {here(config)}: a window needs the vectors of a round at the same time"
        )
        yield Problem("server.memory", rule, "window")


def check_mimic_momentum(config: RunConfig) -> Iterator[Problem]:
    """Attackers who would need to know the momentum of others, whose rounds are not theirs."""
    attack, way = config.byzantine.attack, config.participation
    if not isinstance(attack, GradientAttack) or config.worker.momentum == 0:
        return
    size = way.answers(config.workers, config.f)
    together = isinstance(way, Sync | FedAvg | FedLaAvg) and size == config.workers
    if (config.byzantine.knows or attack.needs) != "own" and not together:
        rule = (
            f"looks at the momentum of other workers, and with {here(config)} each has its own rounds, of "
            "which an attacker does not know"
        )
        offers = fixes(worker__momentum=0, byzantine__attack="sign_flip")
        yield Problem("byzantine.attack", rule, hint=f"Set {FIXES}.", fixes=offers)


def _is_mean(aggregator: Aggregator) -> bool:
    return isinstance(aggregator.rule, Mean) and not aggregator.mix


def _what(config: RunConfig, most: int) -> str:
    if isinstance(config.participation, Sync):
        return f"the number of workers, {most}"
    return f"{most}, as many vectors as make a round with {here(config)}"


def _unkept(config: RunConfig) -> tuple[int, str] | None:
    """The fewest rows for which the rule promises nothing, and why; None when it keeps its promise."""
    for rows in config.participation.rows(config.workers, config.quorum):
        if reason := config.aggregator.requires(rows, config.f):
            return rows, reason
    return None


def _rows(config: RunConfig, rows: int) -> str:
    of = config.participation.answers(config.workers, config.f)
    if rows == config.workers:
        return f"with {rows} workers, f = {config.f}"
    if rows == config.quorum < of:
        kind = "workers" if of == config.workers else "vectors of a round"
        return f"with a quorum of {rows} of {of} {kind}, f = {config.f}"
    return f"with {rows} vector{'s' if rows > 1 else ''} in a round, f = {config.f}"


def _cost(config: RunConfig, rows: int) -> str:
    """What a missing worker costs, where it is that which breaks the promise."""
    if rows == config.quorum < config.participation.answers(config.workers, config.f):
        return "A missing worker is a row less and does not lower f. "
    return ""


def _remedies(config: RunConfig) -> tuple[Fix, ...]:
    """What may do: more rows, or a smaller f; a few values of each setting that look well from here."""
    tried: dict[str, Iterable[int]] = {}
    if not isinstance(config.participation, Asap):
        tried["workers"] = range(config.workers + 1, FAR)
    field = SIZES.get(type(config.participation))
    size = None if field is None else getattr(config.participation, field)
    if size is not None:
        tried[here(config, field or "")] = range(size + 1, config.workers + 1)
    most = config.participation.answers(config.workers, config.f)
    tried["server.quorum"] = range(config.quorum + 1, most + 1)
    tried["f"] = reversed(range(config.f))

    def good(path: str, values: Iterable[int]) -> tuple[int, ...]:
        return tuple(islice((v for v in values if _unkept(_changed(config, path, v)) is None), TRIES))

    counts = (Fix(path, good(path, values)) for path, values in tried.items())
    return (*counts, *(Fix(path, (config.f,)) for path in _told_more(config.aggregator, config.f)))


def _told_more(aggregator: Aggregator, f: int) -> Iterator[str]:
    """The paths of an f of a rule or a mixing that is larger than that of the run."""
    before = "aggregator.rule" if aggregator.mix else "aggregator"
    parts: dict[str, tuple[Registry[Any], Any]] = {before: (RULES, aggregator.rule)}
    parts |= {f"aggregator.mix.{i}": (MIXINGS, mixing) for i, mixing in enumerate(aggregator.mix)}
    for path, (registry, part) in parts.items():
        told = tolerance(part)
        if told is not None and told > f:
            yield f"{path}.{next(iter(registry.spec(part)))}.f"


def _changed(config: RunConfig, path: str, value: int) -> RunConfig:
    """The configuration with another number in one place."""
    update: dict[str, Any] = {path: value}
    match path.split("."):
        case ["server", field]:
            update = {"server": config.server.model_copy(update={field: value})}
        case ["participation", _, field]:
            update = {"participation": dataclasses.replace(config.participation, **{field: value})}  # type: ignore[type-var]
        case ["f"]:
            less = config.f - value
            rule, mix = config.aggregator.rule, config.aggregator.mix
            lowered = Aggregator(spent(rule, less), tuple(spent(part, less) for part in mix), value)
            update = {"f": value, "aggregator": lowered}
        case _:
            pass
    return config.model_copy(update=update)
