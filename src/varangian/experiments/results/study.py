"""A study: what varies between runs, and what they say about rules under attack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from varangian.experiments.results.analyses.curves import Curve, Matched, curves, curves_by_length, matched
from varangian.experiments.results.analyses.heat_maps import HeatMap, heat_maps
from varangian.experiments.results.analyses.worst_cases import WorstCases, worst_cases
from varangian.experiments.results.cases import At, Better, Case, Gap, better_of
from varangian.experiments.results.labels import ABSENT, NONE, Axis, axis_of, key_of, natural
from varangian.experiments.results.members import ATTACK, COUNT, RULE, Member, headings, members_of
from varangian.experiments.results.read import Results
from varangian.experiments.results.run import ResultsError, Run, State

FIRST = ("f", COUNT, "partition", "data", "model", "participation", "workers")
"""Settings that are looked at first: what goes with one of them is no heading of its own."""
ENDED: frozenset[State] = frozenset({"finished", "failed"})
"""States of runs that count. One fails when no round has an update any more, as after its model diverged
under an attack: to leave it out would hide the worst of the rule."""
TOLD, SHOWN = 3, 120
"""So many reasons of failures are told, and so many characters of each, up to its first semicolon."""


@dataclass(frozen=True)
class Study:
    """Runs that are compared: rules under attacks, over seeds, in each setting that varies."""

    by: tuple[str, ...]
    """Paths of the settings that vary besides rule, attack and seed, and do not go with another of them."""
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    """With `none` at first, where runs without attackers are among them."""
    cases: tuple[Case, ...]
    """By rule, then by the other settings, then by attack."""
    metrics: tuple[str, ...]
    """Scores that runs have, accuracy or else the loss at first."""
    varying: Mapping[str, tuple[str, ...]]
    """Every setting that varies, by path, with short names of its values."""
    carried: Mapping[tuple[str, tuple[str, ...]], Mapping[str, str]]
    """Settings that go with a rule, by rule and group; a tuned one is among them."""
    shared: tuple[int, ...]
    """Places in a group that say how many attack, which is not asked of runs without attackers."""
    tuned: str | None
    """The path of the setting that was chosen for each rule; None where none was."""
    left_out: tuple[tuple[Mapping[str, Any], str], ...]
    """Points that sweeps could not run, or excluded, with the reason."""
    notes: tuple[str, ...]
    """Notes for a reader of the tables: what failed, is missing or was left out."""

    @classmethod
    def of(cls, results: Results | Iterable[Run], *, unfinished: bool = False) -> Study:
        """The study of these runs.

        Args:
            results: from `read_runs`.
            unfinished: whether runs that have not ended count as far as they are.

        Raises:
            ResultsError: no run counts, or one is damaged.
        """
        found = results if isinstance(results, Results) else Results(tuple(results))
        counts: Set[State] = {*ENDED, "unfinished"} if unfinished else ENDED
        members, notes = members_of(found, counts)
        if not any(_counts(member, counts) for member in members):
            raise ResultsError(_nothing(found.runs))
        return _study(members, found, counts, notes)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that count, in the order of the cases."""
        return tuple(run for case in self.cases for run in case.runs)

    @property
    def metric(self) -> str:
        """The score that rules are compared by unless another is asked for: accuracy, or else the loss."""
        return self.metrics[0]

    def better(self, metric: str) -> Better:
        """Whether more or less of a score is better: by its kind in the configuration, or by its name."""
        for run in self.runs[:1]:
            for spec in run.config.get("metrics") or ():
                if isinstance(spec, dict) and len(spec) == 1:
                    ((kind, fields),) = spec.items()
                    name = str((fields.get("name") if isinstance(fields, dict) else None) or kind)
                    if metric == name or metric.startswith(f"{name}_"):
                        return better_of(str(kind))
        return better_of(metric)

    def worst_cases(
        self, metric: str | None = None, at: At = "final", better: Better | None = None
    ) -> WorstCases:
        """The worst case of each rule: the minimum over attacks of the mean over seeds.

        Args:
            metric: a score; None is the first of `metrics`.
            at: the evaluation that counts.
            better: whether higher or lower is better; None is as `better` says.

        Raises:
            ResultsError: no run has such a score; also of the next ones.
        """
        return worst_cases(
            self.cases,
            metric=self._known(metric),
            at=at,
            better=better or self.better(self._known(metric)),
            by=self.by,
            shared=self.shared,
            carried=self.carried,
            tuned=self.tuned,
        )

    def curves(self, metric: str | None = None) -> list[Curve]:
        """A score over the rounds, with a band over seeds, for each case."""
        return curves(self.cases, self._known(metric))

    def curves_by_length(self, metric: str | None = None) -> list[Curve]:
        """The same over the length of the steps so far: smaller steps do not pass for robustness."""
        return curves_by_length(self.cases, self._known(metric))

    def matched(self, metric: str | None = None) -> list[Matched]:
        """Scores of rules after steps of the same length in all."""
        return matched(self.cases, self._known(metric))

    def heat_maps(self, metric: str | None = None, at: At = "best") -> list[HeatMap]:
        """Worst cases over two settings that vary, of each rule and of the best, as ByzFL draws them."""
        return heat_maps(self.worst_cases(metric, at))

    def worst_runs(self, metric: str | None = None) -> list[tuple[str, Run]]:
        """The worst single run of each rule, with a name; one without attackers if there is no other."""
        name = self._known(metric)
        sign = 1 if self.better(name) == "higher" else -1
        found: list[tuple[str, Run]] = []
        for rule in self.rules:
            scored = [
                (case.clean, sign * score, f"{rule}-{case.attack}", run)
                for case in self.cases
                if case.rule == rule
                for run, score in zip(case.runs, case.scores(name), strict=True)
                if score is not None
            ]
            if scored:
                _, _, label, run = min(scored, key=lambda entry: entry[:2])
                found.append((label, run))
        return found

    @property
    def length_note(self) -> str:
        """A sentence about lengths that are not exact in `curves_by_length`; empty where they are."""
        optimizers = [run.config.get("optimizer") or {} for run in self.runs]
        if all(
            one.get("name") == "sgd" and not one.get("momentum") and not one.get("weight_decay")
            for one in optimizers
        ):
            return ""
        return (
            "The length is the sum of learning rate x norm of the update. With server momentum, weight "
            "decay or an adaptive optimizer that is not the length of the steps themselves."
        )

    def _known(self, metric: str | None) -> str:
        if metric is not None and metric not in self.metrics:
            raise ResultsError(f"No run has the score {metric!r}. Known: {', '.join(self.metrics)}.")
        return metric or self.metric


def _study(members: Sequence[Member], found: Results, counts: Set[State], notes: Sequence[str]) -> Study:
    tuned = next((sweep.tuned for sweep in found.sweeps if sweep.tuned), None)
    axes = _axes(members, tuned)
    by, with_rule = headings(members, [path for path in axes if path not in (RULE, ATTACK, tuned)])
    carry = [path for path in axes if path in with_rule or path == tuned]
    places: dict[tuple[str, str, tuple[str, ...]], list[Member]] = {}
    beside: dict[tuple[str, tuple[str, ...]], dict[str, dict[str, None]]] = {}
    for member in members:
        names = {path: axis[_value(member, path)] for path, axis in axes.items()}
        group = tuple(names[path] for path in by)
        places.setdefault((names[RULE], names[ATTACK], group), []).append(member)
        for path in carry:
            found_here = beside.setdefault((names[RULE], group), {})
            found_here.setdefault(axes[path].title, {})[names[path]] = None
    # Of a plan the order is that of its writer; folders alone have none that says anything.
    planned = bool(found.sweeps)
    rules = _ordered((rule for rule, _, _ in places), planned)
    attacks = _ordered((attack for _, attack, _ in places), planned)
    attacks.sort(key=lambda attack: attack != NONE)

    def order(place: tuple[str, str, tuple[str, ...]]) -> tuple[int, list[Any], int]:
        rule, attack, group = place
        return rules.index(rule), [natural(value) for value in group], attacks.index(attack)

    cases = [_case(place, places[place], counts) for place in sorted(places, key=order)]
    return Study(
        by=tuple(axes[path].title for path in by),
        rules=tuple(rules),
        attacks=tuple(attacks),
        cases=tuple(cases),
        metrics=_metrics([run for case in cases for run in case.runs]),
        varying=_varying(axes, rules, attacks, members),
        carried={
            place: {path: ", ".join(sorted(names, key=natural)) for path, names in paths.items()}
            for place, paths in beside.items()
        },
        shared=tuple(i for i, path in enumerate(by) if path == COUNT),
        tuned=axes[tuned].title if tuned in axes else tuned,
        left_out=tuple(entry for sweep in found.sweeps for entry in sweep.left_out),
        notes=(*notes, *_notes_of_gaps(cases)),
    )


def _axes(members: Sequence[Member], tuned: str | None) -> dict[str, Axis]:
    """The rule, the attack, and what else varies or is tuned, the settings of `FIRST` before others."""
    values: dict[str, dict[str, Any]] = {}
    for path in dict.fromkeys([*FIRST, *(path for member in members for path in member.settings)]):
        found = {key_of(value): value for value in (_value(member, path) for member in members)}
        if len(found) > 1 or path == tuned:
            values[path] = found
    axes = {path: axis_of(path, found.values()) for path, found in values.items()}
    attacks = [member.attack for member in members if member.attack is not None]
    attack = axis_of(ATTACK, attacks, whole=True)
    return {
        RULE: axis_of(RULE, [member.rule for member in members], whole=True),
        ATTACK: Axis(ATTACK, {**attack.names, key_of(None): NONE}),
        **axes,
    }


def _value(member: Member, path: str) -> Any:
    if path == RULE:
        return member.rule
    return member.attack if path == ATTACK else member.settings.get(path, ABSENT)


def _ordered(names: Iterable[str], planned: bool) -> list[str]:
    distinct = list(dict.fromkeys(names))
    return distinct if planned else sorted(distinct, key=natural)


def _case(place: tuple[str, str, tuple[str, ...]], members: Sequence[Member], counts: Set[State]) -> Case:
    rule, attack, group = place
    members = sorted(members, key=lambda member: natural(member.seed))
    counted = [(member.seed, member.run) for member in members if _counts(member, counts)]
    return Case(
        rule=rule,
        attack=attack,
        group=group,
        runs=tuple(run for _, run in counted if run is not None),
        seeds=tuple(seed for seed, _ in counted),
        gaps=tuple(
            Gap(member.seed, member.state, member.reason, member.run)
            for member in members
            if not _counts(member, counts)
        ),
        early=tuple(
            Gap(member.seed, member.state, member.reason, member.run)
            for member in members
            if member.state == "failed" and _counts(member, counts)
        ),
    )


def _counts(member: Member, counts: Set[State]) -> bool:
    """Whether a member has scores that count: of a run that goes on, once it was evaluated."""
    if member.run is None or member.state not in counts:
        return False
    return member.state in ENDED or bool(member.run.metrics)


def _metrics(runs: Sequence[Run]) -> tuple[str, ...]:
    """The scores that some run has, accuracy first, then the losses."""
    names: dict[str, None] = {}
    for run in runs:
        result = run.result
        if result is None:
            names |= dict.fromkeys(run.metrics)
            continue
        own = result.get("metrics")
        given = ("accuracy", "train_loss", "ema_accuracy", "ema_loss")
        names |= dict.fromkeys(["loss", *(name for name in given if result.get(name) is not None)])
        names |= dict.fromkeys(own if isinstance(own, dict) else ())
    first = [name for name in ("accuracy", "loss", "train_loss") if name in names]
    return (*first, *sorted(names.keys() - set(first)))


def _varying(
    axes: Mapping[str, Axis], rules: Sequence[str], attacks: Sequence[str], members: Sequence[Member]
) -> dict[str, tuple[str, ...]]:
    found = {RULE: tuple(rules), ATTACK: tuple(attacks)}
    found |= {
        axis.title: tuple(sorted(set(axis.names.values()), key=natural))
        for path, axis in axes.items()
        if path not in found
    }
    found["seed"] = tuple(sorted({member.seed for member in members}, key=natural))
    return {path: names for path, names in found.items() if len(names) > 1}


def _notes_of_gaps(cases: Sequence[Case]) -> list[str]:
    gaps = [gap for case in cases for gap in case.gaps]
    early = [gap for case in cases for gap in case.early]
    total = len(gaps) + sum(len(case.runs) for case in cases)
    notes: list[str] = []
    if early:
        what = "ended before their last round and count with the score that they had then"
        notes.append(f"{len(early)} of {total} runs {what}: {_told(early)}.")
    if gaps:
        states = Counter(gap.state for gap in gaps)
        kinds = ", ".join(f"{count} {state}" for state, count in states.items())
        reasons = _told([gap for gap in gaps if gap.state == "error"])
        notes.append(f"{len(gaps)} of {total} runs have no result: {kinds}{reasons and f'; {reasons}'}.")
    return notes


def _told(gaps: Sequence[Gap]) -> str:
    """The most frequent reasons."""
    reasons = Counter(_cut(gap.reason.rstrip(".")) for gap in gaps)
    return "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(TOLD))


def _cut(text: str) -> str:
    return shorten(text.partition(";")[0], SHOWN, placeholder=" ...")


def _nothing(runs: Sequence[Run]) -> str:
    if not runs:
        return "There is no run to report: none of the plan has begun. Type the sweep again."
    states = Counter(run.state for run in runs)
    kinds = ", ".join(f"{count} {state}" for state, count in states.items())
    first = runs[0]
    return (
        f"There is no finished run to report. Found {len(runs)}: {kinds}; as {first.folder}: "
        f"{first.reason or 'it has no evaluation'}."
    )
