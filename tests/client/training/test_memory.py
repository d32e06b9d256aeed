"""Worker momentum: its formula, and the same again after a restart of the worker or of the server."""

import logging

import pytest
import torch
from tests.client.rig import model, serving
from tests.ports import free_port

from varangian.client.training.memory import MomentumMemory
from varangian.protos.contract import Terms

BETA = 0.5
STARTED = Terms(momentum=BETA, every=2, keep=2)
RESUMED = Terms(epoch=1, resumed_at=2, momentum=BETA, every=2, keep=2)


def pushed(worker, value):
    """Push a vector of this value for the next round; returns which one that was."""
    assert worker.pull()
    assert worker.push(torch.full((worker.layout.numel,), float(value)))
    return worker.round


def after(*values):
    """The momentum after these gradients."""
    momentum = 0.0
    for value in values:
        momentum = BETA * momentum + (1 - BETA) * value
    return momentum


def sent(rig):
    return {round: float(rows["w00"][0]) for round, rows in rig.rows.items()}


def test_the_momentum_of_the_settings_is_applied():
    module = model()
    with serving(module, terms=STARTED, rounds=4) as rig, rig.connect(module) as worker:
        assert [pushed(worker, value) for value in (8, 16, 24)] == [0, 1, 2]
        assert worker.pull()
    assert sent(rig) == {0: after(8), 1: after(8, 16), 2: after(8, 16, 24)}


def test_a_worker_that_starts_again_has_its_momentum_from_the_disk(tmp_path):
    module = model()
    with serving(module, terms=STARTED, rounds=4) as rig:
        for values in ((8, 16), (24,)):
            with rig.connect(module, state=tmp_path) as worker:
                for value in values:
                    pushed(worker, value)
        # In memory it begins anew.
        with rig.connect(module) as worker:
            pushed(worker, 32)
            assert not worker.pull()
    assert sent(rig) == {0: after(8), 1: after(8, 16), 2: after(8, 16, 24), 3: after(32)}


@pytest.mark.parametrize("kept", [True, False])
def test_after_a_restart_of_the_server_the_momentum_is_that_of_its_checkpoint(kept, tmp_path, caplog):
    module, state = model(), tmp_path if kept else None
    port = free_port()
    with serving(module, terms=STARTED, rounds=9, port=port) as first:
        worker = first.connect(module, state=state)
        for value in (8, 16, 24, 32):
            pushed(worker, value)
        assert worker.round == 3
    with serving(module, terms=RESUMED, rounds=9, first=2, port=port) as second, worker:
        with caplog.at_level(logging.WARNING):
            assert [pushed(worker, value) for value in (40, 48)] == [2, 3]
        assert worker.pull()
    # What was written down for the round of the checkpoint is sent again.
    past = (8, 16, 24) if kept else (40,)
    assert sent(second) == {2: after(*past), 3: after(*past, 48)}
    said = [one.getMessage() for one in caplog.records if one.name.startswith("varangian.client")]
    assert said[0] == "w00 starts again with round 2: its server was restarted"
    assert [line for line in said if "goes on without the momentum" in line] == said[1:]
    assert len(said) == 1 + (not kept)


def test_a_vector_that_was_written_down_and_not_sent_is_sent(tmp_path):
    def memory():
        found = MomentumMemory("w00", BETA, lambda run: tmp_path / run)
        found.rewind("run-1", Terms(), 7)
        return found

    one, other = torch.ones(3), torch.full((3,), 5.0)
    vector = memory().vector(7, one)
    assert torch.equal(memory().vector(7, other), vector)
    assert torch.equal(memory().vector(8, other), BETA * vector + (1 - BETA) * other)


def test_a_disk_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "run-1").touch()  # where a folder should be
    memory = MomentumMemory("w00", BETA, lambda run: tmp_path / run)
    memory.rewind("run-1", Terms(), 0)
    for round in range(3):
        memory.vector(round, torch.ones(3))
    assert [one.getMessage().partition(" in ")[0] for one in caplog.records] == [
        "the state of w00 cannot be kept"
    ]


def test_another_run_begins_without_momentum(tmp_path):
    memory = MomentumMemory("w00", BETA, None)
    memory.rewind("run-1", Terms(), 0)
    memory.vector(5, torch.ones(3))
    memory.rewind("run-2", Terms(), 0)
    assert torch.equal(memory.vector(0, torch.ones(3)), torch.full((3,), 1 - BETA))
