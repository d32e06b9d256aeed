"""Memory of a program that carries out several runs, as a notebook does: each run frees its own."""

import pytest
from tests.collecting import existing, joined, remembered, uncollected, vectors, without

from varangian.launch import run
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.training.learner import Learner

NUMBERS = 650
"""Parameters of the model."""
KINDS = {
    "sync": (),
    "invited": ("participation=fedavg", "server.checkpoint.every=2"),
    "async": ("participation=async", "optimizer=adam"),
    "remembered": ("participation=fedlaavg", "ema={decay: 0.9, reference_batch: 32}"),
    "batched": ("simulate.gradients=batched", "worker.momentum=0.9", "aggregator=nnm+median"),
    "attacked": ("byzantine.attack=ipm", "byzantine.count=1", "aggregator=krum"),
    "processes": ("backend=processes", "rounds=2"),
}


QUICK = ("async", "batched")
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.exhaustive) for name in KINDS]


@pytest.mark.whole
@pytest.mark.parametrize("kind", CASES)
def test_a_run_that_is_over_leaves_no_vectors(kind, small):
    def parts():
        return vectors(NUMBERS) + existing(Learner, Coordinator)

    run(small(*KINDS[kind], "rounds=1"))  # the data stays, by design
    with uncollected():
        before = remembered(parts())
        with joined():
            assert run(small(*KINDS[kind])).outcome == "finished"
        assert without(parts(), before) == []
