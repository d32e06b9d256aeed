"""The genetic search: NSGA-II over policies, with two objectives, more damage and less effort.

"A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II" (Deb et al., 2002), by Optuna. Every
evaluation is a line of a file. A search that is typed again reads them, and so goes on where it was: the
same seed asks for the same policies in the same order.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varangian.experiments.redteam.evaluation import Fitness
from varangian.experiments.redteam.policies import (
    choices,
    known_policies,
    name_of,
    parameters_of,
    policy_of,
)
from varangian.registry import ConfigError, Problem
from varangian.worker.attacks.composite import Composite

if TYPE_CHECKING:
    import optuna

POPULATION = 32
CROSSOVER = 0.9
"""The probability that a child has parameters of two parents."""
LIBRARY = "optuna"


class MissingLibraryError(Exception):
    """The extra `redteam` is not installed; the text is a sentence for the user."""


def check_library() -> None:
    """See that the library of the search is installed, without the time that importing it takes.

    Raises:
        MissingLibraryError: it is not.
    """
    if find_spec(LIBRARY) is None:
        raise MissingLibraryError(
            "a search needs optuna, which is not installed: pip install 'varangian[redteam]'"
        )


@dataclass(frozen=True)
class Evaluated:
    """A policy, and what it does on recorded rounds."""

    policy: Composite
    fitness: Fitness

    @property
    def name(self) -> str:
        return name_of(self.policy)

    def plain(self) -> dict[str, Any]:
        return {"policy": self.name, "damage": self.fitness.damage, "effort": self.fitness.effort}


class Archive:
    """The evaluations of a search, in memory and in a file of JSON lines.

    The first line says what they depend on. A last line that was cut off by a kill is written anew.

    Args:
        file: made if there is none.
        identity: what evaluations depend on.

    Raises:
        ConfigError: the file is of another search.
    """

    def __init__(self, file: Path, identity: str) -> None:
        self._file = file
        self._known = dict[str, Fitness]()
        self.found: dict[str, Evaluated] = {}
        """The policies that this search has asked for, in the order of the first time."""
        self.read = 0
        """How many of them were in the file."""
        lines = _lines(file)
        if lines and lines[0] != {"search": identity}:
            rule = f"{file} is of another search, with other settings, another seed or another version"
            raise ConfigError([Problem("--out", rule, hint="Choose another folder.")])
        for line in lines[1:]:
            self._known[line["policy"]] = Fitness(line["damage"], line["effort"])
        content = lines or [{"search": identity}]
        file.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")

    def __call__(self, policy: Composite, judge: Callable[[Composite], Fitness]) -> Fitness:
        """The fitness of a policy: known, or by the judge."""
        name = name_of(policy)
        if name in self.found:
            return self.found[name].fitness
        if name in self._known:
            self.read += 1
            fitness = self._known[name]
        else:
            fitness = judge(policy)
            line = {"policy": name, "damage": fitness.damage, "effort": fitness.effort}
            with self._file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
        self.found[name] = Evaluated(policy, fitness)
        return fitness

    @property
    def front(self) -> list[Evaluated]:
        """The policies that no other surpasses in both objectives, from little effort to much."""
        return front_of(self.found.values())

    @property
    def by_damage(self) -> list[Evaluated]:
        """All policies, the most harmful first; of equal ones that of the least effort."""
        return sorted(
            self.found.values(), key=lambda one: (-one.fitness.damage, one.fitness.effort, one.name)
        )


def front_of(evaluated: Iterable[Evaluated]) -> list[Evaluated]:
    """Those that no other surpasses in both objectives, from little effort to much; equal ones once."""
    front = list[Evaluated]()
    for one in sorted(evaluated, key=lambda one: (one.fitness.effort, -one.fitness.damage, one.name)):
        if not front or one.fitness.damage > front[-1].fitness.damage:
            front.append(one)
    return front


def search(
    archive: Archive,
    judge: Callable[[Composite], Fitness],
    *,
    f: int,
    seed: int,
    generations: int,
    over: Callable[[], bool] = lambda: False,
    told: Callable[[int, Archive], None] = lambda generation, archive: None,
) -> int:
    """Search for policies; returns the number of generations that were finished.

    The first generation begins with the attacks of the catalogue.

    Args:
        archive: takes the evaluations.
        judge: evaluates a policy.
        f: the number of attackers.
        seed: of the search.
        generations: the most.
        over: asked between generations whether the time is up.
        told: is told of each generation.
    """
    study, space = _study(f, seed)
    for generation in range(generations):
        for _ in range(POPULATION):
            trial = study.ask(space)
            fitness = archive(policy_of(trial.params), judge)
            study.tell(trial, [fitness.damage, fitness.effort])
        told(generation + 1, archive)
        if over():
            return generation + 1
    return generations


def _study(f: int, seed: int) -> tuple[optuna.Study, dict[str, Any]]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space: dict[str, Any] = {
        name: optuna.distributions.CategoricalDistribution(values) for name, values in choices(f).items()
    }
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, crossover_prob=CROSSOVER, seed=seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for policy in known_policies(f):
            study.enqueue_trial(parameters_of(policy))
    return study, space


def _lines(file: Path) -> Sequence[dict[str, Any]]:
    """The lines that are whole."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    found = list[dict[str, Any]]()
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
