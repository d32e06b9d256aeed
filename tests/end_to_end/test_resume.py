"""Servers that are stopped and started again, as commands."""

import json
import signal
import time

import pytest
from tests.end_to_end.kit import PATIENCE, SMALL, Served
from tests.ports import free_port

from varangian.config import load
from varangian.launch import run
from varangian.launch.checkpoints.folder import CheckpointFolder
from varangian.launch.checkpoints.resume import resume, settings_of
from varangian.launch.checkpoints.rewind import branch, kept_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
SETTINGS = [*SMALL, "rounds=1000000", "aggregator=median", "model.mlp.hidden=2000"]


@pytest.fixture
def trained(started, monkeypatch):
    """A server that has done some rounds with workers in a process of their own."""
    monkeypatch.setenv("VARANGIAN_SECRET", "a secret of sixteen bytes")

    def train(rounds=3, *settings, options=()):
        settings = [*SETTINGS, *settings]
        serve = ["server", *settings, "--bind", "127.0.0.1:0", "--format", "json", *options]
        server = Served(started(*serve))
        names = [f"--name=w0{i}" for i in range(5)]
        workers = started("worker", *settings, "--server", server.address(), *names)
        for _ in range(rounds):
            server.process.stdout.readline()
        return server, workers

    return train


def test_sigterm_leaves_a_checkpoint_and_exit_code_0(trained, tmp_path):
    server, workers = trained()
    server.process.send_signal(signal.SIGTERM)
    *_, last = map(json.loads, server.process.stdout)
    assert server.process.wait(PATIENCE) == 0, server.all_said()
    result, folder = last["result"], tmp_path / last["result"]["folder"]
    assert result["outcome"] == "interrupted"
    rounds = len((folder / "rounds.jsonl").read_text().splitlines())
    assert CheckpointFolder(folder).rounds() == [rounds] == [result["rounds"]]
    kept = CheckpointFolder(folder).read(rounds)
    assert kept.plain["digest"] == result["digest"]
    assert f"varangian server --resume {result['folder']}" in server.all_said()
    assert workers.poll() is None, "workers wait for the next server"


@pytest.mark.parametrize("lines", [5, 6])
def test_sigterm_after_the_last_round_is_exit_code_0(trained, lines):
    server, workers = trained(lines, "rounds=5")  # the sixth line is the result
    server.process.send_signal(signal.SIGTERM)
    server.process.stdout.read()
    assert server.process.wait(PATIENCE) == 0, server.all_said()
    assert workers.wait(PATIENCE) == 0


def test_sigterm_without_checkpoints_is_exit_code_143(trained, tmp_path):
    server, _ = trained(1, "server.checkpoint=null")
    server.process.send_signal(signal.SIGTERM)
    server.process.stdout.read()
    assert server.process.wait(PATIENCE) == 128 + signal.SIGTERM
    assert "--resume" not in server.all_said()


def test_sigterm_is_exit_code_143_to_an_engine_that_takes_0_for_the_end(trained, tmp_path):
    server, _ = trained(options=["--until-done"])
    server.process.send_signal(signal.SIGTERM)
    server.process.stdout.read()
    assert server.process.wait(PATIENCE) == 128 + signal.SIGTERM
    (folder,) = (tmp_path / "runs").iterdir()
    assert CheckpointFolder(folder).rounds() == [len((folder / "rounds.jsonl").read_text().splitlines())]


def test_a_run_that_is_over_is_exit_code_0_whatever_was_asked(trained):
    server, _ = trained(6, "rounds=5", options=["--until-done"])
    server.process.send_signal(signal.SIGTERM)
    server.process.stdout.read()
    assert server.process.wait(PATIENCE) == 0, server.all_said()


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.05])
def test_a_second_signal_leaves_the_checkpoint_whole(trained, tmp_path, pause):
    server, _ = trained(3, "server.checkpoint.every=1")
    server.process.send_signal(signal.SIGTERM)
    time.sleep(pause)
    server.process.send_signal(signal.SIGTERM)
    server.process.stdout.read()
    server.process.wait(PATIENCE)
    (folder,) = (tmp_path / "runs").iterdir()
    checkpoints = CheckpointFolder(folder)
    assert checkpoints.rounds()
    lines = (folder / "rounds.jsonl").read_bytes().count(b"\n")
    for round in checkpoints.rounds():
        assert checkpoints.read(round).plain["round"] == round <= lines


PLAIN = ["rounds=40", "server.checkpoint.every=4", "server.quorum=5", "server.wait_factor=null"]


@pytest.mark.parametrize("participation", ["sync", "fedlaavg"])
@pytest.mark.parametrize("lines", [1, 3, 14, 25])
def test_a_server_that_is_killed_anywhere_ends_with_the_same_digests(
    started, tmp_path, monkeypatch, participation, lines
):
    monkeypatch.setenv("VARANGIAN_SECRET", "a secret of sixteen bytes")
    settings = [*SMALL, *PLAIN, f"participation={participation}"]
    expected = run(load(None, [*settings, "backend=simulate", f"output={tmp_path / 'straight'}"]))
    serve = ["server", *settings, "--format", "json"]
    address = f"127.0.0.1:{free_port()}"
    server = Served(started(*serve, "--bind", address))
    assert server.address() == address
    workers = started("worker", *settings, "--server", address, *(f"--name=w0{i}" for i in range(5)))
    (folder,) = (tmp_path / "runs").iterdir()
    for _ in range(lines):
        server.process.stdout.readline()
    server.process.kill()
    server.process.wait(PATIENCE)
    again = Served(started(*serve, "--bind", address, "--resume"))
    *_, last = map(json.loads, again.process.stdout)
    assert again.process.wait(PATIENCE) == 0, again.all_said()
    assert last["result"]["folder"] == str(folder.relative_to(tmp_path))
    assert "ended without saying so; this one takes over" in again.all_said()
    assert last["result"]["digest"] == expected.digest
    parameters = {record["round"]: record["parameters"] for record in expected.history}
    for line in (folder / "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["parameters"] == parameters[record["round"]]
    assert workers.wait(PATIENCE) == 0


def test_a_branch_of_a_run_that_is_over_ends_with_the_same_digest(tmp_path):
    settings = ["rounds=12", "server.checkpoint.every=4", "server.quorum=5", "server.wait_factor=null"]
    straight = run(load(None, [*SMALL, *settings, f"output={tmp_path}"]))
    assert [str(one.workers) for one in kept_checkpoints(straight.folder)] == ["all 5"] * 3
    made = branch(straight.folder, 4)
    config, resumed = resume(settings_of(made), made, lambda text: None)
    end = run(config, resume=resumed)
    assert (end.folder, end.rounds, end.digest) == (made, 12, straight.digest)
    kept = [[one["parameters"] for one in result.history] for result in (straight, end)]
    assert kept[0] == kept[1]
