"""Workers in processes of their own that come and go, are slow, attack, and die."""

import multiprocessing

import pytest
from tests.extent import for_everybody

from varangian.config import load
from varangian.launch import run

pytestmark = pytest.mark.slow

SMALL = ["data=synthetic", "model=softmax", "worker.batch_size=8", "f=1", "aggregator=median"]


@pytest.fixture
def carried_out(tmp_path):
    def carry_out(*settings, observe=lambda record: None):
        records, notes = [], []

        def both(record):
            records.append(record)
            observe(record)

        config = load(None, [*SMALL, *for_everybody(), f"output={tmp_path / 'runs'}", *settings])
        result = run(config, observe=both, note=notes.append)
        assert multiprocessing.active_children() == []
        return result, records, [note for note in notes if not note.startswith(("memory:", "The latest"))]

    return carry_out


@pytest.mark.parametrize(
    "settings",
    [
        # Two of one half, then of the other; of four who are there, two wait for a later round.
        [
            *("participation={fedlaavg: {participants: 2, store: bfloat16}}", "workers=8"),
            *("byzantine.attack=sign_flip", "byzantine.count=1"),
        ],
        pytest.param(  # launch/test_forms.py sends deltas over the wire
            [
                *("participation={fedlaavg: {participants: 3, form: delta}}", "workers=6"),
                *("f=0", "aggregator=mean", "worker.local_steps=2"),
            ],
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_when_everybody_is_accounted_for_processes_and_simulation_agree(carried_out, settings):
    shared = ["availability={alternating: {period: 4}}", "rounds=8", *settings]
    # Longer than a busy machine takes to be heard of, and never waited for.
    shared += ["participation.fedlaavg.gather=50"]
    apart, there, notes = carried_out(*shared, "backend=processes")
    together, here, _ = carried_out(*shared, "backend=simulate")
    assert (apart.outcome, notes) == ("finished", [])
    assert [record.ages for record in there] == [record.ages for record in here]
    assert apart.digest == together.digest


def test_asap_ends_when_a_neighbourhood_can_never_have_its_quorum_again(carried_out):
    def kill(record):
        if record.round == 1:
            (process,) = [p for p in multiprocessing.active_children() if "w03" in p.name]
            process.kill()

    settings = ["participation=asap", "workers=6", "worker.per_process=1", "rounds=1000", "f=0"]
    result, _, _ = carried_out(*settings, "aggregator=mean", observe=kill)
    assert result.outcome != "finished"
    assert result.reason == "only 3 workers are left of w00, w01, w03, w05, and their quorum is 4"
