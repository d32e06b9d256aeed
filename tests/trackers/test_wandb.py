"""Weights & Biases: files of its offline mode, read back."""

import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
from tests.extent import patience

from varangian.trackers import Followers, Wandb

pytestmark = [
    pytest.mark.exhaustive,  # to import wandb and start its service takes seconds
    pytest.mark.filterwarnings("ignore"),  # what wandb uses of others is not ours
]
HEADER, BLOCK = 7, 1 << 15


@pytest.fixture(autouse=True)
def wandb(monkeypatch, tmp_path):
    """The package, without a login and away from the settings of this user."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    return pytest.importorskip("wandb", reason="wandb is not installed")


def records(file):
    """The records in a file of wandb: blocks of 32 KB of pieces, each behind checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_a_run_that_goes_on_is_the_same_run(facts, record, wandb):
    for following, rounds in ((None, range(4)), (2, range(2, 6))):
        notes = []
        tracker = Wandb(project="mine", mode="offline", tags=("a",))
        followers = Followers([tracker], replace(facts, following=following), notes.append)
        followers.begin()
        for round in rounds:
            followers.round(record(round, loss=1.0 + round))
        followers.end({"outcome": "finished", "reason": "why", "digest": "d1", "rounds": 6})
        followers.close()
        assert [note for note in notes if not note.startswith(("tracker wandb: ", "waiting for"))] == []
        assert any(note.startswith("tracker wandb: wandb sync ") for note in notes)
        (facts.folder / "wandb").rename(facts.folder / f"wandb-{rounds.start}")
        # wandb names folders, and its one service both starts, by the second.
        ended = int(time.time())
        while int(time.time()) == ended:
            time.sleep(0.02)
    files = sorted(facts.folder.glob("wandb-*/offline-run-*/run-*.wandb"))
    found = [record for file in files for record in records(file)]
    runs = [record.run for record in found if record.HasField("run")]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {
        (json.loads((facts.folder / "trackers.json").read_text())["wandb"]["id"], "mine", "a-run")
    }
    rows = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    losses = {row["round"]: row["loss"] for row in rows if "loss" in row}
    assert losses == {round: 1.0 + round for round in range(6)}
    assert any("worker_weights" in name for row in rows for name in row)


def test_without_a_login_nothing_is_asked_and_the_run_goes_on(facts, record, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    notes = []
    followers = Followers([Wandb()], facts, notes.append)
    followers.begin()
    followers.round(record(0))
    followers.end({"outcome": "finished"})
    followers.close()
    failed, lacks = [note for note in notes if not note.startswith("waiting for")]
    assert "there is no login for Weights & Biases. Use `wandb login`" in failed
    assert lacks.endswith("lacks 1 of 1 rounds")


def test_a_server_that_never_answers_holds_neither_the_run_nor_the_end_of_the_process(tmp_path):
    """It takes connections and says nothing."""
    script = """
        from varangian.trackers import wandb
        from varangian import run
        wandb.BEGIN = 2.0
        from varangian.launch import server_run
        server_run.END = 1.0
        result = run(backend="simulate", data="synthetic", model="softmax", rounds=3, trackers=["wandb"],
                     note=print, output="runs")
        print(result.outcome, result.rounds)
    """
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"WANDB_BASE_URL": address, "WANDB_API_KEY": 40 * "a"}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=patience(100),
        )
    assert "finished 3" in done.stdout, done.stderr
    assert "tracker wandb" in done.stdout
    assert done.returncode == 0
