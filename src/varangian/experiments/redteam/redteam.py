"""A red team's work on one aggregator: record, search, confirm; and what came of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from varangian import __version__
from varangian.config import RunConfig, loads
from varangian.config.identity import identity_of
from varangian.experiments.redteam.catalogue import catalogue
from varangian.experiments.redteam.confirmation import Trained, Trainings
from varangian.experiments.redteam.evaluation import Judge
from varangian.experiments.redteam.policies import (
    FOUND,
    known_policies,
    name_of,
    neighbours,
    policy_form,
    spec_of,
)
from varangian.experiments.redteam.recording import record
from varangian.experiments.redteam.search import Archive, Evaluated, check_library, search
from varangian.experiments.report.reproduce import command_of
from varangian.files import write_atomically
from varangian.launch import RunError
from varangian.worker.attacks.composite import Composite

SHORT = 4
"""A short training has a part of the rounds: one in this many,"""
FEWEST = 30
"""but at least so many."""
SHORT_SEEDS = 2
"""Short trainings under each attack."""
CANDIDATES = 8
"""Policies of the search that are trained with."""
REFINEMENTS = 3
"""How often the neighbours of the strongest attack are trained with."""
FINALISTS = 4
"""Policies, and attacks of the catalogue, that are confirmed by full trainings."""
SEARCHING, SHORTENING = 0.4, 0.75
"""Parts of the budget after which the search ends, and the short trainings."""
RESULT = "redteam.json"
EVALUATIONS = "evaluations.jsonl"


@dataclass(frozen=True)
class Options:
    """The extent of a red team's work."""

    folder: Path
    generations: int
    seed: int = 1
    """Of the search."""
    seeds: int = 3
    """Full trainings under each attack."""
    budget: float | None = None
    """Seconds, after which no generation and no training is begun."""
    jobs: int = 1
    """Trainings at the same time."""


@dataclass(frozen=True)
class Findings:
    """The findings of a red team."""

    config: RunConfig
    """Of the runs, with the strongest attack."""
    front: tuple[Evaluated, ...]
    evaluations: int
    generations: int
    """That were finished."""
    short: tuple[Trained, ...]
    """Trained for a part of the rounds: policies, and attacks of the catalogue."""
    full: tuple[Trained, ...]
    """Trained in full; the first is without an attack."""
    strongest: Trained
    refused: Mapping[str, str]
    """Attacks of the catalogue that cannot be mounted, and why."""
    stopping: Mapping[str, str]
    """Attacks whose silence ends a training: they harm no model, and nobody overlooks them."""
    untried: int
    """Attacks for which there was no time, or whose training ended on an error."""
    runs: int
    index: Path | None
    """Of the full trainings, for `varangian report`."""
    seconds: float
    searched: float
    """Seconds until the trainings that confirm began."""
    cut: bool
    """Whether the budget ended it."""

    @property
    def policies(self) -> tuple[Trained, ...]:
        """Policies with full trainings, the strongest first."""
        return _ordered(one for one in self.full if _is_policy(one.attack))

    @property
    def catalogue(self) -> tuple[Trained, ...]:
        """Attacks of the catalogue with full trainings, the strongest first."""
        return _ordered(one for one in self.full if one.attack is not None and not _is_policy(one.attack))

    @property
    def line(self) -> str | None:
        """The command of a run under the strongest attack."""
        return command_of(self.config.resolved())

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "varangian": __version__,
            "command": self.line,
            "strongest": self.strongest.plain(),
            "front": [one.plain() for one in self.front],
            "evaluations": self.evaluations,
            "generations": self.generations,
            "short": [one.plain() for one in self.short],
            "full": [one.plain() for one in self.full],
            "refused": dict(self.refused),
            "stopping": dict(self.stopping),
            "untried": self.untried,
            "runs": self.runs,
            "cut": self.cut,
            "settings": self.config.resolved(),
            "seconds": self.seconds,
            "searched": self.searched,
        }


def redteam(config: RunConfig, options: Options, note: Callable[[str], None]) -> Findings:
    """Search for the attack that harms the rule of a configuration most.

    Typed again, it goes on where it was. Without a budget, the same configuration, seed and number of
    generations give the same findings.

    Args:
        config: with the attackers, under any attack.
        options: the extent.
        note: takes lines about what is done.

    Raises:
        ConfigError: the folder is of another search.
        MissingLibraryError: the extra `redteam` is not installed.
        RunError: trainings cannot be carried out.
        ValueError: the data is missing, or nothing can be recorded.
    """
    check_library()
    return _Team(config, options, note).work()


class _Team:
    def __init__(self, config: RunConfig, options: Options, note: Callable[[str], None]) -> None:
        self._config, self._options, self._note = config, options, note
        self._f = config.byzantine.count
        self._settings = config.resolved()
        self._began = time.monotonic()
        self._cut, self._untried = False, 0
        options.folder.mkdir(parents=True, exist_ok=True)
        identity = identity_of({**self._settings, "redteam": [options.seed, __version__]})
        self._archive = Archive(options.folder / EVALUATIONS, identity)

    def work(self) -> Findings:
        options, archive = self._options, self._archive
        if options.budget is not None:
            ends = [f"{part * options.budget:g}" for part in (SEARCHING, SHORTENING, 1)]
            self._note(
                f"begins no generation after {ends[0]} s, no short training after {ends[1]} s, no full one "
                f"after {ends[2]} s; what has begun ends, and the strongest two attacks are trained in full"
            )
        with one_thread():
            judge = self._judge()
            generations = search(
                archive,
                judge,
                f=self._f,
                seed=options.seed,
                generations=options.generations,
                over=partial(self._over, SEARCHING),
                told=self._tell_generation,
            )
        evaluations, front = len(archive.found), tuple(archive.front)
        searched = time.monotonic() - self._began
        trainings = Trainings(
            self._settings,
            options.folder / "runs",
            jobs=options.jobs,
            over=partial(self._over, SHORTENING),
            told=self._tell_trained,
        )
        with trainings:
            short = self._short(trainings)
            trainings.over = partial(self._over, 1.0)
            full = self._full(trainings, short)
        strongest = max((one for one in full if one.attack is not None), key=lambda one: one.strength)
        findings = Findings(
            config=self._with_attack(strongest.attack),
            front=front,
            evaluations=evaluations,
            generations=generations,
            short=_ordered(short),
            full=tuple(full),
            strongest=strongest,
            refused=trainings.refused,
            stopping=trainings.stopping,
            untried=self._untried,
            runs=trainings.runs,
            index=trainings.indices.get("full"),
            seconds=time.monotonic() - self._began,
            searched=searched,
            cut=self._cut,
        )
        content = json.dumps(findings.plain(), indent=1, default=str) + "\n"
        write_atomically(options.folder / RESULT, content.encode())
        return findings

    def _judge(self) -> Judge:
        """Evaluates on rounds of a training without attack, and of one under the strongest known policy."""
        clean = record(self._recorded(None), "without attack", self._f, self._note)
        first = Judge(self._config.aggregator, self._f, tuple(clean))
        fitness = {policy: first(policy) for policy in known_policies(self._f)}
        worst = max(fitness, key=lambda policy: fitness[policy].damage)
        self._note(f"recorded {len(clean)} moments without attack; now under {name_of(worst)}")
        attacked = record(self._recorded(worst), f"under {name_of(worst)}", self._f, self._note)
        return replace(first, windows=(*clean, *attacked))

    def _recorded(self, policy: Composite | None) -> RunConfig:
        """The configuration of a recorded training, in which all workers take part in every round."""
        written = {**self._settings, "participation": "sync", "availability": "always", "delays": "none"}
        byzantine = {**self._settings["byzantine"], "attack": None, "count": 0}
        if policy is not None:
            byzantine |= {"attack": spec_of(policy), "count": self._f}
        return loads({**written, "byzantine": byzantine})

    def _with_attack(self, attack: Any) -> RunConfig:
        byzantine = {**self._settings["byzantine"], "attack": attack}
        return loads({**self._settings, "byzantine": byzantine})

    def _short(self, trainings: Trainings) -> list[Trained]:
        """Short trainings: under the best of the search, the catalogue, and neighbours of the strongest."""
        rounds = min(self._config.rounds, max(FEWEST, math.ceil(self._config.rounds / SHORT)))
        seeds = [self._config.seed + number for number in range(SHORT_SEEDS)]
        policies = self._candidates()
        # In turn, so that a budget leaves something of both.
        pairs = zip_longest(map(spec_of, policies), catalogue())
        attacks = [attack for pair in pairs for attack in pair if attack is not None]
        train = partial(trainings.train, rounds=rounds, seeds=seeds)
        self._note(f"short trainings of {rounds} rounds under {_extent(len(attacks), len(seeds))}")
        found = train("short", attacks, at_least=2)
        self._untried = len(attacks) - len(found) - len(trainings.refused) - len(trainings.stopping)
        tried, known = set[str](), {name_of(policy) for policy in policies}
        for number in range(1, REFINEMENTS + 1):
            forms = ((one, policy_form(one.attack)) for one in _ordered(found))
            best = next(
                (form for _, form in forms if form is not None and name_of(form) not in tried), None
            )
            if best is None or self._over(SHORTENING):
                break
            tried.add(name_of(best))
            beside = [one for one in (best, *neighbours(best, self._f)) if name_of(one) not in known]
            known |= {name_of(policy) for policy in beside}
            self._note(f"{len(beside)} policies beside {name_of(best)}")
            found += train(f"short-{number}", [*map(spec_of, beside)], at_least=0)
        return found

    def _candidates(self) -> list[Composite]:
        """The most harmful policies, of those with the same effect one; and those that harm elsewhere."""
        found, seen = list[Composite](), set[tuple[float, float]]()
        for one in self._archive.by_damage:
            effect = (round(one.fitness.damage, 6), round(one.fitness.effort, 6))
            if effect not in seen and len(found) < CANDIDATES:
                seen.add(effect)
                found.append(one.policy)
        names = {name_of(policy) for policy in found}
        return [*found, *(policy for policy in FOUND if name_of(policy) not in names)]

    def _full(self, trainings: Trainings, short: Sequence[Trained]) -> list[Trained]:
        """Full trainings without an attack, and under the strongest attacks of both kinds."""
        policies = _finalists(one for one in short if _is_policy(one.attack))
        # Those that were strongest elsewhere may do their harm late, which short trainings do not show.
        known = [spec_of(policy) for policy in FOUND]
        policies += [one for one in short if one.attack in known and one not in policies]
        others = _finalists(one for one in short if not _is_policy(one.attack))
        attacks: list[Any] = [None]
        for place in range(max(len(policies), len(others))):
            attacks += [kind[place].attack for kind in (policies, others) if place < len(kind)]
        seeds = [self._config.seed + number for number in range(self._options.seeds)]
        extent = _extent(len(attacks) - 1, len(seeds))
        self._note(f"full trainings of {self._config.rounds} rounds without an attack, and under {extent}")
        train = partial(trainings.train, rounds=self._config.rounds, seeds=seeds)
        found = train("full", attacks, at_least=3)
        attacked = [one for one in found if one.attack is not None]
        if not attacked:
            raise RunError(
                f"no training under an attack has ended well; see {self._options.folder / 'runs'}"
            )
        forms = (policy_form(one.attack) for one in _ordered(attacked))
        form = next((form for form in forms if form is not None), None)
        if form is None:
            return found
        if self._over(1.0):
            self._note(f"the budget leaves no time for full trainings beside {name_of(form)}")
            return found
        known = [one.attack for one in found]
        beside = [spec for one in (form, *neighbours(form, self._f)) if (spec := spec_of(one)) not in known]
        self._note(f"full trainings under {len(beside)} policies beside {name_of(form)}")
        return [*found, *train("full-1", beside, at_least=0)]

    def _over(self, part: float) -> bool:
        budget = self._options.budget
        over = budget is not None and time.monotonic() - self._began > part * budget
        self._cut |= over
        return over

    def _tell_generation(self, generation: int, archive: Archive) -> None:
        best = archive.by_damage[0]
        damage = f"{100 * best.fitness.damage:.1f} % by {best.name}"
        self._note(f"generation {generation}: {len(archive.found)} policies, damage {damage}")

    def _tell_trained(self, name: str, trained: Trained) -> None:
        self._note(f"{name}: {score_of(trained)} under {trained.name}")


def _extent(attacks: int, seeds: int) -> str:
    return f"{attacks} attack{'s' * (attacks != 1)}, {seeds} seed{'s' * (seeds != 1)}"


def score_of(trained: Trained) -> str:
    """`accuracy 91.2 %`, or the loss where there is none."""
    if trained.accuracy is None:
        return f"loss {trained.loss:.4g}"
    return f"accuracy {100 * trained.accuracy:.2f} %"


@contextmanager
def one_thread() -> Generator[None]:
    """Compute with one thread: on so few numbers several only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_policy(attack: Any) -> bool:
    return isinstance(attack, Mapping) and "composite" in attack


def _finalists(trained: Iterable[Trained]) -> list[Trained]:
    """The strongest ones; of those with the same trainings, which differ in nothing that matters, one."""
    found = dict[tuple[tuple[float, ...], tuple[float, ...]], Trained]()
    for one in _ordered(trained):
        found.setdefault((one.accuracies, one.losses), one)
    return [*found.values()][:FINALISTS]


def _ordered(trained: Iterable[Trained]) -> tuple[Trained, ...]:
    """The strongest first; of equal ones the first."""
    return tuple(sorted(trained, key=lambda one: one.strength, reverse=True))
