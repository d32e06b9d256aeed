"""The cluster of the compose file without containers: its commands, as processes of this machine."""

import json
import os
import pathlib
import shlex
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
PATIENCE = 60
CHANGES = {"TOTAL": "4", "F": "1", "BYZANTINE": "1", "WORKERS": "3", "ROUNDS": "4", "AGGREGATOR": "median"}
SOURCE = pathlib.Path(__file__).parents[2] / "src"


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def start(compose, port, tmp_path):
    """Start a service of the file, with the names of a container network and its paths made local."""
    running = []

    def run(name, words):
        local = {
            "0.0.0.0:50051": f"127.0.0.1:{port}",
            "server:50051": f"127.0.0.1:{port}",
            "/runs": str(tmp_path),
        }
        words = [local.get(word, word) for word in words]
        environment = os.environ | compose.settings(name, **CHANGES) | {"PYTHONPATH": str(SOURCE)}
        process = subprocess.Popen(
            [sys.executable, "-m", "varangian", *words],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def command(compose, name):
    return shlex.split(compose.filled(compose.services[name]["command"], **CHANGES))


def replicas(compose, name):
    return int(compose.filled(compose.services[name]["deploy"]["replicas"], **CHANGES))


def becomes_healthy(server, start, port):
    """Ask until the server answers; an answer that never comes shows what both said."""
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None:
        probe = start("server", ["health", "--server", f"127.0.0.1:{port}", "--timeout", "5"])
        answer, _ = probe.communicate(timeout=PATIENCE)
        if probe.returncode == 0:
            return
        if time.monotonic() > deadline:
            server.terminate()
            pytest.fail(f"{answer}\n{server.communicate(timeout=PATIENCE)[0]}")
    pytest.fail(server.communicate()[0])


def test_the_commands_of_the_file_train_a_model(compose, start, port, tmp_path):
    server = start("server", command(compose, "server"))
    becomes_healthy(server, start, port)
    workers = [
        start(name, command(compose, name))
        for name in ("worker", "byzantine")
        for _ in range(replicas(compose, name))
    ]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in [server, *workers]]
    assert [process.returncode for process in [server, *workers]] == [0] * 5, "\n".join(outputs)
    (record,) = tmp_path.rglob("rounds.jsonl")
    rounds = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["round"] for line in rounds] == [0, 1, 2, 3]
    assert all(line["missing"] == [] for line in rounds)
    assert 0 <= rounds[-1]["accuracy"] <= 1
