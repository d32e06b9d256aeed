"""Checks of rounds: whether they can close, and whether the rule keeps its promise for their rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from varangian.aggregators import Aggregator
from varangian.aggregators.base import spent, tolerance
from varangian.aggregators.spec import parts_of
from varangian.config.checks.weights import takers_hint
from varangian.config.settings import RunConfig
from varangian.files import user_path
from varangian.protos.payloads.encoding import FLOAT32
from varangian.registry import FIXES, NOTHING, Fix, Problem, fixes
from varangian.worker.attacks import inner_attack, is_joint, on_vectors, remembers, sight_of

TRIES = 4
"""The most numbers, of those that meet the condition of the rule, that are tried as a fix."""


def check_answers(config: RunConfig) -> Iterator[Problem]:
    """More Byzantine workers than there are, or a quorum that no round can have."""
    if config.f >= config.workers:
        rule = f"should be below the number of workers, {config.workers}"
        yield Problem("f", rule, config.f)
    elif config.quorum > (most := config.participation.round_size(config.workers, config.f)):
        yield Problem("server.quorum", f"should be at most {_describe_size(config, most)}", config.quorum)


def check_participation(config: RunConfig) -> Iterator[Problem]:
    """Problems of the participation with so many workers."""
    yield from config.participation.problems(config.workers, config.f, config.least_deadline)


def check_vectors(config: RunConfig) -> Iterator[Problem]:
    """A participation that cannot go with this rule, or with vectors that are rounded."""
    yield from config.participation.vector_problems(
        config.aggregator, config.wire.dtype, config.server.rows
    )


def check_machine(config: RunConfig) -> Iterator[Problem]:
    """Problems of the participation on the machine of the server."""
    yield from config.participation.local_problems()
    folder = config.server.rows_folder
    if folder is not None and not user_path(folder).is_dir():
        yield Problem("server.rows_folder", "should be a folder that exists", folder)


def check_guarantee(config: RunConfig) -> Iterator[Problem]:
    """A missing worker never lowers f, so the rule must keep its promise for the quorum."""
    if config.f >= config.workers or [*check_answers(config), *check_participation(config)]:
        return
    if problem := config.participation.guarantee_problem(config.aggregator, config.workers, config.f):
        yield problem
    elif found := _broken_promise(config):
        rows, reason = found
        rule = f"{_describe_rows(config, rows)} the rule promises nothing: {reason}"
        hint = (
            f"{_cost_of_missing(config, rows)}{_cost_of_weights(config, rows)}It would hold with {FIXES}."
        )
        yield Problem("aggregator", rule, NOTHING, hint, _fixes_of_promise(config))


def check_buffers(config: RunConfig) -> Iterator[Problem]:
    """Buffers that travel, where vectors are not whole or not exact, or attackers could be the majority."""
    if config.buffers != "robust":
        return
    path = config.participation.setting()
    offers = (*fixes(buffers="local"), *fixes(buffers="refuse"))
    rows = config.participation.row_counts(config.workers, config.f, config.quorum)
    reason = ""
    if config.participation.pushes_deltas:
        reason = f"workers push differences of vectors with {path}, and buffers are no sums of them"
    elif config.server.memory == "window":
        reason = "with server.memory=window a server has never all numbers of a vector"
    elif config.server.rows != FLOAT32:
        reason = f"with server.rows={config.server.rows} a server keeps no exact integers"
    elif (least := min(rows, default=0)) <= 2 * config.f and config.f:
        reason = f"a round may have {least} vectors, of which f = {config.f} are not a minority"
        offers = (*fixes(buffers="local"), *fixes(f=max(0, (least - 1) // 2)))
    if reason:
        yield Problem("buffers", f"should not be robust here: {reason}", "robust", f"Set {FIXES}.", offers)


def check_window(config: RunConfig) -> Iterator[Problem]:
    """A window of columns, where the vectors of a round do not come at the same time."""
    if config.server.memory == "window" and config.selection.by_invitation:
        path = config.participation.setting()
        rule = f"should be `rows` with {path}: a window needs the vectors of a round at the same time"
        yield Problem("server.memory", rule, "window")


def check_rows_folder(config: RunConfig) -> Iterator[Problem]:
    """A file for whole vectors, where there are none."""
    if config.server.rows_folder is not None and config.server.memory == "window":
        rule = "should be null with server.memory = window, which keeps no whole vectors"
        yield Problem("server.rows_folder", rule, config.server.rows_folder)


def check_mimic_momentum(config: RunConfig) -> Iterator[Problem]:
    """Attackers that need the momentum or the past of other workers, which take part in other rounds."""
    attack, chosen = inner_attack(config.byzantine.attack), config.selection
    if not on_vectors(attack) or sight_of(attack, config.byzantine.knows) == "own":
        return
    if chosen.fresh_only and chosen.full_size(config.workers, 0) == config.workers:
        return
    path = config.participation.setting()
    elsewhere = f"and with {path} each takes part in other rounds, unknown to an attacker"
    if remembers(attack) and is_joint(attack):
        rule = f"remembers what other workers sent in earlier rounds, {elsewhere}"
        offers = fixes(byzantine__attack="sign_flip")
        yield Problem("byzantine.attack", rule, hint=f"Set {FIXES}.", fixes=offers)
    elif config.worker.inner is not None:
        rule = f"needs the state of the inner optimizers of other workers, {elsewhere}"
        offers = fixes(worker__inner=None, byzantine__attack="sign_flip")
        yield Problem("byzantine.attack", rule, hint=f"Set {FIXES}.", fixes=offers)
    elif config.worker.momentum > 0:
        rule = f"needs the momentum of other workers, {elsewhere}"
        offers = fixes(worker__momentum=0, byzantine__attack="sign_flip")
        yield Problem("byzantine.attack", rule, hint=f"Set {FIXES}.", fixes=offers)


def _describe_size(config: RunConfig, size: int) -> str:
    if not config.selection.by_invitation:
        return f"the number of workers, {size}"
    return f"{size}, as many vectors as make a round with {config.participation.setting()}"


def _broken_promise(config: RunConfig) -> tuple[int, str] | None:
    """The fewest rows for which the rule promises nothing, and why; None when it keeps its promise."""
    for rows in config.participation.row_counts(config.workers, config.f, config.quorum):
        if reason := config.why_broken(rows):
            return rows, reason
    return None


def _describe_rows(config: RunConfig, rows: int) -> str:
    of = config.participation.round_size(config.workers, config.f)
    if rows == config.workers:
        return f"with {rows} workers, f = {config.f}"
    if rows == config.quorum < of:
        kind = "workers" if of == config.workers else "vectors of a round"
        return f"with a quorum of {rows} of {of} {kind}, f = {config.f}"
    return f"with {rows} vector{'s' if rows > 1 else ''} in a round, f = {config.f}"


def _cost_of_missing(config: RunConfig, rows: int) -> str:
    """A sentence about missing workers, where they break the promise of the rule."""
    if rows == config.quorum < config.participation.round_size(config.workers, config.f):
        return "A missing worker is a row less and does not lower f. "
    return ""


def _cost_of_weights(config: RunConfig, rows: int) -> str:
    """A sentence about the weights, where only they break the promise of the rule."""
    if config.worker_weights is None or config.aggregator.requires(rows, config.f):
        return ""
    if config.aggregator.weightless:
        return f"Without weights it would hold. {takers_hint()} "
    return "Without weights it would hold; `weights_cap`, as {alpha_star: 0.3}, truncates them. "


def _fixes_of_promise(config: RunConfig) -> tuple[Fix, ...]:
    """Fixes to try: more rows, or a smaller f; a few values of each setting."""
    tried = dict(config.participation.remedies(config.workers))
    most = config.participation.round_size(config.workers, config.f)
    tried["server.quorum"] = range(config.quorum + 1, most + 1)
    tried["f"] = reversed(range(config.f))

    def good(path: str, values: Iterable[int]) -> tuple[int, ...]:
        return tuple(
            islice((v for v in values if _broken_promise(_with_value(config, path, v)) is None), TRIES)
        )

    counts = (Fix(path, good(path, values)) for path, values in tried.items())
    return (*counts, *(Fix(path, (config.f,)) for path in _larger_tolerances(config.aggregator, config.f)))


def _larger_tolerances(aggregator: Aggregator, f: int) -> Iterator[str]:
    """The paths of an f of a rule or a mixing that is larger than that of the run."""
    *mixings, rule = parts_of(aggregator).items()
    return (f"aggregator.{path}.f" for path, part in (rule, *mixings) if (tolerance(part) or 0) > f)


def _with_value(config: RunConfig, path: str, value: int) -> RunConfig:
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
