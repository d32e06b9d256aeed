"""`--log-format json`: all that a command says is lines of JSON on standard error."""

import json
import os
import subprocess
import sys

import pytest
from tests.extent import patience

from varangian.cli.main import main

SMALL = [
    "backend=simulate",
    "data=synthetic",
    "model=softmax",
    "workers=5",
    "f=1",
    "rounds=3",
    "aggregator=krum",
]


def lines(text):
    found = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "event", "message"} <= line.keys() for line in found)
    return found


def test_a_run_is_told_in_events(tmp_path, capfd):
    assert main(["run", "--log-format", "json", *SMALL, f"output={tmp_path}", "evaluate.every=3"]) == 0
    out, err = capfd.readouterr()
    found = lines(err)
    assert out == ""
    assert [line["event"] for line in found] == ["round", "round", "round", "run_finished"]
    (folder,) = tmp_path.iterdir()
    assert {line["run"] for line in found} == {folder.name}
    assert [line["round"] for line in found[:3]] == [0, 1, 2]
    assert found[2]["accuracy"] == found[3]["accuracy"] > 0
    assert "VARANGIAN_LOG_FORMAT" not in os.environ


def test_a_view_that_is_asked_for_is_shown(tmp_path, capfd):
    asked = ["--format", "json", "--log-format", "json"]
    assert main(["run", *asked, *SMALL, f"output={tmp_path}"]) == 0
    out, err = capfd.readouterr()
    assert ("result" in json.loads(out.splitlines()[-1]), err) == (True, "")


def test_a_command_that_cannot_begin_says_so_in_one_event(capfd, monkeypatch):
    monkeypatch.setenv("VARANGIAN_LOG_FORMAT", "json")
    assert main(["run", "aggregator=krumm", "rounds=0"]) == 2
    out, err = capfd.readouterr()
    (found,) = lines(err)
    assert (found["event"], found["level"], found["command"], out) == ("command_failed", "error", "run", "")
    assert "Found 'krumm'" in found["message"]


def test_advice_is_an_event(tmp_path, capfd):
    few = ["aggregator=mean", f"output={tmp_path}", "--log-format", "json"]
    assert main(["run", *SMALL, *few]) == 0
    first, *_ = lines(capfd.readouterr().err)
    assert (first["event"], first["level"]) == ("advice", "warning")


@pytest.mark.slow
@pytest.mark.exhaustive  # the lines of each part are read above
def test_a_server_and_its_worker_say_nothing_else(tmp_path):
    """Real programs: all of their standard error and output are events with the run."""
    settings = ["data=synthetic", "model=softmax", "workers=1", "f=0", "rounds=2", "aggregator=mean"]
    command = [sys.executable, "-m", "varangian"]
    environment = os.environ | {"VARANGIAN_LOG_FORMAT": "json", "VARANGIAN_SECRET": "0123456789abcdef"}
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    server = subprocess.Popen([*command, "server", *settings], text=True, **options)
    try:
        said = []
        for line in server.stderr:
            said.append(json.loads(line))
            if said[-1]["message"].startswith("serving at "):
                break
        address = said[-1]["message"].split()[2].rstrip(",")
        worker = subprocess.run(
            [*command, "worker", "--server", address, "--name", "w00", *settings],
            text=True,
            timeout=patience(100),
            check=False,
            **options,
        )
        out, err = server.communicate(timeout=patience(60))
    finally:
        server.kill()
        server.wait()
    assert (worker.returncode, server.returncode) == (0, 0), (worker.stderr, err)
    said += lines(err)
    run = next(line["run"] for line in said if line["event"] == "round")
    assert {"worker_joined", "round", "run_finished"} <= {line["event"] for line in said}
    assert next(line["worker"] for line in said if line["event"] == "worker_joined") == "w00"
    of_worker = lines(worker.stderr)
    done = next(line for line in of_worker if line["event"] == "worker_done")
    assert (done["run"], done["worker"], done["round"]) == (run, "w00", 1)
    assert out == worker.stdout == ""
