"""The cluster of the compose file without containers: its commands, as processes of this machine."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

import pytest
from tests.extent import patience
from tests.ports import free_port

pytestmark = pytest.mark.slow
PATIENCE = patience(120)
CHANGES = {"TOTAL": "3", "F": "1", "BYZANTINE": "1", "WORKERS": "2", "ROUNDS": "4", "AGGREGATOR": "median"}
CHANGES["DATA_PORT"] = "0"
CHANGES["DEADLINE"] = str(PATIENCE)  # on a machine with other things to do, workers start far apart
SOURCE = pathlib.Path(__file__).parents[2] / "src"


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def start(compose, port, tmp_path, insecure):
    """Start a service of the file, with the names of a container network and its paths made local."""
    running = []

    def run(name, words):
        local = {
            "0.0.0.0:50051": f"127.0.0.1:{port}",
            "server:50051": f"127.0.0.1:{port}",
            "/runs": str(tmp_path),
        }
        words = [local.get(word, word) for word in words]
        place = str(seen_at(compose, name, tmp_path))
        settings = compose.settings(name, **CHANGES, VARANGIAN_INSECURE=insecure)
        for before, here in {"/certs": place, "/state": str(tmp_path / "state")}.items():
            settings = {key: value.replace(before, here) for key, value in settings.items()}
        environment = os.environ | settings | {"PYTHONPATH": str(SOURCE)}
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


def seen_at(compose, name, path):
    """Where a service finds its certificates: its volume is a directory of the service that makes them."""
    made = dict(mount.split(":") for mount in compose.services["certs"]["volumes"])
    own = [mount.split(":")[0] for mount in compose.services[name]["volumes"] if mount.endswith(":ro")]
    return path / made[own[0]].lstrip("/") if own else path


def certificates(compose, path):
    """The command of the service that makes them; what it says."""
    words = [compose.filled(word, **CHANGES) for word in compose.services["certs"]["command"]]
    words = [word.replace("/certs", f"{path}/certs") for word in words]
    environment = os.environ | compose.settings("certs", **CHANGES) | {"PYTHONPATH": str(SOURCE)}
    program = [sys.executable, "-m", "varangian", *words]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
        time.sleep(0.5)  # a probe takes from the server what the server needs to start
    pytest.fail(server.communicate()[0])


@pytest.mark.parametrize(
    ("insecure", "how"),
    [("0", ", with TLS"), pytest.param("1", ", without TLS", marks=pytest.mark.exhaustive)],
)
def test_the_commands_of_the_file_train_a_model(compose, start, port, tmp_path, how):
    pytest.importorskip("cryptography")
    # The authority, the server, two workers and an attacker, and the token of the metrics port.
    assert certificates(compose, tmp_path).count("made ") == 6
    server = start("server", command(compose, "server"))
    becomes_healthy(server, start, port)
    doctor = start("server", ["doctor", "--server", f"127.0.0.1:{port}"])
    assert "PASSED  payloads      beside gRPC, over port " in doctor.communicate(timeout=PATIENCE)[0]
    workers = [
        start(name, command(compose, name))
        for name in ("worker", "byzantine")
        for _ in range(replicas(compose, name))
    ]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in [server, *workers]]
    assert how in outputs[0]
    assert [process.returncode for process in [server, *workers]] == [0] * 4, "\n".join(outputs)
    (record,) = tmp_path.rglob("rounds.jsonl")
    rounds = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["round"] for line in rounds] == [0, 1, 2, 3]
    assert all(line["missing"] == [] for line in rounds)
    assert 0 <= rounds[-1]["accuracy"] <= 1
