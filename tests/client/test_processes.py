"""Ctrl-C, forks and the end of a program."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from tests.client.rig import model, serving
from tests.extent import patience

from varangian import ClientError

ROOT = pathlib.Path(__file__).parents[2]


def test_a_fork_is_told_what_it_cannot_do(monkeypatch):
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        worker.pull()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            for use in (worker.pull, lambda: worker.push(worker.parameters), lambda: worker.decline("no")):
                with pytest.raises(ClientError, match="and cannot be used in a fork of it"):
                    use()
            with pytest.raises(ClientError, match="is a fork of process"):
                rig.connect(module)
            worker.close()  # that of the other process stays open
        assert worker.push(worker.parameters)


FORKS = """
import os
import torch
from varangian import ClientError, Server, connect

model = torch.nn.Linear(3, 2)
server = Server(model, workers=1, f=0, rounds=5, aggregator="mean")
threads = []
with server.start("127.0.0.1:0") as running:
    with connect(running.address, torch.nn.Linear(3, 2), token=running.token("w00")) as worker:
        while worker.pull():
            child = os.fork()
            if child == 0:
                os._exit(len(os.listdir("/proc/self/task")))
            threads.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            worker.push(worker.parameters)
print(threads)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="there is no /proc/self/task here")
def test_forks_of_a_program_with_a_server_have_no_thread_of_grpc(tmp_path):
    """Such threads abort, or take events of connections from the program that was forked."""
    environment = {key: text for key, text in os.environ.items() if key != "GRPC_ENABLE_FORK_SUPPORT"}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert ended.stdout.splitlines()[-1:] == ["[1, 1, 1, 1, 1]"], ended.stderr


@pytest.mark.slow
@pytest.mark.exhaustive  # the test above has its errors, and the programs of the documents its end
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_program_with_forks_ends_without_close():
    with serving(model(), rounds=9) as rig:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.client.program"]
        found = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        ended = subprocess.run(
            [*command, rig.address, rig.token()],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": found},
            capture_output=True,
            text=True,
            timeout=patience(60),
        )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert [line for line in lines if not line.startswith("fork")] == [
        "pushed 0 True",
        "pushed 1 True",
        "pushed 2 True",
        "threads: [True]",
    ]
    used, connected = (line for line in lines if line.startswith("fork"))
    assert "Worker w00 was connected by process" in used
    assert "cannot be used in a fork" in used
    assert "which has connected to a server" in connected
    assert ended.stderr == ""


def test_an_interrupt_ends_a_wait_and_the_worker_goes_on():
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread alone")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    module = model()
    try:
        with (
            serving(module, "w00", "w01") as rig,
            rig.connect(module) as worker,
            rig.connect(model(), "w01") as other,
        ):
            zeros = torch.zeros(worker.layout.numel)
            worker.pull()
            worker.push(zeros)
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
                worker.pull()  # until w01 has pushed
                time.sleep(patience(20))
            other.pull()
            other.push(zeros)
            assert worker.pull()
            assert worker.round == 1
            worker.decline("that was all")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_worker_that_is_dropped_is_closed():
    module = model()
    with serving(module) as rig:
        worker = rig.connect(module)
        worker.pull()
        del worker
        with rig.connect(module) as again:  # its name is free
            assert again.pull()
