"""Advice: settings to paste, and the reasons for them, as text and for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varangian.aggregators.base import Columnwise
from varangian.config import RunConfig
from varangian.experiments.advice.choice import (
    LOSES_TO_HEAVY,
    MOMENTUM,
    WEIGHED,
    Candidate,
    Choice,
    choose,
    differences,
    holds,
    like,
    typed,
)
from varangian.experiments.advice.evidence import Row, Table, costs, evidence
from varangian.experiments.advice.question import Question

WIDTH = 108
KEPT = "\N{NO-BREAK SPACE}"
FLOAT = 4
"""Bytes of a number in a row that the server stores."""
WEAK = 0.1
"""A worst case so far below the attack-free accuracy is no protection that one should rely on."""


@dataclass(frozen=True)
class Advice:
    """The rule to use, and why."""

    question: Question
    settings: tuple[str, ...]
    """To paste behind `varangian run`."""
    aggregator: str | None
    """None where no rule that the run can use was measured."""
    measured: tuple[Mapping[str, Any], ...]
    """The measurements of this rule, in each setting that counted."""
    reasons: Mapping[str, tuple[str, ...]]
    """Sentences, by heading."""

    def __str__(self) -> str:
        lines = [" ".join(self.settings) or "no rule to advise"]
        for heading, sentences in self.reasons.items():
            lines += ["", heading]
            for sentence in sentences:
                kept = sentence.replace(" %", KEPT + "%")
                wrapped = textwrap.wrap(kept, WIDTH, initial_indent="  - ", subsequent_indent="    ")
                lines += [line.replace(KEPT, " ") for line in wrapped]
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "question": self.question.plain(),
            "settings": list(self.settings),
            "aggregator": self.aggregator,
            "measured": [dict(one) for one in self.measured],
            "reasons": {heading: list(sentences) for heading, sentences in self.reasons.items()},
        }


def advise(question: Question, tables: Sequence[Table] | None = None) -> Advice:
    """The rule to use, by the worst case over attacks in the settings that were measured.

    Args:
        question: what is known about the run.
        tables: the evidence; by default that of the package.
    """
    tables = evidence() if tables is None else tables
    if question.f == 0:
        return _without_attackers(question)
    choice = choose(question, tables)
    best = choice.best
    reasons = {
        "why": [*_why(question, choice, tables)],
        "guarantee": [] if best is None else [*_guarantee(question, best)],
        "the f that you declare": [*_declared(question, choice, tables)],
        "cost at the server": [] if best is None else [*_cost(question, best)],
        "when not to use a robust rule": [*_when_not(question, choice)],
        "not covered by the evidence": [*_not_covered(question, choice)],
    }
    return Advice(
        question=question,
        settings=_settings(question, best),
        aggregator=None if best is None else best.aggregator,
        measured=() if best is None else tuple(_measured(table, row) for table, row in best.rows),
        reasons={heading: tuple(sentences) for heading, sentences in reasons.items() if sentences},
    )


def _without_attackers(question: Question) -> Advice:
    reasons = (
        "f = 0: no worker is expected to send wrong numbers, and every robust rule costs something.",
        "Workers that crash or are late need no f: `server.deadline` and `server.wait_factor` close rounds "
        "without them.",
        "One faulty worker is enough to choose what a mean returns: ask with -f 1 if that can happen.",
    )
    settings = ("aggregator=mean", f"workers={question.n}", "f=0")
    return Advice(question, settings, "mean", (), {"why": reasons})


def _settings(question: Question, best: Candidate | None) -> tuple[str, ...]:
    if best is None:
        return ()
    momentum = MOMENTUM if question.momentum is None or question.threat == "any" else question.momentum
    return (
        f"aggregator={best.aggregator}",
        f"worker.momentum={momentum:g}",
        f"workers={question.n}",
        f"f={question.f}",
    )


def _measured(table: Table, row: Row) -> dict[str, Any]:
    worst, attack = row.worst
    return {
        "table": table.label,
        "setting": table.setting,
        "seeds": table.seeds,
        "mean_without_attack": table.clean,
        "without_attack": row.clean,
        "worst": worst,
        "worst_attack": attack,
        "mean_over_attacks": row.mean,
        "attacks": len(row.attacks),
        "command": table.command,
    }


def attacks_of(row: Row) -> str:
    """`4 attacks`."""
    return "one attack" if len(row.attacks) == 1 else f"{len(row.attacks)} attacks"


def percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _why(question: Question, choice: Choice, tables: Sequence[Table]) -> Iterator[str]:
    best = choice.best
    if not choice.tables:
        yield "Nothing of the kind was measured."
        return
    if best is None:
        yield "None of the measured rules can be used in this run."
    for table, row in () if best is None else best.rows:
        worst, attack = row.worst
        seeds = f"{table.seeds} seeds" if table.seeds > 1 else "one seed"
        yield (
            f"{row.aggregator}: {percent(worst)} in its worst case, {attack}, of {attacks_of(row)}; "
            f"{percent(row.clean)} without attack, where the mean has "
            f"{percent(table.clean)}. Measured with {table.setting}; {table.rounds} rounds, {seeds}."
        )
        if not holds(table, row):
            yield (
                "No measured rule holds there; this one is the best, and it is no protection. Make "
                "workers' data more alike, batches larger or f/n smaller."
            )
        elif table.clean is not None and worst < table.clean - WEAK:
            yield (
                f"That is {100 * (table.clean - worst):.0f} points below the mean without attack, and no "
                "rule measured there is much better: make workers' data more alike, batches larger or f/n "
                "smaller."
            )
    if best is not None and best.behind > 0 and len(best.rows) > 1:
        yield (
            f"Of {choice.compared} rules it is the one least behind the best in each of these settings: by "
            f"{100 * best.behind:.1f} points at most."
        )
    elif best is not None:
        yield f"No other of {choice.compared} rules has a better worst case there that this run can use."
    if choice.equal:
        names = ", ".join(one.aggregator for one in choice.equal)
        yield (
            f"As good within half a point: {names}. A proven coefficient decides, then the mean over "
            "the attacks."
        )
    for name, reason in choice.refused:
        yield f"{name} would be as good or better, but: {reason}."
    if best is not None:
        yield from _own_rule(question, choice)
        yield from _momentum(question, best, tables)


def _own_rule(question: Question, choice: Choice) -> Iterator[str]:
    """The measurements of the rule that is written in the configuration."""
    if question.aggregator is None or choice.best is None:
        return
    own, reason = question.check(question.aggregator)
    if own is None:
        yield f"Your rule cannot be used: {reason}."
        return
    names = {name for table in choice.tables for name in table.rows}
    same = [name for name in names if _builds(question, name, own)]
    if choice.best.aggregator in same:
        yield f"Your rule, {choice.best.aggregator}, is the one advised."
        return
    if not same:
        yield "Your rule was not measured there."
    for name, table in ((name, table) for name in same for table in choice.tables):
        if (row := table.rows.get(name)) is not None:
            worst, attack = row.worst
            yield f"Your rule, {name}, has {percent(worst)} in its worst case, {attack} ({table.label})."


def _builds(question: Question, name: str, config: RunConfig) -> bool:
    """Whether a measured rule is that of a configuration."""
    found, _ = question.check(typed(name))
    return found is not None and found.aggregator == config.aggregator


def _momentum(question: Question, best: Candidate, tables: Sequence[Table]) -> Iterator[str]:
    """The effect of momentum at the workers, where runs with and without it were measured."""
    for table, row in best.rows:
        other = like(table, tables, momentum=0.0 if table.momentum else MOMENTUM)
        found = None if other is None else other.rows.get(best.aggregator)
        if other is not None and found is not None:
            yield (
                f"worker.momentum={other.momentum:g} in place of {table.momentum:g}: worst case "
                f"{percent(found.worst[0])}, {found.worst[1]}, in place of {percent(row.worst[0])}."
            )
    if question.momentum is not None and question.momentum < MOMENTUM and question.threat == "any":
        yield (
            f"worker.momentum={question.momentum:g} is little: momentum averages the noise of batches, "
            f"in which attacks hide. {MOMENTUM} is advised."
        )


def _guarantee(question: Question, best: Candidate) -> Iterator[str]:
    n, f, budget = question.n, question.f, question.budget
    config = best.config
    if not config.aggregator.robust:
        yield f"None against vectors made to do harm: {best.aggregator} is for wrong labels alone."
        return
    least = f"no rule has less than f / (n - 2 f) = {f / (n - 2 * f):.2g}"
    said = f"n = {n}, f = {f}"
    if budget is not None:
        least = f"no rule has less than B / (1 - 2 B) = {budget / (1 - 2 * budget):.2g}"
        said = f"the weight B = {budget:.3g} of the {f} heaviest"
    if question.weighed and budget is None:
        yield "What it is depends on the weights, which are not known here."
    elif best.kappa is None:
        yield f"Its condition holds for n = {n} and f = {f}; no coefficient is proven for it, and {least}."
    else:
        yield (
            f"The squared error of the update is at most {best.kappa:.3g} times the variance of the honest "
            f"vectors, whatever the others send (coefficient kappa for {said}; {least})."
        )
    silent = n - config.quorum if question.participation == "sync" else 0
    if silent:
        yield f"Up to {silent} worker{'s' * (silent > 1)} may be silent in a round."
    if n < 3 * f + 1:
        yield (
            f"n = {n} is close to the limit of 2 f + 1 = {2 * f + 1}: "
            + ("" if silent >= f else "a round may have to wait for workers that stay silent, and ")
            + "the bound is weak. With 3 f + 1 workers f of them may be silent."
        )
    yield "Nothing is promised when more than f workers attack, or against backdoors, which need little."


def _declared(question: Question, choice: Choice, tables: Sequence[Table]) -> Iterator[str]:
    n, f, best = question.n, question.f, choice.best
    if question.declared < f:
        yield f"declared {question.declared}, below the {f} that may attack: the guarantee is void."
    for g in [question.declared] if question.declared > f else _larger(n, f):
        factor = g / (n - f - g) / (f / (n - 2 * f)) if n > f + g else None
        times = "has no bound" if factor is None else f"may be {factor:.1f} times as large"
        yield (
            f"f={g} where {f} attack: the error {times} as with f={f} "
            "(of order g / (n - f - g) for a declared g, arXiv 2510.04432)."
        )
        if best is None:
            continue
        if reason := question.check(typed(best.aggregator), g)[1]:
            yield f"f={g}: {best.aggregator} cannot be used: {reason}."
        for table, row in best.rows:
            over = like(table, tables, declared=g)
            told = None if over is None else over.rows.get(best.aggregator)
            right = None if over is None else like(over, tables, declared=table.f)
            same = row if right is None else right.rows.get(best.aggregator)
            if told is not None and same is not None:
                yield (
                    f"Measured with {table.setting}: worst case {percent(same.worst[0])} with f={table.f}, "
                    f"and {percent(told.worst[0])} with f={g}; without attack {percent(same.clean)} and "
                    f"{percent(told.clean)}."
                )
    yield "Declare the f that you want to stand, and no more. A run counts the faults that it proves."


def _larger(n: int, f: int) -> list[int]:
    """Another f worth a sentence: twice as many, or the most that are possible."""
    most = (n - 1) // 2
    return [min(2 * f, most)] if most > f else []


def _cost(question: Question, best: Candidate) -> Iterator[str]:
    n = question.n
    aggregator = best.config.aggregator
    columnwise = isinstance(aggregator.rule, Columnwise) and not aggregator.mix
    order = "n log n d" if columnwise else "n^2 d, all inner products of n vectors once, and little more"
    yield f"Time of a round at the server grows as {order}."
    sizes = [size for size in costs()["sizes"] if best.aggregator in size["ratios"]]
    if sizes:
        d = question.parameters or sizes[0]["d"]
        size = min(sizes, key=lambda size: (abs(size["n"] - n), abs(size["d"] - d)))
        ratio, milliseconds = size["ratios"][best.aggregator], size["mean_ms"]
        yield (
            f"{ratio:.1f} times a mean of the same vectors, measured with n = {size['n']} and "
            f"d = {size['d']:,}, where the mean takes {milliseconds:.1f} ms ({costs()['machine']})."
        )
    else:
        yield f"Not measured for {best.aggregator}: varangian bench aggregators --sizes {n}x1000000."
    if question.parameters:
        gigabytes = n * question.parameters * FLOAT / 1e9
        yield f"Memory for the vectors of a round: {gigabytes:.3g} GB, half with server.rows=bfloat16."
    else:
        yield "Memory for the vectors of a round: 4 n d bytes, half with server.rows=bfloat16."


def _when_not(question: Question, choice: Choice) -> Iterator[str]:
    skewed = question.skew is None or question.skew > 0
    if question.threat == "any" and skewed:
        yield (
            "If wrong labels are the only fault, and data differ enough between workers, the mean is of "
            "optimal order and can beat robust rules (Peng et al., JMLR, 2025): ask with --threat labels."
        )
    for table in choice.tables:
        mean = table.poisoned.rows.get("mean")
        best = None if choice.best is None else table.poisoned.rows.get(choice.best.aggregator)
        if mean is not None and best is not None and choice.best and choice.best.aggregator != "mean":
            yield (
                f"Measured under {mean.worst[1]} ({table.label}): mean {percent(mean.worst[0])}, "
                f"{choice.best.aggregator} {percent(best.worst[0])}."
            )
    if question.threat == "labels":
        yield "The mean stands no worker that sends a vector of its own making: one chooses the result."


def _not_covered(question: Question, choice: Choice) -> Iterator[str]:
    if not choice.tables:
        yield "There is no measured setting to go by. `varangian list aggregators` has the rules."
        return
    for table in choice.tables:
        other = [*differences(question, table)]
        if other:
            yield f"The nearest measured setting has {'; '.join(other)} ({table.label})."
    if question.weighed:
        yield (
            "All of this was measured with workers of equal weight. With weights nnm+trimmed_mean and "
            f"nnm+geometric_median were best under attack: {WEIGHED}."
        )
        if choice.best is not None and choice.best.aggregator in LOSES_TO_HEAVY:
            yield (
                f"{choice.best.aggregator} without a mixing before it lost 12 points there where one of "
                "the heaviest workers flipped the sign of its vectors; nnm+trimmed_mean lost one."
            )
    if question.skew is None:
        known = (
            "The partition is not known"
            if question.partition is None
            else "No number of differences is known for this partition"
        )
        yield (
            f"{known}: the settings above stand for it. Say --partition iid, or --partition dirichlet "
            "--alpha A."
        )
    if question.data not in {table.data for table in choice.tables}:
        models = ", ".join(dict.fromkeys(f"{table.data} with {table.model}" for table in choice.tables))
        yield f"Other data and models than {models} may behave otherwise: sweep your own (varangian sweep)."
    yield from dict.fromkeys(f"{table.name} is measured by: {table.command}" for table in choice.tables)
