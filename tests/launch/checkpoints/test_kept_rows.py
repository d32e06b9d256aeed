"""Kept rows: which rounds are there, and what a full disk costs."""

import pytest
import torch

from varangian.aggregators.mixings.scaled import Scaled
from varangian.launch.checkpoints.kept_rows import KeptRound, KeptRows, kept_rounds
from varangian.server.protocol.events import Close
from varangian.server.rows.source import StepInput
from varangian.state_file import StateFileError

ROWS = {"w00": torch.tensor([1.0, 2.0]), "w01": torch.tensor([3.0, 4.0], dtype=torch.bfloat16)}
LEARNER = {"parameters": torch.zeros(2), "reference": None, "optimizer": {"bound": float("inf")}}


def closed(round):
    return Close(round, tuple(ROWS), {"w02": "not finite"}, (), 1.0, "all answered")


@pytest.fixture
def notes():
    return []


@pytest.fixture
def keep(tmp_path, notes):
    return KeptRows(tmp_path, 3, [(2, 1)], notes.append)


def test_the_last_rounds_are_kept(keep, tmp_path):
    for round in range(5):
        keep(closed(round), StepInput(ROWS), LEARNER)
    assert [*kept_rounds(tmp_path)] == [2, 3, 4]
    keep(closed(3), StepInput(ROWS), LEARNER)  # the run went on from a checkpoint before
    assert [*kept_rounds(tmp_path)] == [2, 3]


def test_what_was_kept_comes_back(keep, tmp_path):
    inputs = StepInput(
        ROWS, mix=(Scaled((0.5, 1.0)),), measure=lambda reference: torch.eye(2), fresh=frozenset({"w01"})
    )
    keep(closed(7), inputs.measured(None), LEARNER)
    (path,) = kept_rounds(tmp_path).values()
    kept = KeptRound.read(path, 7)
    assert all(
        torch.equal(kept.rows[name], row) and kept.rows[name].dtype == row.dtype
        for name, row in ROWS.items()
    )
    assert (kept.mix, kept.fresh, kept.aggregated) == ((Scaled((0.5, 1.0)),), {"w01"}, False)
    assert (kept.faults, kept.blocks, kept.shapes) == ({"w02": "not finite"}, (2,), ((2, 1),))
    assert torch.equal(kept.measured, torch.eye(2))
    assert kept.learner["optimizer"] == {"bound": float("inf")}
    with pytest.raises(StateFileError, match="it has no rows of round 8"):
        KeptRound.read(path, 8)


def test_rows_are_measured_once():
    asked = []

    def measure(reference):
        asked.append(reference)
        return torch.eye(2)

    measured = StepInput(ROWS, measure=measure).measured(None)
    assert measured.measure(None) is measured.measure(None)
    assert len(asked) == 1
    assert StepInput(ROWS).measured(None).measure is None


def test_what_cannot_be_kept_is_said_once(keep, notes, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varangian.launch.checkpoints.kept_rows.state_file.write", full)
    for round in (7, 8):
        keep(closed(round), StepInput(ROWS), LEARNER)
    said = "warning: the vectors of round 7 cannot be kept (No space left on device); the run goes on"
    assert notes == [said]
