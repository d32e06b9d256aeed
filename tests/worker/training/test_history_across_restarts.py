"""What the workers of a process remember, across kills of it and restarts of its server."""

import dataclasses
import logging
from collections import deque

import pytest
import torch

from varangian.config.worker_names import default_names
from varangian.protos.contract import Terms
from varangian.server.training.optimizers import OPTIMIZERS
from varangian.worker.attacks import ATTACKS, Push
from varangian.worker.checkpoints.slots import slots_of
from varangian.worker.data import Synthetic
from varangian.worker.data.partition import Shared
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.history import WorkerHistory
from varangian.worker.training.models import Mlp
from varangian.worker.training.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generator")

WORKERS = default_names(5)
TASK = Task(
    seed=1,
    workers=WORKERS,
    model=Mlp(hidden=4),
    data=Synthetic(features=4, train=60, test=10),
    partition=Shared(),
    f=2,
    batch_size=4,
)
REPLAYS = dataclasses.replace(
    TASK, byzantine=WORKERS[-2:], attack=ATTACKS.build("replay", "byzantine.attack")
)
MIMICS = dataclasses.replace(
    TASK,
    byzantine=WORKERS[-2:],
    attack=ATTACKS.build({"mimic": {"warmup": 20}}, "byzantine.attack"),
    knows="all",
)
INNER = {"inner": OPTIMIZERS.build("adamw", ""), "local_steps": 2, "momentum": 0.0, "rounds": 20}
TASKS = {
    "honest": (TASK, WORKERS[:2]),
    "inner": (dataclasses.replace(TASK, **INNER), WORKERS[:2]),
    "inner fragments": (dataclasses.replace(TASK, **INNER, fragments=3), WORKERS[:2]),
    "inner mimic": (dataclasses.replace(MIMICS, **INNER), WORKERS[-1:]),
    "deltas": (dataclasses.replace(TASK, deltas=True), WORKERS[:2]),
    "replay": (REPLAYS, WORKERS[-2:]),
    "mimic": (MIMICS, WORKERS[-2:]),
    "mimic alone": (MIMICS, WORKERS[-1:]),
}
RUN, TERMS = "run-1", Terms(every=3, keep=1)


class Process:
    """A process of some workers, with a folder or none."""

    def __init__(self, task, hosted, folder, terms=TERMS, run=RUN):
        self.compute = WorkerCompute(task)
        self.compute.hosted = hosted
        self.history = WorkerHistory(self.compute, None if folder is None else lambda run: folder / run)
        self.hosted, self.terms, self.run = hosted, terms, run

    def hears(self, round, terms, run=RUN):
        """Its workers hear of a start of the server; what each of them is to be asked for."""
        self.terms, self.run = terms, run
        return {name: self.history.rewind(name, run, terms, round) for name in self.hosted}

    def vector(self, name, round):
        parameters = self.compute.initial() * (1 + round)
        return self.history.compute(name, self.run, self.terms.epoch, round, parameters)

    def round(self, round, confirm=True):
        found = {}
        for name in self.hosted:
            found[name] = self.vector(name, round)
            if confirm:
                self.history.confirm(name, self.run, self.terms.epoch, round)
        return found

    def rounds(self, rounds):
        return {round: self.round(round) for round in rounds}


def assert_same(found, expected):
    for round, vectors in found.items():
        for name, vector in vectors.items():
            assert torch.equal(vector, expected[round][name]), (name, round)


def straight(kind, rounds=12):
    task, hosted = TASKS[kind]
    process = Process(task, hosted, None)
    process.hears(0, TERMS)
    return process.rounds(range(rounds))


@pytest.mark.parametrize("kind", TASKS)
def test_a_process_that_is_killed_sends_the_same_vectors(kind, tmp_path):
    expected = straight(kind)
    for killed in (0, 1, 4, 7):
        folder = tmp_path / str(killed)
        process = Process(*TASKS[kind], folder)
        process.hears(0, TERMS)
        assert_same(process.rounds(range(killed)), expected)
        process.round(killed, confirm=False)
        again = Process(*TASKS[kind], folder)
        again.hears(killed, TERMS)
        assert_same(again.rounds(range(killed, 9)), expected)


@pytest.mark.parametrize("same", [True, False], ids=["the same process", "another process"])
@pytest.mark.parametrize("kind", TASKS)
def test_a_server_that_goes_back_gets_the_same_vectors(kind, same, tmp_path):
    expected = straight(kind)
    process = Process(*TASKS[kind], tmp_path)
    process.hears(0, TERMS)
    process.rounds(range(11))
    for epoch, border in enumerate((9, 6, 6), 1):
        if not same:
            process = Process(*TASKS[kind], tmp_path)
        process.hears(border, dataclasses.replace(TERMS, epoch=epoch, resumed_at=border))
        assert_same(process.rounds(range(border, 8 + epoch)), expected)


def test_a_job_of_an_earlier_start_changes_nothing(tmp_path):
    process = Process(*TASKS["mimic"], tmp_path)
    process.hears(0, TERMS)
    process.rounds(range(5))
    later = dataclasses.replace(TERMS, epoch=1, resumed_at=3)
    slow, fast = process.hosted
    process.history.rewind(fast, RUN, later, 3)
    assert process.vector(slow, 5) is None, "it has not heard of it yet"
    process.hears(3, later)
    assert_same({3: process.round(3)}, straight("mimic"))
    assert process.history.rewind(slow, RUN, TERMS, 5) is None
    assert_same({4: process.round(4)}, straight("mimic"))


def test_a_delta_without_an_answer_is_asked_about(tmp_path):
    task, hosted = TASKS["deltas"]
    process = Process(task, hosted, tmp_path)
    process.hears(0, TERMS)
    process.rounds(range(3))
    sent = process.round(3, confirm=False)
    again = Process(task, hosted, tmp_path)
    for name, (round, delta) in again.hears(5, TERMS).items():
        assert round == 3
        assert torch.equal(delta, sent[name])
        again.history.confirm(name, RUN, 0, 3)
    expected = straight("deltas", 4)
    assert_same({3: sent}, expected)
    process.history.confirm(hosted[0], RUN, 0, 3)
    assert torch.equal(again.vector(hosted[0], 5), process.vector(hosted[0], 5))


def test_without_a_folder_a_live_process_keeps_what_is_not_of_lost_rounds(caplog):
    caplog.set_level(logging.WARNING)
    expected, process = straight("honest"), Process(*TASKS["honest"], None)
    process.hears(0, TERMS)
    process.rounds(range(6))
    process.hears(6, dataclasses.replace(TERMS, epoch=1, resumed_at=6))
    assert_same(process.rounds([6, 7]), expected)
    assert not caplog.messages
    process.hears(3, dataclasses.replace(TERMS, epoch=2, resumed_at=3))
    assert "w00: its state of round 3 is not kept here; it goes on without the momentum" in caplog.text
    fresh = Process(*TASKS["honest"], None)
    fresh.hears(3, TERMS)
    assert_same(process.rounds([3, 4]), fresh.rounds([3, 4]))


def test_another_run_begins_anew(tmp_path):
    expected, process = straight("honest"), Process(*TASKS["honest"], tmp_path)
    process.hears(0, TERMS)
    process.rounds(range(4))
    process.hears(0, TERMS, "run-2")
    assert_same(process.rounds(range(3)), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-1", "run-2"]


def test_a_state_that_is_lost_is_said(tmp_path, caplog):
    process = Process(*TASKS["honest"], tmp_path)
    process.hears(50, dataclasses.replace(TERMS, epoch=1, resumed_at=50))
    assert "w01: its state of round 50 is not kept here" in caplog.text


def test_where_no_round_needs_an_earlier_one_nothing_is_written(tmp_path):
    process = Process(dataclasses.replace(TASK, momentum=0.0), WORKERS[:2], tmp_path)
    process.hears(0, TERMS)
    process.rounds(range(4))
    assert not any(tmp_path.iterdir())


def test_a_disk_that_takes_nothing_is_said_once_and_the_run_goes_on(tmp_path, caplog):
    folder = tmp_path / "states"
    folder.write_text("no folder")
    process = Process(*TASKS["honest"], folder)
    process.hears(0, TERMS)
    assert_same(process.rounds(range(3)), straight("honest"))
    said = [line for line in caplog.messages if "the state of w00 cannot be kept in" in line]
    assert len(said) == 1
    assert "after a crash it goes on without it" in said[0]


def test_the_parts_have_folders_of_their_own(tmp_path):
    process = Process(*TASKS["mimic"], tmp_path)
    process.hears(0, TERMS)
    process.rounds(range(4))
    process.history.close()
    parts = {path.name: len(slots_of(path)) for path in (tmp_path / RUN).iterdir()}
    assert parts.keys() == {*WORKERS[-2:], f"attackers@{WORKERS[-2]}"}
    assert min(parts.values()) >= 2


def test_it_is_said_where_states_stay(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="varangian.worker.training.history")
    for folder in (None, tmp_path):
        process = Process(TASK, WORKERS[:1], folder)
        process.hears(0, TERMS)
        process.history.say_what_stays()
        assert not caplog.messages
    process.round(0)
    process.history.close(over=True)
    process.history.say_what_stays()
    assert f"stays in {tmp_path / RUN} (0.0 MB), for the case that it goes on" in caplog.messages[-1]


def test_an_attack_on_the_protocol_goes_on_from_before_what_it_sends_again(tmp_path):
    push = Push(3, bytes(range(256)) * 40, 2, 1, b"layout", b"digest")
    recorded = deque(maxlen=2)

    def sent(process, name, memory, rounds):
        for round in rounds:
            memory.setdefault("recorded", recorded).append(dataclasses.replace(push, round=round))
            process.history.keep_line(name, RUN, process.terms.epoch, round, memory)

    process, (name, _) = Process(TASK, WORKERS[:2], tmp_path), WORKERS[:2]
    process.hears(0, TERMS)
    assert process.history.line_memory(name, 0) == {}
    sent(process, name, {}, range(8))
    again = Process(TASK, WORKERS[:2], tmp_path)
    again.hears(7, TERMS)
    found = again.history.line_memory(name, 7)["recorded"]
    assert (found.maxlen, [each.round for each in found]) == (2, [5, 6])
    assert found[0] == dataclasses.replace(push, round=5)
    back = dataclasses.replace(TERMS, epoch=1, resumed_at=6)
    again.hears(6, back)
    assert [each.round for each in again.history.line_memory(name, 6)["recorded"]] == [4, 5]


def test_a_memory_of_a_line_that_cannot_be_kept_is_said_once(tmp_path, caplog):
    process = Process(TASK, WORKERS[:1], tmp_path)
    process.hears(0, TERMS)
    for round in range(2):
        process.history.keep_line("w00", RUN, 0, round, {"socket": object()})
    (line,) = caplog.messages
    assert "the state of line@w00 cannot be kept" in line
    assert "it has a object" in line
