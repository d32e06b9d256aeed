"""Simulations that go on from a checkpoint: the same bits and the same records as without interruption."""

import itertools
import json
import math
import os
import signal
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

import pytest

from varangian.config import load
from varangian.experiments.audit.command import audit
from varangian.launch import RunError, run
from varangian.launch.checkpoints.folder import CheckpointFolder
from varangian.launch.checkpoints.resume import resume, settings_of
from varangian.launch.checkpoints.rewind import branch
from varangian.launch.simulation.short_work import ShortWork
from varangian.registry import ConfigError
from varangian.state_file import read, write

SMALL = (
    *("data=synthetic", "model=softmax", "workers=7", "f=1", "worker.batch_size=8", "backend=simulate"),
    *("evaluate.every=5", "aggregator=median"),
)
DELAYS = "delays={lognormal: {median: 1.0}}"
EVERY = "server.checkpoint={every: 1, keep: 100}"
ATTACKED = ("workers=9", "f=2", "byzantine.count=2")
LATER = pytest.mark.exhaustive
PARTICIPATIONS = (
    *("fedlaavg", "async"),
    *(pytest.param(name, marks=LATER) for name in ("sync", "fedavg", "asap")),
)


class Simulations:
    """Runs of one folder."""

    def __init__(self, output):
        self.output = output
        self.notes = []

    def carry_out(self, *settings, observe=lambda record: None):
        config = load(None, [*SMALL, f"output={self.output}", *settings])
        return run(config, observe=observe, note=self.notes.append)

    def go_on(self, folder, *settings, observe=lambda record: None, **given):
        config, resumed = resume(settings_of(folder, settings), folder, self.notes.append, **given)
        return run(config, observe=observe, note=self.notes.append, resume=resumed)

    def assert_each_border_goes_on(self, *settings, borders=None):
        """From each of the borders the rest of the run is what it was."""
        straight = self.carry_out(*settings)
        kept = self.carry_out(EVERY, *settings)
        assert kept.digest == straight.digest
        for round in borders or CheckpointFolder(kept.folder).rounds():
            end = self.go_on(branch(kept.folder, round))
            assert end.digest == straight.digest, round
            assert records(end.folder) == records(straight.folder), round
            assert end.rounds == straight.rounds


@pytest.fixture
def simulations(tmp_path):
    return Simulations(tmp_path / "runs")


class Placed(Executor):
    """Does work on the event loop, or in a thread, by turns."""

    def __init__(self, thread, places):
        self._thread, self._loop = thread, ShortWork(ThreadPoolExecutor(1), math.inf)
        self._loop.submit(time.perf_counter).result()  # its first goes to a thread
        self._on_loop = itertools.cycle(places)

    def submit(self, function, /, *args, **kwargs):
        executor = self._loop if next(self._on_loop) else self._thread
        return executor.submit(function, *args, **kwargs)


def records(folder):
    """The last record of each round, without what is of the clock of this machine or of the start."""
    found = {}
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        record["wait"] = record.pop("seconds").get("wait")
        for name in ("before", "resumed", "aggregation"):
            record.pop(name, None)
        found[record["round"]] = record
    return found


@pytest.mark.parametrize("participation", PARTICIPATIONS)
def test_it_goes_on_with_the_same_bits_and_records(simulations, participation):
    settings = (f"participation={participation}", DELAYS, "rounds=5", "optimizer=adam")
    simulations.assert_each_border_goes_on(*settings, borders=(3,))


def test_what_workers_and_attackers_remember_goes_on(simulations):
    attack = "byzantine.attack={composite: {steps: ['gaussian 0.5 memory', 'replay 2', 'toward 1']}}"
    more = ("ema={decay: 0.5, reference_batch: 40}", "simulate.gradients=batched", "aggregator=nnm+krum")
    simulations.assert_each_border_goes_on(*ATTACKED, attack, *more, "rounds=5", borders=(3,))


def test_weights_go_on(simulations):
    dealt = ("partition={dirichlet: {alpha: 1.0}}", "weights=samples", "weights_cap.alpha_star=0.4")
    simulations.assert_each_border_goes_on(*dealt, "rounds=5", borders=(3,))


@pytest.mark.exhaustive
@pytest.mark.parametrize("gradients", ["exact", "batched"])
@pytest.mark.parametrize(
    "settings",
    [
        ("participation=sync", "optimizer=fedyogi", *ATTACKED, "byzantine.attack=replay"),
        ("participation=sync", "aggregator=centered_clipping", *ATTACKED, "byzantine.attack=mimic"),
        (
            "participation=sync",
            "aggregator=flag",
            *ATTACKED,
            "byzantine.attack=rop",
            "worker.local_steps=2",
        ),
        ("participation=sync", *ATTACKED, "byzantine.attack=label_flip", "server.rows=bfloat16"),
        (
            "participation=sync",
            *ATTACKED,
            "byzantine.attack=alie",
            "worker.inner=adamw",
            "worker.local_steps=3",
        ),
        (
            "server.fragments=2",
            "worker.inner=adamw",
            "optimizer={name: sgd, momentum: 0.9, nesterov: true}",
        ),
        ("participation=fedavg", "worker.inner={adam: {schedule: cosine}}", "worker.momentum=0.5"),
        ("participation=fedavg", "participation.fedavg.participants=5", "wire.dtype=bfloat16"),
        ("participation={fedlaavg: {participants: 5}}", "optimizer=adam", "aggregator=flag"),
        ("participation={fedlaavg: {form: delta}}", "aggregator=mean", "f=0"),
        ("participation={fedlaavg: {form: delta}}", "aggregator=mean", "f=0", "wire.dtype=int8"),
        ("participation={async: {tau: 3}}", "aggregator=nnm+krum", "wire.dtype=int8"),
        ("participation=asap", "server.deadline=2.0", "server.shortfall=skip"),
        ("participation={async: {tau: 3}}", "aggregator=nnm+krum", "worker.momentum=0"),
        ("participation=fedavg", "server.deadline=2.0", "server.shortfall=skip", "worker.momentum=0"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_from_every_border(simulations, settings, gradients):
    simulations.assert_each_border_goes_on(
        DELAYS, *settings, f"simulate.gradients={gradients}", "rounds=12"
    )


@pytest.mark.exhaustive
def test_to_keep_checkpoints_changes_no_bit_wherever_work_is_done(simulations, monkeypatch):
    """On the event loop, in a thread, and in turn: buffers are used again while checkpoints are written."""
    settings = (
        *("participation=fedavg", "delays={constant: {step: 2.0}}", "optimizer={name: sgd, momentum: 0.9}"),
        *("worker.momentum=0", "byzantine.attack={sleeper: {attack: rop, after: 3}}", "rounds=12"),
        *("ema={decay: 0.9, reference_batch: 64}", *ATTACKED, "aggregator=nnm+krum"),
    )
    expected = simulations.carry_out(*settings)
    for places in ((True,), (False,), (True, False), (True, True, False)):
        place = partial(Placed, places=places)
        monkeypatch.setattr("varangian.launch.simulation.simulate.ShortWork", place)
        assert simulations.carry_out(EVERY, *settings).digest == expected.digest, places


@pytest.mark.parametrize("participation", ["sync", "async"])
def test_one_that_is_stopped_goes_on_where_it_was(simulations, participation):
    settings = (f"participation={participation}", DELAYS, "rounds=8")
    straight = simulations.carry_out(*settings)

    def stop(record):
        if record.round == 2:
            os.kill(os.getpid(), signal.SIGINT)

    part = simulations.carry_out("server.checkpoint.every=100", *settings, observe=stop)
    assert part.outcome == "interrupted"
    assert CheckpointFolder(part.folder).rounds() == [part.rounds]
    assert (
        f"{part.rounds} rounds are kept: varangian run --resume {part.folder} goes on" in simulations.notes
    )
    seen = []
    end = simulations.go_on(part.folder, observe=lambda record: seen.append(record.round))
    assert seen == [*range(part.rounds, 8)]
    assert (end.digest, end.folder) == (straight.digest, part.folder)
    assert records(end.folder) == records(straight.folder)


def test_without_checkpoints_it_begins_again(simulations):
    straight = simulations.carry_out("rounds=4")
    (straight.folder / "result.json").unlink()
    assert not (straight.folder / "checkpoints").exists()
    end = simulations.go_on(straight.folder)
    assert (end.digest, end.rounds, end.folder) == (straight.digest, 4, straight.folder)
    assert len((end.folder / "rounds.jsonl").read_text().splitlines()) == 8


def test_more_rounds_are_those_of_a_longer_run(simulations):
    longer = simulations.carry_out("rounds=8")
    short = simulations.carry_out(EVERY, "rounds=5")
    end = simulations.go_on(short.folder, "rounds=8")
    assert (end.digest, end.rounds) == (longer.digest, 8)
    assert records(end.folder).keys() == records(longer.folder).keys()


def test_one_that_cannot_go_on_so_is_left_as_it_was(simulations):
    """With its result, its model and its settings; so it can go on otherwise."""
    longer = simulations.carry_out("rounds=8")
    made = simulations.carry_out(EVERY, "rounds=5")

    def files():
        found = (path for path in made.folder.rglob("*") if path.is_file() and path.name != "lock")
        return {path.name: path.read_bytes() for path in found}

    before = files()
    with pytest.raises(RunError, match="does not fit these settings: A state should have an average"):
        simulations.go_on(made.folder, "rounds=8", "ema={decay: 0.5, reference_batch: 8}", force=True)
    assert files() == before
    assert simulations.go_on(made.folder, "rounds=8").digest == longer.digest


def test_an_audit_knows_the_settings_with_which_a_run_went_on(simulations):
    made = simulations.carry_out(EVERY, "rounds=5", "server.keep_rows=4")
    simulations.go_on(made.folder, "rounds=8", "optimizer.lr=0.25", force=True)
    found = audit(made.folder, recompute=True)
    assert not found.problems
    assert "4 rounds, 4 to 7: recomputed from kept rows, the same bits" in found.facts
    later = made.folder / "config.epoch-1.yaml"
    later.write_text(later.read_text().replace("lr: 0.25", "lr: 0.5"))
    assert audit(made.folder).problems == [
        "config.epoch-1.yaml was changed: rounds.jsonl, line 6 (round 4), names another digest"
    ]


def test_the_best_checkpoint_is_that_of_a_score_of_the_run(simulations):
    with pytest.raises(ConfigError, match=r"server\.checkpoint\.best: should be the name of a score"):
        simulations.carry_out("server.checkpoint={every: 1, best: acuracy}")
    simulations.carry_out("server.checkpoint={every: 1, best: train_loss}", "rounds=2")


def test_the_checkpoint_of_a_real_server_is_none_of_a_simulation(simulations):
    made = simulations.carry_out(EVERY, "rounds=4")
    (made.folder / "config.yaml").write_text(
        (made.folder / "config.yaml").read_text().replace("backend: simulate", "backend: processes")
    )
    file = CheckpointFolder(made.folder).file(3)
    found = read(file)
    plain = {name: value for name, value in found.plain.items() if name != "tensors"}
    del plain["state"]["simulation"]
    write(file, plain, found.tensors)
    (made.folder / "result.json").unlink()
    with pytest.raises(RunError, match=r"round 3 in .* is that of a real server"):
        simulations.go_on(made.folder, "backend=simulate", force=True)
