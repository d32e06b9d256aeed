import pytest

from varangian.config import load
from varangian.launch import run

SMALL = [
    "data=synthetic",
    "model=softmax",
    "workers=5",
    "f=1",
    "rounds=5",
    "worker.batch_size=8",
    "aggregator=median",
]


@pytest.fixture
def small(tmp_path):
    """The configuration of a run that takes no time, with further settings."""

    def configured(*settings):
        return load(None, [*SMALL, "backend=simulate", f"output={tmp_path / 'runs'}", *settings])

    return configured


@pytest.fixture
def carried_out(small):
    """A small run: its result, its records, and what was noted."""

    def carry_out(*settings):
        records, notes = [], []
        result = run(small(*settings), observe=records.append, note=notes.append)
        return result, records, notes

    return carry_out
