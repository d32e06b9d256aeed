"""Loops of a user whose server wants deltas: what is new in a vector since the last that counted."""

import asyncio
import shutil
import threading

import pytest
import torch
from tests.client.rig import serving
from tests.extent import patience
from tests.serving.own import net, pull_to_zero

import varangian
from varangian.client.training.memory import MomentumMemory
from varangian.protos.contract import Terms
from varangian.protos.shared_settings import SharedSettings
from varangian.worker.training.error_feedback import DeltaEncoder
from varangian.worker.training.flat import layout_of
from varangian.worker.transport.client import Client, ClientError, Finished

ROUNDS = 6


def by_hand(address, name, token, state, wire):
    """As a worker from a configuration: a client, and an encoder beside it."""

    async def work():
        encoder = DeltaEncoder(wire)
        async with Client(address, name, token.partition(":")[2], layout_of(net())) as client:
            await client.join()
            after = -1
            while not isinstance(pulled := await client.pull(after), Finished):
                after = pulled.round
                vector = pull_to_zero(pulled.parameters.clone(), name, after)
                receipt = await client.push(after, encoder.encode(name, after, vector))
                assert receipt.counted
                encoder.confirm(name, after)

    asyncio.run(work())


def loop(address, name, token, state, wire, most=ROUNDS):
    """A loop of a user; whether the run is over after so many rounds."""
    with varangian.connect(address, net(), name=name, token=token, state=state, momentum=0.0) as worker:
        for _ in range(most):
            if not worker.pull():
                return True
            assert worker.push(pull_to_zero(worker.parameters.clone(), name, worker.round))
        return not worker.pull() if most == ROUNDS else False


def started_again(*given):
    """The same, by programs that end after two rounds."""
    while not loop(*given, most=2):
        pass


def carried_out(tmp_path, work, wire="float32", **settings):
    # Rounds wait for whoever connects again.
    form = {"participants": 3, "gather": 50.0, **settings}
    server = varangian.Server(
        net(),
        workers=3,
        f=0,
        rounds=ROUNDS,
        aggregator="mean",
        participation={"fedlaavg": form},
        wire={"dtype": wire},
        server={"deadline": 60.0, "absent_after": 60.0},
        output=str(tmp_path / "runs"),
    )
    failed = []

    def working(*given):
        try:
            work(*given)
        except BaseException as error:
            failed.append(error)

    with server.start(note=lambda text: None) as running:
        threads = [
            threading.Thread(
                target=working, args=(running.address, name, running.token(name), tmp_path / "states", wire)
            )
            for name in server.config.worker_names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience(60))
        assert failed == []
        return running.result(patience(60))


def test_the_run_is_that_of_workers_from_a_configuration(tmp_path):
    expected = carried_out(tmp_path, by_hand, form="delta")
    assert (expected.outcome, expected.rounds) == ("finished", ROUNDS)
    assert carried_out(tmp_path, loop, form="delta").digest == expected.digest


@pytest.mark.exhaustive  # the tests below have what is kept on the disk, without a server
@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_programs_that_end_and_start_again_have_the_same_run(tmp_path, wire):
    expected = carried_out(tmp_path, by_hand, wire, form="delta")
    assert carried_out(tmp_path, started_again, wire, form="delta").digest == expected.digest


@pytest.mark.exhaustive  # of the sum of deltas there are tests at the server
def test_the_parameters_are_those_of_latest_vectors(tmp_path):
    deltas, latest = (carried_out(tmp_path, loop, form=form) for form in ("delta", "latest"))
    one, other = (varangian.load(result.folder, state=True) for result in (deltas, latest))
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-6)


def test_a_server_that_differs_in_another_way_is_told_as_it_is():
    common = SharedSettings({"participation": "something else"})
    with serving(net(), common=common) as rig, pytest.raises(ClientError, match="should be something else"):
        rig.connect(net())


def memory(tmp_path, run="run-1"):
    found = MomentumMemory("w00", 0.5, lambda run: tmp_path / run, DeltaEncoder())
    found.rewind(run, Terms(every=2, keep=2), 0)
    return found


def test_a_worker_goes_back_with_its_server(tmp_path):
    """The server is resumed at round 2: what it has is what was counted before that."""
    kept = tmp_path / "kept"
    kept.mkdir()
    ours, gradients = memory(kept), [torch.full((3,), float(k)) for k in (1, 2, 4, 8)]
    sent = []
    for round, gradient in enumerate(gradients):
        sent.append(ours.delta(round, ours.vector(round, gradient)).clone())
        ours.confirm(round)
    assert ours.unconfirmed(4) is None
    copied = shutil.copytree(kept, tmp_path / "copied")
    for again in (ours, MomentumMemory("w00", 0.5, lambda run: copied / run, DeltaEncoder())):
        again.rewind("run-1", Terms(epoch=1, resumed_at=2, every=2, keep=2), 2)
        for round in (2, 3):
            if (before := again.unconfirmed(round)) is not None:
                assert before[0] == 1
                again.confirm(1)
            assert torch.equal(again.delta(round, again.vector(round, gradients[round])), sent[round])
            again.confirm(round)


def test_a_delta_of_which_nothing_is_known_is_asked_for_once(tmp_path):
    ours = memory(tmp_path)
    first = ours.delta(0, ours.vector(0, torch.ones(3)))
    again = MomentumMemory("w00", 0.5, lambda run: tmp_path / run, DeltaEncoder())
    again.rewind("run-1", Terms(every=2, keep=2), 1)
    round, delta = again.unconfirmed(1)
    assert (round, torch.equal(delta, first)) == (0, True)
    assert again.unconfirmed(1) is None
    whole = again.vector(1, torch.ones(3))
    assert torch.equal(again.delta(1, whole), whole)  # it was not counted: all of the vector is new
