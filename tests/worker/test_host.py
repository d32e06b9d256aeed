import asyncio
import dataclasses
import logging
import os
import signal
import threading
from contextlib import suppress

import pytest
import torch

from varangian.config.worker_names import default_names
from varangian.protos.contract import Terms
from varangian.protos.network.grpc_log import SOURCE, install_log_filter
from varangian.worker import host as hosting
from varangian.worker.attacks import Alie
from varangian.worker.data import Custom, Synthetic
from varangian.worker.data.partition import Iid
from varangian.worker.host import host
from varangian.worker.signals import SignalHandling
from varangian.worker.simulation.availability import Alternating
from varangian.worker.simulation.delays import Lognormal
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.history import WorkerHistory
from varangian.worker.training.models import Softmax
from varangian.worker.training.task import Task
from varangian.worker.transport.client import ClientError, Finished, Pulled, Receipt
from varangian.worker.transport.retry import Backoff

WORKERS = default_names(4)
TASK = Task(
    seed=1,
    workers=WORKERS,
    model=Softmax(),
    data=Synthetic(train=40, test=8),
    partition=Iid(),
    batch_size=4,
)
TOKENS = {name: f"token of {name}" for name in WORKERS}
ROUNDS = 3


class FakeServer:
    """Stands in for a server, as its clients see it."""

    def __init__(self):
        self.pushed = {}
        self.clients = []
        self.refused = ()
        self.taken = ()
        self.on_pull = lambda name, after: None
        self.pulled = []
        """Who pulled after which round."""
        self.last_pull = 1000
        """Pulls after this round are never answered."""

    def client(self, server, name, token, layout, backoff, common=""):
        self.clients.append((server, name, token, layout))
        return FakeClient(self, name)


class FakeClient:
    run, terms = "run-1", Terms()

    def __init__(self, server, name):
        self.server, self.name, self.open = server, name, False

    async def __aenter__(self):
        self.open = True
        return self

    async def __aexit__(self, *error):
        self.open = False

    async def claim(self):
        return self.name not in self.server.taken

    async def join(self):
        if self.name in self.server.refused:
            raise ClientError(f"Worker {self.name} could not join at nowhere:1.")
        return 0

    async def pull(self, after):
        self.server.on_pull(self.name, after)
        self.server.pulled.append((self.name, after))
        await (asyncio.sleep(0) if after < self.server.last_pull else asyncio.Event().wait())
        if after + 1 >= ROUNDS:
            return Finished("all rounds done")
        return Pulled(after + 1, torch.zeros(WorkerCompute(TASK).layout.numel))

    async def push(self, round, vector):
        assert self.open
        self.server.pushed[self.name, round] = vector
        return Receipt(counted=True)


@pytest.fixture
def server(monkeypatch):
    server = FakeServer()
    monkeypatch.setattr(hosting, "Client", server.client)
    return server


def run(workers=WORKERS, task=TASK):
    return host("nowhere:1", workers, TOKENS, task, threads=1)


def test_every_worker_has_its_own_connection_and_sends_what_its_crew_says(server):
    assert run(WORKERS[:3]) == 0
    layout = WorkerCompute(TASK).layout
    assert server.clients == [("nowhere:1", name, TOKENS[name], layout) for name in WORKERS[:3]]
    worker_compute = WorkerCompute(TASK)
    assert set(server.pushed) == {(name, round) for name in WORKERS[:3] for round in range(ROUNDS)}
    for (name, round), vector in sorted(server.pushed.items()):
        assert torch.equal(vector, worker_compute.contribution(name, round, torch.zeros(layout.numel)))


def test_a_worker_that_is_away_asks_for_nothing_and_sends_nothing(server):
    task = dataclasses.replace(TASK, availability=Alternating(period=2))
    assert run(task=task) == 0
    assert set(server.pushed) == {("w00", 0), ("w01", 0), ("w02", 1), ("w03", 1), ("w00", 2), ("w01", 2)}
    assert sorted(after for name, after in server.pulled if name == "w00") == [-1, 1, 3]
    assert sorted(after for name, after in server.pulled if name == "w03") == [0, 2]


def test_an_attacker_that_follows_others_listens_while_it_is_away(server):
    colluding = {"byzantine": WORKERS[2:], "attack": Alie(), "f": 2}
    task = dataclasses.replace(TASK, availability=Alternating(period=2), **colluding)
    assert run(task=task) == 0
    assert {round for name, round in server.pushed if name in WORKERS[2:]} == {1}
    assert sorted(after for name, after in server.pulled if name == "w03") == [-1, 0, 1, 2]


def test_a_late_worker_sends_later(server, monkeypatch):
    slept, sleep = [], asyncio.sleep

    async def at_once(seconds):
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(hosting.asyncio, "sleep", at_once)
    task = dataclasses.replace(TASK, delays=Lognormal(median=100.0, workers=(2,)))
    assert run(WORKERS[1:3], task) == 0
    expected = [task.timetable.delay("w02", round) for round in range(ROUNDS)]
    assert [seconds for seconds in slept if seconds] == expected
    assert len(server.pushed) == 2 * ROUNDS


def test_one_refused_worker_does_not_end_the_others(server, caplog):
    server.refused = ("w01",)
    assert run() == 1
    assert {name for name, _ in server.pushed} == {"w00", "w02", "w03"}
    assert [record.message for record in caplog.records] == [
        "Worker w01 could not join at nowhere:1.",
        "w01 has ended for good. This process goes on with w00, w02, w03.",
        "This process ends with an error: w01 ended before the run did.",
    ]


def test_a_process_can_be_the_first_worker_that_nobody_else_is(server):
    server.taken = ("w00", "w01")
    assert host("nowhere:1", WORKERS, TOKENS, TASK, one_of=True) == 0
    assert {name for name, _ in server.pushed} == {"w02"}


def test_a_process_without_a_place_says_so(server, caplog):
    server.taken = WORKERS
    assert host("nowhere:1", WORKERS, TOKENS, TASK, one_of=True) == 1
    assert "no place left" in caplog.text
    assert not server.pushed


def test_a_task_that_cannot_be_done_is_one_line(server, caplog):
    task = Task(seed=1, workers=WORKERS, model=Softmax(), data=Custom("no_such_module:f"), partition=Iid())
    assert run(task=task) == 1
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.ERROR, None)
    assert "no_such_module" in record.message
    assert not server.clients


def test_an_unexpected_error_is_not_swallowed(server, monkeypatch):
    monkeypatch.setattr(WorkerCompute, "contribution", lambda *args: 1 / 0)
    with pytest.raises(ExceptionGroup) as caught:
        run()
    assert caught.group_contains(ZeroDivisionError)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_of_them_cleanly(server, number):
    def one_signal(name, after):
        if (name, after) == ("w02", 0):
            os.kill(os.getpid(), number)

    server.on_pull, server.last_pull = one_signal, 0
    before = signal.getsignal(number)
    assert run() == 128 + number
    assert {round for _, round in server.pushed} == {0}
    assert signal.getsignal(number) == before


def test_an_ignored_signal_stays_ignored(server):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server.on_pull = lambda name, after: os.kill(os.getpid(), signal.SIGINT)
        assert run() == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_runs_in_a_thread_that_gets_no_signals(server):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run(WORKERS[:1])))
    thread.start()
    thread.join()
    assert codes == [0]


async def test_being_cancelled_by_anyone_else_is_not_taken_for_a_signal(server):
    worker_compute, executor = WorkerCompute(TASK), hosting.ThreadPoolExecutor(1)
    history = WorkerHistory(worker_compute)
    rest = TOKENS, worker_compute, history, executor, SignalHandling(), Backoff(), hosting.NO_SPANS
    serving = asyncio.create_task(hosting._until_stopped("nowhere:1", [WORKERS[:1]], *rest))
    await asyncio.sleep(0)
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    assert serving.cancelled()


def test_attempts_without_a_free_file_fill_no_log(caplog):
    """gRPC cannot decode its own message then, and would log a traceback for each."""
    install_log_filter()
    try:
        b"socket: Too many open files\x87".decode()
    except UnicodeDecodeError:
        logging.getLogger(SOURCE).exception("Invalid encoding")
    assert caplog.text == ""
