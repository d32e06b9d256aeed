"""Row sources that are kept in a checkpoint, and go on in another process with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.kept import kept
from torch import Tensor

from varangian.aggregators import Aggregator, Krum
from varangian.server.protocol.events import Close, Skip
from varangian.server.rows.delta_sum import DeltaSum
from varangian.server.rows.latest import LatestVectors
from varangian.server.rows.source import Pushed, RowSource, WeightedByAge
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd

N, D, K = 60, 40, 2
NAMES = tuple(f"w{i:02}" for i in range(N))


def play(source: RowSource, learner: Learner, rounds: range) -> None:
    """A few push in each round; one round is skipped, one proves a worker faulty, one is revoked."""
    for round in rounds:
        rng = torch.Generator().manual_seed(round)
        pushed = [NAMES[i] for i in torch.randperm(N, generator=rng)[:5].tolist()]
        rows: dict[str, Tensor] = {name: torch.randn(D, generator=rng) for name in sorted(pushed)}
        faults = {pushed[0]: "not finite"} if round % 5 == 3 else {}
        if round % 5 == 1:
            source.skip(Skip(round, tuple(rows), {}, (), 0.0, "too few"), rows)
            continue
        if round % 5 == 2:
            source.forget(pushed[-1])
        ages = dict.fromkeys(rows, round % 3)
        close = Close(round, tuple(rows), faults, (), 0.0, "", ages=ages, factors=dict.fromkeys(rows, 0.5))
        given = source.step_input(close, {w: row for w, row in rows.items() if w not in faults})
        learner.step(
            round,
            given.rows,
            faults,
            mix=given.mix,
            measure=given.measure,
            aggregation=given.aggregation,
            fresh=given.fresh,
        )


SOURCES: dict[str, Callable[[Path], RowSource]] = {
    "pushed": lambda folder: Pushed(),
    "weighted": lambda folder: WeightedByAge(),
    "latest": lambda folder: LatestVectors.of(NAMES, D, K, expire=9),
    "on disk": lambda folder: LatestVectors.of(NAMES, D, K, folder=str(folder), store="bfloat16"),
    "measured anew": lambda folder: LatestVectors.of(NAMES, D, N),
    "deltas": lambda folder: DeltaSum(NAMES, D),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    def learner() -> Learner:
        return Learner(torch.ones(D), Aggregator(Krum(f=1)), Sgd(lr=0.5), rounds=99, seed=1)

    straight, model = SOURCES[name](tmp_path), learner()
    play(straight, model, range(12))
    state, source = kept(straight.state(), tmp_path), SOURCES[name](tmp_path)
    play(source, learner(), range(3))  # whatever was there before is gone
    source.restore(state)
    twin = learner()
    twin.restore(kept(model.state(), tmp_path))
    play(straight, model, range(12, 30))
    play(source, twin, range(12, 30))
    assert model.digest() == twin.digest()
    for each in (straight, source):
        each.close()


@pytest.mark.parametrize("name", ["latest", "deltas"])
def test_a_state_of_another_model_is_refused(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    play(source, Learner(torch.ones(D), Aggregator(Krum(f=1)), Sgd(lr=0.5), rounds=9, seed=1), range(1))
    other = LatestVectors.of(NAMES, D + 1, K) if name == "latest" else DeltaSum(NAMES, D + 1)
    with pytest.raises(ValueError, match=r"should be \(41,\)"):
        other.restore(source.state())


@pytest.mark.parametrize("name", ["latest", "on disk", "measured anew"])
def test_the_rows_of_other_workers_go_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    def play_on(source: RowSource, model: Learner) -> None:
        for round in range(12, 20):
            pushed = others[round : round + 4]
            rng = torch.Generator().manual_seed(round)
            rows: dict[str, Tensor] = {worker: torch.randn(D, generator=rng) for worker in pushed}
            given = source.step_input(Close(round, pushed, {}, (), 0.0, ""), rows)
            model.step(round, given.rows, {}, measure=given.measure, fresh=given.fresh)

    others, learner = (
        (*NAMES[3:], "w60"),
        Learner(torch.ones(D), Aggregator(Krum(f=1)), Sgd(lr=0.5), rounds=99, seed=1),
    )
    source = SOURCES[name](tmp_path)
    assert isinstance(source, LatestVectors)
    play(source, learner, range(12))
    before = {worker: row.clone() for worker, row in source.latest.rows().items()}
    source.change(others, K)
    after = source.latest.rows()
    assert after.keys() == {*others}
    assert all(torch.equal(after[worker], before[worker]) for worker in NAMES[3:])
    assert not after["w60"].any()
    folder = source.latest.plan.folder
    twin = LatestVectors.of(others, D, K, store=source.latest.plan.dtype, folder=folder and str(folder))
    twin.restore(kept(source.state(), tmp_path))
    model = Learner(torch.ones(D), Aggregator(Krum(f=1)), Sgd(lr=0.5), rounds=99, seed=1)
    model.restore(kept(learner.state(), tmp_path))
    play_on(source, learner)
    play_on(twin, model)
    assert learner.digest() == model.digest()
    for each in (source, twin):
        each.close()
