"""A run whose server and worker are killed ends with the bits of one that was not interrupted."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from tests.ports import free_port

from varangian import load
from varangian.server.identity.sessions import make_token

ROOT = pathlib.Path(__file__).parents[2]
SECRET = "a secret of this test"
ENV = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
    "VARANGIAN_SECRET": SECRET,
}
SETTINGS = [
    *("workers=2", "f=0", "aggregator=mean", "model=softmax", "rounds=14", "evaluate.every=14"),
    *("server.checkpoint.every=3", "worker.momentum=0.9"),
]


class Programs:
    """The programs of one run, in a folder."""

    def __init__(self, folder):
        self.port = free_port()
        self.folder, self.running = folder, []
        folder.mkdir()

    def start(self, *words):
        one = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.folder, env=ENV, stdout=subprocess.PIPE, text=True
        )
        self.running.append(one)
        return one

    def server(self, *more):
        settings = [*SETTINGS, f"server.port={self.port}", "output=out"]
        return self.start("varangian", "server", *settings, *more, "--format=plain")

    def loop(self, name):
        token = make_token(name, SECRET.encode())
        return self.start("tests.client.loop", f"127.0.0.1:{self.port}", name, token, "states")

    def end(self):
        for one in self.running:
            one.kill()
            one.wait()
            one.stdout.close()


def until_round(loop, round):
    """Read what a loop prints until it computes a round."""
    for line in loop.stdout:
        if line.strip() == str(round):
            return
    raise AssertionError(f"the loop has ended before round {round}")


def kill(program):
    program.send_signal(signal.SIGKILL)
    program.wait()


def digest(server):
    text, _ = server.communicate()
    assert server.returncode == 0, text
    return re.search(r"^digest +(\w+)", text, re.MULTILINE)[1]


def trained(folder, killed):
    programs = Programs(folder)
    try:
        server, one, other = programs.server(), programs.loop("w00"), programs.loop("w01")
        if killed:
            until_round(one, 5)
            kill(server)
            server = programs.server("--resume")
            until_round(one, 8)
            kill(other)
            other = programs.loop("w01")
        assert one.communicate()[0].endswith("all 14 rounds are done\n")
        assert other.communicate()[0].endswith("all 14 rounds are done\n")
        return digest(server), load(next((folder / "out").iterdir()), state=True)
    finally:
        programs.end()


@pytest.mark.slow
@pytest.mark.exhaustive  # test_memory.py has the momentum after restarts of either side
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path):
    whole, _ = trained(tmp_path / "whole", killed=False)
    again, state = trained(tmp_path / "killed", killed=True)
    assert again == whole
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "1.weight": (10, 64),
        "1.bias": (10,),
    }
