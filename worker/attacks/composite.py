"""Composite attack: up to three operators in a row, as the attack search finds them.

n  workers     f  of them attack     H  honest vectors that are seen     k  columns, or coordinates
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from varangian.registry import suggestion
from varangian.worker.attacks.alie import population_deviation
from varangian.worker.attacks.base import ATTACKS, Knowledge, Sent, Sight
from varangian.worker.attacks.live_rule import LiveRule
from varangian.worker.attacks.mimic import outermost

MOST = 3
"""Most steps, as in the policies of "Composite Adversarial Attacks"."""
KEPT = 0.9
"""The share of a remembered direction that stays from one round to the next."""
PROBES = 8
"""Factors that `optimal` tries, each half of the one before."""
CLOSER = (2**-0.5, 2**-0.25, 2**0.25, 2**0.5)
"""Factors of the best of these that it tries then."""
SAME = 1e-6
"""Relative difference of effects that counts as rounding."""
HALF, MEMORY = "half", "memory"


Deviation: TypeAlias = Callable[[float], float]
"""From a factor to |F - mean|^2 of the aggregate F."""
Line: TypeAlias = Callable[[Sequence[Tensor | None], Sequence[int]], Deviation]
"""Prepares to ask the rule of the server: from the vectors of the groups of attackers, None of a silent
one, and the groups whose deviation from the mean is multiplied."""


@dataclass(frozen=True, eq=False)
class Scene:
    """The honest vectors of a round, and landmarks among them.

    Operators need inner products alone. So all of this may be given by coordinates in any orthonormal
    basis of a subspace that holds it, and an evaluation has the cost of n vectors of a few coordinates.
    """

    round: int
    honest: Tensor
    """(H, k)"""
    mean: Tensor
    deviation: Tensor
    """(k,), the standard deviation of each column."""
    sign: Tensor
    """(k,), the signs of the mean."""
    noise: Callable[[], Tensor]
    """Draws a vector (k,): the deviation of each column times a standard normal number."""
    forward: Tensor | None = None
    """(k,), the last step of the model, of any length; None before there is one."""
    line: Line | None = None
    """None where the rule cannot be asked."""

    @cached_property
    def apart(self) -> Tensor:
        """Squared distances of the honest vectors from each other, (H, H) float64."""
        centred = (self.honest - self.mean).double()
        inner = centred @ centred.T
        squares = inner.diagonal()
        return (squares[:, None] + squares - 2 * inner).clamp_min(0)

    @cached_property
    def principal(self) -> Tensor:
        """(k,), the direction in which honest vectors differ most, as long as their deviation along it.

        Of both directions it is the one that points away from the mean.
        """
        centred = (self.honest - self.mean).double()
        values, vectors = torch.linalg.eigh((centred @ centred.T).cpu())
        along = vectors[:, -1].to(centred.device) @ centred
        length = math.sqrt(max(0.0, float(values[-1])) / len(centred))
        against = -1.0 if float(along @ self.mean.double()) > 0 else 1.0
        found: Tensor = (along * (against * length / max(float(along.norm()), TINY))).to(self.mean)
        return found

    @cached_property
    def outermost(self) -> Tensor:
        """The honest vector that is furthest from the mean along the direction of most variance."""
        row: Tensor = self.honest[outermost(self.honest)]
        return row


TINY = 1e-30
"""In place of a length of 0, by which nothing can be divided."""


def _most(scene: Scene, vector: Tensor, direction: Tensor, reach: float) -> float:
    """The largest t for which vector + t direction is at most `reach` from every honest vector.

    With e = vector - g the distance to g is reach at t = (-<p, e> + sqrt(<p, e>^2 + |p|^2 (reach^2 -
    |e|^2))) / |p|^2; 0 where the vector is further away already.
    """
    p, apart = direction.double(), (vector - scene.honest).double()
    square, along = float(p @ p), apart @ p
    if square == 0:
        return 0.0
    under = along.square() + square * (reach**2 - apart.square().sum(dim=1))
    return max(0.0, float((under.clamp_min(0).sqrt() - along).min()) / square)


def _min_max(direction: Callable[[Scene], Tensor]) -> Move:
    def move(scene: Scene, vector: Tensor, strength: float) -> Tensor:
        p = direction(scene)
        return vector + strength * _most(scene, vector, p, math.sqrt(float(scene.apart.max()))) * p

    return move


def _min_sum(direction: Callable[[Scene], Tensor]) -> Move:
    def move(scene: Scene, vector: Tensor, strength: float) -> Tensor:
        """The largest t with sum |vector + t p - g|^2 <= the largest such sum of an honest vector."""
        p, apart = direction(scene), (vector - scene.honest).double()
        square, along = len(apart) * float(p.double() @ p.double()), float((apart @ p.double()).sum())
        if square == 0:
            return vector
        room = float(scene.apart.sum(dim=1).max() - apart.square().sum())
        most = (math.sqrt(max(0.0, along**2 + square * room)) - along) / square
        return vector + strength * max(0.0, most) * p

    return move


def _towards(sign: float) -> Move:
    def move(scene: Scene, vector: Tensor, strength: float) -> Tensor:
        if scene.forward is None:
            return vector
        length = float(scene.mean.norm()) / max(float(scene.forward.norm()), TINY)
        return vector + (sign * strength * length) * scene.forward

    return move


Move = Callable[[Scene, Tensor, float], Tensor]
"""From a vector (k,) of attackers and a strength to the next one."""


@dataclass(frozen=True)
class Operator:
    """One kind of step."""

    meaning: str
    usual: float
    """The strength where none is written."""
    levels: tuple[float, ...]
    """Strengths that a search tries, from weak to strong."""
    move: Move | None = None
    """None of those that `Composite` carries out itself."""

    @property
    def remembers(self) -> bool:
        """Whether it takes the word `memory`."""
        return self.move is not None


def _unit(scene: Scene) -> Tensor:
    return -scene.mean


def _std(scene: Scene) -> Tensor:
    return -scene.deviation


def _sign(scene: Scene) -> Tensor:
    return -scene.sign


SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)
FACTORS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "scale": Operator("the vector times the strength", 2.0, FACTORS, lambda _, b, s: s * b),
        "flip": Operator("the vector times minus the strength", 1.0, FACTORS, lambda _, b, s: -s * b),
        "alie": Operator(
            "strength standard deviations below the vector, in each coordinate",
            1.5,
            (0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0),
            lambda scene, b, s: b - s * scene.deviation,
        ),
        "ipm": Operator(
            "the honest mean in the vector is replaced by minus strength times it",
            0.5,
            FACTORS,
            lambda scene, b, s: b - (1 + s) * scene.mean,
        ),
        "min_max": Operator(
            "strength times as far against the mean as the distance to every honest vector stays within "
            "the largest between two of them",
            1.0,
            SHARES,
            _min_max(_unit),
        ),
        "min_max_std": Operator("the same against the standard deviations", 1.0, SHARES, _min_max(_std)),
        "min_max_sign": Operator("the same against the signs of the mean", 1.0, SHARES, _min_max(_sign)),
        "min_sum": Operator(
            "strength times as far against the mean as the sum of squared distances to honest vectors "
            "stays within the largest of an honest one",
            1.0,
            SHARES,
            _min_sum(_unit),
        ),
        "min_sum_std": Operator("the same against the standard deviations", 1.0, SHARES, _min_sum(_std)),
        "min_sum_sign": Operator("the same against the signs of the mean", 1.0, SHARES, _min_sum(_sign)),
        "mimic": Operator(
            "that share of the way to the honest vector that is outermost where they differ most",
            1.0,
            SHARES,
            lambda scene, b, s: b + s * (scene.outermost - b),
        ),
        "principal": Operator(
            "strength standard deviations along the direction in which honest vectors differ most",
            1.5,
            (0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0),
            lambda scene, b, s: b + s * scene.principal,
        ),
        "gaussian": Operator(
            "noise of strength times the standard deviation of each coordinate",
            1.0,
            FACTORS,
            lambda scene, b, s: b + s * scene.noise(),
        ),
        "toward": Operator(
            "along the last step of the model, strength times the length of the mean",
            1.0,
            FACTORS,
            _towards(1),
        ),
        "away": Operator(
            "against the last step of the model, strength times the length of the mean",
            1.0,
            FACTORS,
            _towards(-1),
        ),
        "replay": Operator(
            "the vector that the step was given so many rounds ago", 1, (1, 2, 3, 4, 6, 8, 12, 16)
        ),
        "drop": Operator(
            "nothing is sent in that share of the rounds", 1.0, (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)
        ),
        "optimal": Operator(
            "what lies between the mean and the vector, times the factor up to the strength with which the "
            "rule of the run deviates most",
            8.0,
            (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0),
        ),
    }
)


@dataclass(frozen=True)
class Step:
    """One step of a policy: `alie 1.5 half memory`."""

    operator: str
    strength: float
    half: bool = False
    """Whether only the first half of the attackers, rounded up, takes it."""
    memory: bool = False
    """Whether it goes in the average direction of its rounds so far, as far as in this one."""

    @classmethod
    def read(cls, text: str) -> Step:
        """The step that is written like this.

        Raises:
            ValueError: it is none.
        """
        name, *words = text.split() or [""]
        if name not in OPERATORS:
            raise ValueError(f"{text!r} should begin with an operator. {suggestion(name, OPERATORS)}")
        flags = [word for word in words if word in (HALF, MEMORY)]
        numbers = [word for word in words if word not in (HALF, MEMORY)]
        if len(numbers) > 1 or len({*flags}) < len(flags):
            raise ValueError(f"{text!r} should be an operator, a strength, and perhaps `half` and `memory`")
        step = cls(
            name,
            _number(text, *numbers) if numbers else OPERATORS[name].usual,
            HALF in flags,
            MEMORY in flags,
        )
        step.check(text)
        return step

    def check(self, text: str) -> None:
        """See that the strength fits the operator.

        Raises:
            ValueError: it does not.
        """
        if self.memory and not OPERATORS[self.operator].remembers:
            raise ValueError(
                f"{text!r} should be without `memory`: {self.operator} has no direction to keep"
            )
        if not 0 < self.strength < math.inf:
            raise ValueError(f"{text!r} should have a positive, finite strength")
        if self.operator == "drop" and self.strength > 1:
            raise ValueError(f"{text!r} should have a strength of at most 1, the share of the rounds")
        if self.operator == "replay" and self.strength % 1:
            raise ValueError(f"{text!r} should have a whole number of rounds as its strength")

    def __str__(self) -> str:
        words = (self.operator, f"{self.strength:g}", *[HALF] * self.half, *[MEMORY] * self.memory)
        return " ".join(words)


def _number(text: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{text!r} should have a number as its strength. Found {word!r}") from None


Memory = Mapping[Any, Any]
"""Of each step and group what it keeps; and the last model."""
START: Memory = MappingProxyType({})
MODEL = "model"


@ATTACKS.register("composite")
@dataclass(frozen=True)
class Composite:
    """Composite attack: steps in a row, each from the vector that the one before has made.

    After "Composite Adversarial Attacks" (Mao et al., 2021), with operators on vectors in place of those on
    images; `varangian redteam` searches for the policy that harms a rule most. Attackers begin with the
    mean of the honest vectors. A step is written as `alie 1.5 half memory`: an operator, its strength, and
    whether half of the attackers take it, and whether it keeps its direction over rounds. After each step
    the vector is drawn back towards the mean until it is within the budget.

    Vector: that of up to three steps in a row; by `varangian redteam`.
    """

    needs: ClassVar[Sight] = "all"
    joint: ClassVar[bool] = True
    steps: tuple[str, ...] = ("alie 1.5", "ipm 0.5 half")
    """Up to three, as [alie 1.5, mimic half, optimal]; the page on the search has the operators."""
    budget: float | None = None
    """Most distance to any honest vector, in the largest distances between two of them; null is no limit.
    With 1 no distance is a sign of an attacker, as for min-max."""

    def __post_init__(self) -> None:
        if not 0 < len(self.steps) <= MOST:
            raise ValueError(f"`steps` should be 1 to {MOST}. Found {len(self.steps)}.")
        for text in self.steps:
            Step.read(text)
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ValueError(f"`budget` should be a positive, finite number or null. Found {self.budget}.")

    @cached_property
    def policy(self) -> tuple[Step, ...]:
        """The steps."""
        return tuple(map(Step.read, self.steps))

    @property
    def groups(self) -> int:
        """2 where a step is of half of the attackers: the first half, and the others; otherwise 1."""
        return 1 + any(step.half for step in self.policy)

    def group(self, rank: int, f: int) -> int:
        """The group of an attacker."""
        return int(self.groups == 2 and rank >= (f + 1) // 2)

    def requires(self, n: int, f: int, seen: int) -> str | None:
        if seen < 2:
            return "it needs to see at least 2 vectors to know their spread, and it sees 1"
        if f < self.groups:
            return "a step is of half of the attackers, and there is one"
        return None

    def start(self) -> Memory:
        return START

    def step(self, own: Tensor, knows: Knowledge, memory: Memory) -> tuple[Sent, Memory]:
        scene = self._scene(knows, memory.get(MODEL))
        vectors, kept = self.play(scene, memory)
        if any(step.operator in ("toward", "away") for step in self.policy):
            kept = {**kept, MODEL: knows.model.clone()}
        return tuple(vectors[self.group(rank, knows.f)] for rank in range(knows.f)), kept

    def play(self, scene: Scene, memory: Memory) -> tuple[tuple[Tensor | None, ...], Memory]:
        """The vector of each group in a round, None where it sends nothing; and the memory afterwards."""
        vectors, kept = [scene.mean] * self.groups, dict(memory)
        silent = [False] * self.groups
        for place, step in enumerate(self.policy):
            taking = range(1 if step.half else self.groups)
            if step.operator == "drop":
                for group in taking:
                    silent[group] |= _is_turn(step.strength, scene.round)
                continue
            if step.operator == "optimal":
                sent = [None if off else vector for vector, off in zip(vectors, silent, strict=True)]
                factor = best_factor(scene, sent, taking, step.strength)
                for group in taking:
                    vectors[group] = scene.mean + factor * (vectors[group] - scene.mean)
            else:
                for group in taking:
                    vectors[group] = self._moved(step, scene, vectors[group], (place, group), kept)
            for group in taking:
                vectors[group] = self._within(scene, vectors[group])
        return tuple(None if off else v for v, off in zip(vectors, silent, strict=True)), kept

    def line(self, rule: LiveRule | None, honest: Tensor, mean: Tensor, f: int) -> Line | None:
        """The preparation of questions to a rule, for a `Scene`; None where it cannot be asked."""
        if rule is None or not bool(mean.isfinite().all()):
            return None
        target = mean if rule.weights is None else rule.mean(honest)

        def prepare(vectors: Sequence[Tensor | None], taking: Sequence[int]) -> Deviation:
            (first, *others) = vectors
            if first is not None and not others:
                probe = rule.along(honest, mean, first - mean, f)
                return lambda factor: probe(factor).deviation

            def deviation(factor: float) -> float:
                sent, ranks = (
                    self.of_all(stretched(mean, vectors, taking, factor), f),
                    self.ranks(vectors, f),
                )
                update = rule(torch.stack([*honest, *sent]), ranks=ranks)
                return float((update - target).double().square().sum())

            return deviation

        return prepare

    def of_all(self, vectors: Sequence[Tensor | None], f: int) -> list[Tensor]:
        """The vectors of all f attackers, given those of the groups; those who send nothing have none."""
        sent = (vectors[self.group(rank, f)] for rank in range(f))
        return [vector for vector in sent if vector is not None]

    def ranks(self, vectors: Sequence[Tensor | None], f: int) -> list[int]:
        """The attackers of whom `of_all` has a vector."""
        return [rank for rank in range(f) if vectors[self.group(rank, f)] is not None]

    def _moved(
        self, step: Step, scene: Scene, vector: Tensor, key: tuple[int, int], kept: dict[Any, Any]
    ) -> Tensor:
        operator = OPERATORS[step.operator]
        if operator.move is None:  # replay
            earlier = (*kept.get(key, ()), vector)[-int(step.strength) - 1 :]
            kept[key] = earlier
            return earlier[0]  # type: ignore[no-any-return]
        moved = operator.move(scene, vector, step.strength)
        if not step.memory:
            return moved
        apart = moved - vector
        length = float(apart.norm())
        if length == 0:
            return moved
        direction = apart / length
        if key in kept:
            direction = KEPT * kept[key] + (1 - KEPT) * direction
        kept[key] = direction
        return vector + (length / max(float(direction.norm()), TINY)) * direction

    def _within(self, scene: Scene, vector: Tensor) -> Tensor:
        """The vector, drawn towards the mean until it is within the budget."""
        if self.budget is None:
            return vector
        apart, reach = vector - scene.mean, self.budget * math.sqrt(float(scene.apart.max()))
        share = _most(scene, scene.mean, apart, reach)
        return vector if share >= 1 else scene.mean + share * apart

    def _scene(self, knows: Knowledge, before: Tensor | None) -> Scene:
        honest = knows.honest
        mean, deviation = honest.mean(dim=0), population_deviation(honest)

        def noise() -> Tensor:
            drawn = torch.randn(mean.shape, generator=knows.rng, dtype=mean.dtype)
            return deviation * drawn.to(mean.device)

        forward = None if before is None else (before - knows.model).to(mean)
        line = self.line(knows.rule, honest, mean, knows.f)
        return Scene(knows.round, honest, mean, deviation, mean.sign(), noise, forward, line)


def _is_turn(share: float, round: int) -> bool:
    """Whether a round is one of that share of all rounds, evenly spread."""
    return math.floor((round + 1) * share + 1e-9) > math.floor(round * share + 1e-9)


def stretched(
    mean: Tensor, vectors: Sequence[Tensor | None], taking: Sequence[int], factor: float
) -> list[Tensor | None]:
    """The vectors, with the deviations from the mean of some groups times a factor."""
    return [
        mean + factor * (vector - mean) if vector is not None and group in taking else vector
        for group, vector in enumerate(vectors)
    ]


def best_factor(
    scene: Scene, vectors: Sequence[Tensor | None], taking: Sequence[int], most: float
) -> float:
    """The factor, up to `most`, of the deviation of these groups with which the aggregate deviates most.

    It is 1 where the rule cannot be asked, these groups send nothing, or the effect of nothing is a number.
    """
    if scene.line is None or all(vectors[group] is None for group in taking):
        return 1.0
    effect = scene.line(vectors, taking)
    tried = {factor: effect(factor) for factor in (most * 2.0**-k for k in range(PROBES))}
    best = _least_best(tried)
    return _least_best(tried | {f: effect(f) for near in CLOSER if (f := best * near) <= most})


def _least_best(tried: Mapping[float, float]) -> float:
    """The least factor whose effect is the largest, but for rounding; 1 where no effect is a number."""
    known = {factor: effect for factor, effect in tried.items() if not math.isnan(effect)}
    largest = max(known.values(), default=0.0)
    return min((factor for factor, effect in known.items() if effect >= largest * (1 - SAME)), default=1.0)
