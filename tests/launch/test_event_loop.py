"""Runs that are called from inside a running event loop, as in a notebook."""

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest

import varangian
from varangian.launch import RunError, event_loop, run


def in_a_cell(function, *args, **kwargs):
    """Call from inside a running event loop."""

    async def cell():
        return function(*args, **kwargs)

    return asyncio.run(cell())


# end_to_end/test_run.py compares the numbers of processes and of a simulation, outside of a loop.
PROCESSES = pytest.param("processes", marks=(pytest.mark.slow, pytest.mark.exhaustive))


@pytest.mark.parametrize("backend", ["simulate", PROCESSES])
def test_a_run_in_a_running_loop_gives_the_same_numbers(backend, small):
    wanted = run(small()).digest
    records = []
    result = in_a_cell(varangian.run, small(f"backend={backend}"), observe=records.append)
    assert (result.outcome, result.digest) == ("finished", wanted)
    assert [record.round for record in records] == [0, 1, 2, 3, 4]


def test_what_stops_a_run_is_raised_from_a_running_loop_too(small, monkeypatch):
    monkeypatch.setattr("varangian.launch.server_run.available_memory", lambda: 1 << 20)
    with pytest.raises(RunError, match="of memory"):
        in_a_cell(run, small())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_round_in_hand(number, small):
    before, notes, records = signal.getsignal(number), [], []

    def observe(record):
        records.append(record)
        if record.round == 1:
            os.kill(os.getpid(), number)

    result = in_a_cell(run, small("rounds=10000"), observe=observe, note=notes.append)
    assert (result.outcome, result.reason) == ("interrupted", f"stopped by {number.name}")
    assert result.rounds == len(records) < 10000
    assert any("stopping after the round in hand" in note for note in notes)
    assert signal.getsignal(number) is before
    assert "varangian-run" not in [thread.name for thread in threading.enumerate()]


def test_an_interruption_that_is_not_handled_cancels():
    cleaned = []

    async def endless():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(3600)
        finally:
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        in_a_cell(event_loop.run_to_completion, endless)
    assert cleaned == [True]


def test_a_second_signal_cancels():
    asked = []

    async def deaf():
        def interrupt(name):
            asked.append(name)
            os.kill(os.getpid(), signal.SIGTERM)

        with event_loop.interruptible(interrupt):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(3600)

    with pytest.raises(KeyboardInterrupt):
        in_a_cell(event_loop.run_to_completion, deaf)
    assert asked == ["SIGINT"]


def test_importing_varangian_is_light():
    code = (
        "import sys, varangian; assert 'run' in dir(varangian); "
        "assert not {'torch', 'numpy', 'asyncio', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_script_needs_no_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import varangian\n"
        "from varangian.config import load\n"
        "settings = ['workers=2', 'f=0', 'aggregator=mean', 'rounds=2', 'data=synthetic']\n"
        "print(varangian.run(load(None, settings)).outcome)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_script_with_a_guard_may_define_a_part_of_the_task(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "import varangian\n"
        "from varangian.config import load\n"
        "from varangian.worker.data import DATASETS\n"
        "from varangian.worker.data.digits import Digits\n"
        "@DATASETS.register('mine')\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Digits):\n"
        "    'Digits by another name.'\n"
        "if __name__ == '__main__':\n"
        "    settings = ['workers=2', 'f=0', 'aggregator=mean', 'model=softmax', 'rounds=2', 'data=mine']\n"
        "    print(varangian.run(load(None, settings)).outcome)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr
