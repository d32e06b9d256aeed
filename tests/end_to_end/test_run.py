"""The whole of it: a server, worker processes and attackers over loopback gRPC."""

import contextlib
import fcntl
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import time

import pytest
from tests.end_to_end.kit import PATIENCE, SMALL, Served, eventually, session_ends
from tests.extent import for_everybody, patience

from varangian.cli.main import main
from varangian.config import load
from varangian.launch import RunError, run

pytestmark = pytest.mark.slow

DEADLINE = round(min(patience(2), 8))
"""Seconds for which a round waits for workers that do not come."""


@pytest.fixture
def carried_out(tmp_path):
    def carry_out(*settings, observe=lambda record: None):
        notes = []
        config = load(None, [*SMALL, *for_everybody(), f"output={tmp_path / 'runs'}", *settings])
        result = run(config, observe=observe, note=notes.append)
        manifest = json.loads((result.folder / "manifest.json").read_text())
        assert manifest["memory"].startswith("memory: rows ")
        return result, notes

    return carry_out


def test_a_worker_that_is_stopped_is_waited_for_in_a_few_rounds_only(carried_out):
    """It is connected for a while and silent, as one that hangs; afterwards it is gone."""
    records, stopped = [], []

    def observe(record):
        records.append(record)
        if record.round == 1:
            last = [child for child in multiprocessing.active_children() if child.name.endswith(" w04")]
            stopped.extend(child.pid for child in last)
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
        if record.round == 23:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    try:
        settings = ["rounds=25", "worker.per_process=1", "server.wait_floor=1"]
        carried_out("aggregator=trimmed_mean", *settings, observe=observe)
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    silent = [record for record in records if "w04" in record.missing]
    assert len(stopped) == 1
    assert len(silent) >= 20
    assert sum("w04" in record.waited_for for record in silent) <= 3
    assert all(record.skipped is None for record in records)


def digests(result):
    """The digests of all that was pushed, and of the parameters after each round."""
    return [(record["pushes"], record["parameters"]) for record in result.history]


def members(result):
    """Who was missing and who was faulty, round by round."""
    records = map(json.loads, (result.folder / "rounds.jsonl").read_text().splitlines())
    return [(record["round"], record["missing"], record["dropped"]) for record in records]


def no_child_is_left():
    return multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "settings",
    [
        ["aggregator={mix: [bucketing, nnm], rule: trimmed_mean}", "workers=8"],
        # Attackers that see everyone, in a process of their own: they compute what the others send.
        [
            "aggregator=krum",
            "workers=9",
            "f=2",
            "byzantine.attack=ipm",
            "byzantine.count=2",
            "byzantine.knows=all",
        ],
        pytest.param(
            [
                "aggregator=median",
                "byzantine.attack=non_finite",
                "byzantine.count=1",
                "worker.per_process=1",
            ],
            marks=pytest.mark.exhaustive,
        ),
        [
            *("aggregator=flag", "optimizer.momentum=0.5", "optimizer.schedule=cosine"),
            *("model.mlp.hidden=8", "ema={decay: 0.9, reference_batch: 40}"),
        ],
        pytest.param(["aggregator=median", "wire.dtype=bfloat16"], marks=pytest.mark.exhaustive),
        # Payloads in one message, and beside the calls under TLS with a row narrower than what comes.
        pytest.param(
            [
                *("aggregator=nnm+krum", "wire.dtype=int8", "byzantine.attack=non_finite", "f=1"),
                *("byzantine.count=1", "worker.per_process=2"),
            ],
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            [
                *("aggregator=trimmed_mean", "wire.dtype=int8", "model.mlp.hidden=8000", "rounds=2"),
                *("server.rows=bfloat16", "server.tls=true"),
            ],
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            [
                *("aggregator=trimmed_mean", "wire.dtype=int8", "model.mlp.hidden=32000", "rounds=2"),
                "server.memory=window",
            ],
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            [
                *("workers=9", "f=2", "byzantine.attack=alie", "byzantine.count=2", "worker.local_steps=3"),
                *("worker.inner=adamw", "optimizer={name: sgd, lr: 0.7, momentum: 0.9, nesterov: true}"),
            ],
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            [
                *("workers=9", "f=2", "byzantine.attack=alie", "byzantine.count=2", "worker.local_steps=2"),
                *("worker.inner=adamw", "server.fragments=2", "wire.dtype=int8", "aggregator=nnm+krum"),
            ],
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            [
                "aggregator={rule: bucketing+median, per_block: true}",
                "byzantine.attack={alie: {z: optimal}}",
                "byzantine.count=1",
                "byzantine.knows=all",
            ],
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            ["aggregator=trimmed_mean", "model.mlp.hidden=8000", "rounds=2", "server.rows=bfloat16"],
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            [
                *("aggregator=arc+caf", "partition={dirichlet: {alpha: 1.0}}", "weights=samples"),
                *("weights_cap.alpha_star=0.35", "byzantine.attack=sign_flip", "byzantine.count=1"),
            ],
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            [
                *("aggregator=trimmed_mean", "model.mlp.hidden=32000", "rounds=2", "server.memory=window"),
                *("partition={dirichlet: {alpha: 1.0}}", "weights=samples", "weights_cap.alpha_star=0.35"),
            ],
            marks=pytest.mark.exhaustive,
        ),
        # Rows in a file.
        pytest.param(
            ["aggregator=nnm+krum", "model.mlp.hidden=8000", "rounds=2", "server.rows_folder=/tmp"],
            marks=pytest.mark.exhaustive,
        ),
        # So many columns that they do not fit into the window; one worker is left out on the way.
        [
            "aggregator=trimmed_mean",
            "model.mlp.hidden=32000",
            "rounds=2",
            "server.memory=window",
            "byzantine.attack=non_finite",
            "byzantine.count=1",
        ],
    ],
)
def test_processes_and_simulation_end_with_the_same_digest(carried_out, settings):
    apart, notes = carried_out(*settings, "backend=processes")
    together, _ = carried_out(*settings, "backend=simulate")
    # All payloads over gRPC; before, they went beside it.
    again, _ = carried_out(*settings, "backend=processes", "server.data_port=null")
    assert apart.outcome == together.outcome == "finished"
    alike = members(apart) == members(together) == members(again)
    # In a window, time decides whether such a worker is missing or faulty (docs/concepts/participation.md).
    assert alike or "server.memory=window" in settings
    if alike:
        assert apart.digest == together.digest == again.digest
        assert (apart.loss, apart.accuracy) == (together.loss, together.accuracy)
        assert (apart.ema_loss, apart.ema_accuracy) == (together.ema_loss, together.ema_accuracy)
        assert digests(apart) == digests(together) == digests(again)
    assert "payloads travel over gRPC" not in (apart.folder / "workers.log").read_text()
    assert all(note.startswith(("weights from", "The vectors of a round take")) for note in notes)
    assert no_child_is_left()


@pytest.mark.parametrize(
    "settings",
    [
        # One half after the other; the attackers, in a process of their own, follow both.
        [
            *("availability={alternating: {period: 2}}", "workers=8", "server.quorum=4"),
            *("byzantine.attack={alie: {z: 1}}", "byzantine.count=2", "f=1"),
            *("worker.per_process=8", f"server.deadline={DEADLINE}", "rounds=3"),
        ],
        pytest.param(
            ["delays={lognormal: {median: 0.05, most: 0.2}}", "server.deadline=60"],
            marks=pytest.mark.exhaustive,
        ),
        # Always too late.
        pytest.param(
            [
                f"delays={{constant: {{step: {1.5 * DEADLINE}, factor: 2, workers: [0]}}}}",
                *("worker.per_process=5", f"server.deadline={DEADLINE}", "rounds=2"),
            ],
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_who_comes_and_goes_does_so_alike_in_processes_and_simulation(carried_out, settings):
    records = {"processes": [], "simulate": []}
    results = [
        carried_out("aggregator=median", *settings, f"backend={backend}", observe=records[backend].append)
        for backend in records
    ]
    assert [notes for _, notes in results] == [[], []]
    assert [result.outcome for result, _ in results] == ["finished", "finished"]
    assert len({result.digest for result, _ in results}) == 1
    assert [r.missing for r in records["processes"]] == [r.missing for r in records["simulate"]]
    assert no_child_is_left()


def test_the_command_trains_on_digits_against_a_worker_that_sends_nan(tmp_path, capsys):
    arguments = ["workers=6", "f=1", "rounds=40", "aggregator=median", f"output={tmp_path}"]
    attack = ["byzantine.attack=non_finite", "byzantine.count=1"]
    assert main(["run", *arguments, *attack, "--format", "json"]) == 0
    *rounds, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["round"] for each in rounds] == list(range(40))
    assert all(each["dropped"] == {"w05": "not finite"} and each["missing"] == [] for each in rounds)
    result = last["result"]
    assert result["accuracy"] > 0.8
    folder = pathlib.Path(result["folder"])
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml",
        "manifest.json",
        "metrics.csv",
        "parameters.safetensors",
        "result.json",
        "rounds.jsonl",
    }
    assert "w05" in (folder / "workers.log").read_text()


@pytest.mark.parametrize("setting", ["server.port", "server.data_port"])
def test_a_port_in_use_is_one_clear_error(carried_out, capsys, tmp_path, setting):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            RunError, match=rf"127\.0\.0\.1:{port}.*Another process.*set `{setting}` to another"
        ):
            carried_out(f"{setting}={port}")
        assert main(["run", *SMALL, f"{setting}={port}", f"output={tmp_path}"]) == 1
    assert f"varangian: The server should have 127.0.0.1:{port} for itself" in capsys.readouterr().err
    assert no_child_is_left()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "no run began"


def killing(worker, at):
    """An observer that kills the process of a worker after some round."""

    def observe(record):
        if record.round == at:
            (process,) = [p for p in multiprocessing.active_children() if worker in p.name]
            process.kill()

    return observe


def test_a_run_goes_on_without_a_dead_worker_while_the_quorum_lives(carried_out):
    records = []

    def observe(record):
        records.append(record)
        killing("w00", 1)(record)

    settings = ["aggregator=median", "worker.per_process=1", "server.deadline=1", "rounds=6"]
    result, notes = carried_out(*settings, observe=observe)
    assert result.outcome == "finished"
    assert records[-1].missing == ("w00",)
    assert [note.partition(";")[0] for note in notes] == ["the process of w00 was ended by SIGKILL"]
    assert no_child_is_left()


def test_a_run_whose_quorum_is_dead_ends_and_says_so(carried_out):
    settings = ["aggregator=median", "worker.per_process=3", "rounds=100000"]
    result, notes = carried_out(*settings, observe=killing("w00", 3))
    assert result.outcome == "failed"
    assert result.reason == "only 3 workers are left, and the quorum is 4"
    assert result.rounds >= 4
    ended, kept = notes
    assert ended.startswith("the process of w00")
    assert kept == f"{result.rounds} rounds are kept: varangian run --resume {result.folder} goes on"
    assert no_child_is_left()


@pytest.mark.parametrize(
    ("backend", "number"),
    [
        pytest.param("processes", signal.SIGTERM, marks=pytest.mark.exhaustive),
        pytest.param("simulate", signal.SIGINT, marks=pytest.mark.exhaustive),
    ],
)
def test_interrupting_a_run_leaves_a_valid_folder_and_no_process(started, tmp_path, backend, number):
    command = started("run", *SMALL, "rounds=1000000", f"backend={backend}", "--format", "json")
    first = json.loads(command.stdout.readline())
    command.send_signal(number)
    # Not `communicate`: it does not know what `readline` has taken beyond the first line.
    *rounds, last = map(json.loads, command.stdout)
    err = command.stderr.read()
    assert command.wait(PATIENCE) == 128 + number, err
    result = last["result"]
    assert (result["outcome"], result["reason"]) == ("interrupted", f"stopped by {number.name}")
    assert result["rounds"] == len(rounds) + 1 > first["round"]
    assert f"{number.name}: stopping after the round in hand" in err
    assert "Traceback" not in err
    folder = tmp_path / result["folder"]
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == result["rounds"]
    written = json.loads((folder / "result.json").read_text())
    assert written.pop("record")["lines"] == result["rounds"]
    assert written == result
    assert session_ends(command.pid)


@pytest.mark.exhaustive
def test_a_second_interrupt_ends_it_at_once(started):
    settings = ["rounds=1000000", "server.deadline=3600", "workers=5", "f=1"]
    command = started("run", *SMALL, *settings, "--format", "json")
    command.stdout.readline()
    os.killpg(command.pid, signal.SIGINT)
    os.killpg(command.pid, signal.SIGINT)
    _, err = command.communicate(timeout=PATIENCE)
    assert command.returncode == 130
    assert "Traceback" not in err
    assert session_ends(command.pid)


@pytest.mark.exhaustive  # launch/output/test_queued_writer.py lets the reader leave in this process
def test_a_reader_that_leaves_costs_a_warning_and_not_the_run(started, tmp_path):
    command = started("run", *SMALL, "rounds=100", "backend=simulate", "--format", "json")
    command.stdout.readline()
    command.stdout.close()
    err = command.stderr.read()
    assert command.wait(PATIENCE) == 0, err
    assert err.count("warning: standard output cannot be written (its reader has gone)") == 1
    assert "Traceback" not in err
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "result.json").read_text())["rounds"] == 100
    assert (folder / "parameters.safetensors").exists()


@pytest.mark.exhaustive
def test_an_output_that_nobody_reads_stops_neither_rounds_nor_signals(started, tmp_path):
    command = started("run", *SMALL, "rounds=1000000", "backend=simulate", "--format", "json")
    fcntl.fcntl(command.stdout, fcntl.F_SETPIPE_SZ, 4096)
    unread = 8 * 4096  # much more than this pipe holds

    def written():
        return sum(record.stat().st_size for record in (tmp_path / "runs").glob("*/rounds.jsonl"))

    assert eventually(lambda: written() > unread)
    os.killpg(command.pid, signal.SIGTERM)
    command.wait(PATIENCE)
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "result.json").read_text())["reason"] == "stopped by SIGTERM"
    assert session_ends(command.pid)


@pytest.mark.exhaustive
def test_a_worker_that_is_killed_again_and_again_is_never_faulty(started, tmp_path, monkeypatch):
    monkeypatch.setenv("VARANGIAN_SECRET", "a secret of sixteen bytes")
    settings = [*SMALL, "rounds=1000000", "aggregator=median", "model.mlp.hidden=8000"]
    server = Served(started("server", *settings, "--bind", "127.0.0.1:0", "--format", "json"))
    address = server.address()
    names = [f"--name=w0{i}" for i in range(1, 5)]
    started("worker", *settings, "--server", address, *names)
    records = []

    def took_part(times):
        """Read records until w00 was in so many of them."""
        while times:
            records.append(json.loads(server.process.stdout.readline()))
            times -= records[-1].get("skipped", "") is None and "w00" not in records[-1]["missing"]

    for life in range(3):
        worker = started("worker", *settings, "--server", address, "--name=w00")
        took_part(2)
        time.sleep(0.013 * life)  # at another place of its round each time
        worker.kill()
    started("worker", *settings, "--server", address, "--name=w00")
    took_part(2)
    server.process.send_signal(signal.SIGTERM)
    records += map(json.loads, server.process.stdout)
    assert server.process.wait(PATIENCE) == 0, "it can go on from what it has kept"
    assert not [record["round"] for record in records if record.get("dropped")]


@pytest.mark.exhaustive
def test_the_demo_ends_in_a_table_and_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["demo", "--rounds", "3", "--output", str(tmp_path), "--format", "plain"]) == 0
    out = capsys.readouterr().out
    assert "│ flag" in out
    assert f"picture: {tmp_path}" in out
    (folder,) = tmp_path.iterdir()
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    cases = json.loads((folder / "demo.json").read_text())
    assert {(case["rule"], case["attack"]) for case in cases} == {
        (rule, attack)
        for rule in ("mean", "median", "krum", "flag")
        for attack in ("none", "uniform", "sign_flip")
    }
