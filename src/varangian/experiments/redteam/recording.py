"""Recorded rounds: honest vectors of a few moments of a training, to play thousands of attacks on.

n  workers     f  of them attack     H  honest vectors     d  parameters     m  vectors that are kept
r  coordinates

A rule that weighs vectors by their inner products, and operators that combine them, are the same in any
orthonormal basis: such a window is kept as coordinates in the space that its vectors span. For other rules
the columns are kept, of many a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from varangian.aggregators import AggregationError, Aggregator
from varangian.aggregators.base import is_columnwise, is_whole
from varangian.config import RunConfig
from varangian.config.build import learner, task
from varangian.launch.server_run import vector_source, with_sample_weights
from varangian.worker.attacks.alie import population_deviation
from varangian.worker.seeds import generator
from varangian.worker.training.compute import WorkerCompute

STAGES = (0.05, 0.3, 0.9)
"""The moments that are recorded, as shares of the rounds of a training."""
LENGTH = 4
"""Consecutive rounds of one moment, over which errors add up."""
COLUMNS = 2048
"""Columns that are kept where a rule looks at columns; of more, a random sample."""
NOISE = 3
"""Draws of noise in a round that have coordinates of their own."""
BLOCK = 1 << 16
"""Columns that are multiplied in float64 at once."""


@dataclass(frozen=True, eq=False)
class RecordedRound:
    """The honest vectors of a round and their landmarks, as a `Scene` takes them."""

    number: int
    honest: Tensor
    """(H, k), by coordinates or columns."""
    mean: Tensor
    deviation: Tensor
    sign: Tensor
    noise: Callable[[], Callable[[], Tensor]]
    """Makes a source of noise, which draws the same vectors each time."""
    weights: tuple[float, ...] | None = None
    """What the rows of the round weigh, those of the f attackers last; None where all weigh the same."""


@dataclass(frozen=True, eq=False)
class Window:
    """Consecutive rounds of a training."""

    name: str
    rounds: tuple[RecordedRound, ...]
    reference: Tensor | None
    """The last aggregate before them; None at the beginning of a training."""
    blocks: tuple[int, ...] | None = None
    """Sizes of the parameter tensors, where a rule is applied to each by itself."""


def by_products(aggregator: Aggregator) -> bool:
    """Whether the rule needs the inner products of whole vectors alone."""
    return not (is_columnwise(aggregator.rule) or is_whole(aggregator.rule) or aggregator.splits)


def record(
    config: RunConfig, name: str, f: int, note: Callable[[str], None] = lambda text: None
) -> list[Window]:
    """Train as configured, and keep the honest vectors of some rounds.

    Args:
        config: of a run in which all workers take part in every round.
        name: of the training, for the names of its windows.
        f: how many workers, the last ones, attack or will.
        note: takes sentences about the training.

    Raises:
        ValueError: the data is missing, or does not fit.
    """
    compute = WorkerCompute(task(config))
    config = with_sample_weights(config, compute)
    vectors, sentence = vector_source(config, compute)
    if sentence:
        note(sentence)
    layout = compute.layout
    sizes, shapes = layout.trained.sizes, layout.trained.shapes
    trained = learner(config, compute.initial(), blocks=sizes, shapes=shapes, buffers=layout.buffers)
    starts = moments(config.rounds)
    windows, held, reference = list[Window](), list[tuple[int, Tensor]](), None
    honest, known = config.worker_names[: config.workers - f], config.worker_weights
    weights = dict[int, tuple[float, ...]]()
    for round in range(starts[-1] + LENGTH if config.rounds >= LENGTH else config.rounds):
        rows = vectors.vectors(config.worker_names, round, trained.parameters)
        sent, buffers = trained.split(
            {name: row.cpu() for name, row in rows.items() if isinstance(row, Tensor)}
        )
        here = [sent[name] for name in honest if name in sent]
        if round in starts:
            held, reference = [], None if trained.reference is None else trained.reference.clone()
        if any(start <= round < start + LENGTH for start in starts) and len(here) > 1:
            held.append((round, torch.stack(here)))
            if known is not None:
                there = [name for name in honest if name in sent]
                weights[round] = tuple(
                    known[name] for name in (*there, *config.worker_names[len(honest) :])
                )
            if round + 1 in {start + LENGTH for start in starts} or round + 1 == config.rounds:
                label = f"{name}, rounds {held[0][0]} to {round}"
                blocks = layout.trained.sizes
                found = window(label, held, reference, config.aggregator, config.seed, blocks)
                kept = tuple(replace(each, weights=weights.get(each.number)) for each in found.rounds)
                windows.append(replace(found, rounds=kept))
        try:
            trained.step(round, sent, {}, buffers=buffers)
        except AggregationError as error:
            note(f"{name}: round {round} has no update: {error}")
    if not windows:
        raise ValueError("no round has the vectors of two honest workers, so there is nothing to attack")
    return windows


def moments(rounds: int) -> tuple[int, ...]:
    """The first round of each window; windows do not overlap."""
    last = max(0, rounds - LENGTH)
    starts = list[int]()
    for share in STAGES:
        start = min(last, math.floor(share * rounds))
        if not starts or start >= starts[-1] + LENGTH:
            starts.append(start)
    return tuple(starts)


def window(
    name: str,
    rounds: Sequence[tuple[int, Tensor]],
    reference: Tensor | None,
    aggregator: Aggregator,
    seed: int,
    blocks: tuple[int, ...] | None = None,
) -> Window:
    """A window of the honest vectors (H, d) of some rounds, kept as the rule needs them."""
    if by_products(aggregator):
        return in_coordinates(name, rounds, reference)
    if aggregator.splits:
        return replace(in_columns(name, rounds, reference, seed), blocks=blocks)
    d = rounds[0][1].shape[1]
    if d <= COLUMNS:
        return in_columns(name, rounds, reference, seed)
    chosen = torch.randperm(d, generator=generator(seed, "redteam columns"))[:COLUMNS].sort().values
    sampled = [(number, rows[:, chosen].contiguous()) for number, rows in rounds]
    return in_columns(name, sampled, None if reference is None else reference[chosen], seed)


def in_columns(
    name: str, rounds: Sequence[tuple[int, Tensor]], reference: Tensor | None, seed: int
) -> Window:
    """The window as it is."""
    return Window(name, tuple(_columns(number, rows, seed) for number, rows in rounds), reference)


def _columns(number: int, honest: Tensor, seed: int) -> RecordedRound:
    mean, deviation = honest.mean(dim=0), population_deviation(honest)

    def noise() -> Callable[[], Tensor]:
        random = generator(seed, "redteam noise", number)
        return lambda: deviation * torch.randn(mean.shape, generator=random, dtype=mean.dtype)

    return RecordedRound(number, honest, mean, deviation, mean.sign(), noise)


def in_coordinates(name: str, rounds: Sequence[tuple[int, Tensor]], reference: Tensor | None) -> Window:
    """The window in the space that its vectors span; noise is orthogonal to it, as in many columns."""
    vectors = [row for _, honest in rounds for row in _landmarks(honest)]
    if reference is not None:
        vectors.append(reference)
    places = iter(_spanned(vectors, NOISE * len(rounds)))
    kept = list[RecordedRound]()
    for number, honest in rounds:
        centred = torch.stack([next(places) for _ in honest])
        mean, deviation, sign = next(places), next(places), next(places)
        source = _orthogonal(mean, float(deviation.norm()), len(mean) - NOISE * (len(kept) + 1))
        kept.append(RecordedRound(number, centred + mean, mean, deviation, sign, source))
    return Window(name, tuple(kept), None if reference is None else next(places))


def _landmarks(honest: Tensor) -> Iterator[Tensor]:
    """The deviations of honest vectors from their mean, their mean, deviation and signs."""
    mean = honest.mean(dim=0)
    yield from (honest - mean).unbind()
    yield from (mean, population_deviation(honest), mean.sign())


def _orthogonal(like: Tensor, length: float, first: int) -> Callable[[], Callable[[], Tensor]]:
    """A source of noise of this length along coordinates that nothing else has."""

    def noise() -> Callable[[], Tensor]:
        drawn = 0

        def draw() -> Tensor:
            nonlocal drawn
            vector = torch.zeros_like(like)
            vector[first + drawn % NOISE] = length
            drawn += 1
            return vector

        return draw

    return noise


def _spanned(vectors: Sequence[Tensor], more: int) -> Tensor:
    """Coordinates of vectors in an orthonormal basis of their span, (m, r + more); the last ones are 0."""
    lengths = torch.stack([vector.double().norm() for vector in vectors])
    scale = torch.where(lengths > 0, 1 / lengths.clamp_min(1e-300), 0.0)
    m, d = len(vectors), vectors[0].numel()
    products = torch.zeros(m, m, dtype=torch.float64)
    for start in range(0, d, BLOCK):
        block = torch.stack([vector[start : start + BLOCK] for vector in vectors]).double()
        block *= scale[:, None]
        products += block @ block.T
    values, basis = torch.linalg.eigh(products)
    there = values > m * torch.finfo(torch.float64).eps * values[-1].clamp_min(1e-300)
    coordinates = lengths[:, None] * basis[:, there] * values[there].sqrt()
    return torch.nn.functional.pad(coordinates, (0, more))
