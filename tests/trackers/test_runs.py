"""Runs with trackers, good and bad."""

import json

import pytest
from tests.trackers.own_trackers import Failing, Lines, Stuck

import varangian
from varangian.launch import server_run

SMALL = {
    "backend": "simulate",
    "data": "synthetic",
    "model": "softmax",
    "workers": 5,
    "f": 1,
    "rounds": 4,
    "aggregator": "median",
    "evaluate.every": 2,
}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(tmp_path):
    def run(**settings):
        notes = []
        given = {**SMALL, "output": str(tmp_path / "runs")} if "resume" not in settings else None
        return varangian.run(given, note=notes.append, **settings), notes

    return run


def test_a_tracker_follows_a_run_and_goes_on_with_it(run, tmp_path):
    path = tmp_path / "lines"
    result, notes = run(trackers=[Lines(str(path))], server__checkpoint={"every": 2})
    assert notes == []
    first = lines(path)
    assert first[0] == ["begin", result.folder.name, None, {}, 4]
    assert [round for what, round, *_ in first if what == "round"] == [0, 1, 2, 3]
    assert first[-1] == ["end", "finished", 4]
    path.unlink()
    result, notes = run(resume=result.folder, rounds=6)
    assert result.rounds == 6
    again = lines(path)
    assert again[0] == ["begin", result.folder.name, 2, {"id": "made"}, 6]
    assert [round for what, round, *_ in again if what == "round"] == [2, 3, 4, 5]


def test_the_worst_trackers_change_no_bit_of_a_run(run, monkeypatch):
    plain, _ = run()
    monkeypatch.setattr(server_run, "END", 0.2)
    result, notes = run(trackers=[Failing("begin round end"), Stuck(), "tensorboard"])
    assert (result.outcome, result.digest) == ("finished", plain.digest)
    said = [note for note in notes if note.startswith("warning: tracker")]
    assert any("Failing failed: RuntimeError: no begin" in note for note in said)
    assert any("Failing lacks 4 of 4 rounds" in note for note in said)
    assert any("Stuck has not taken the end of the run in time" in note for note in said)


def test_a_run_that_ends_on_an_error_ends_in_its_trackers(run, tmp_path):
    path = tmp_path / "lines"

    def fails(record):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(trackers=[Lines(str(path))], observe=fails)
    assert lines(path)[-1][:2] == ["end", "failed"]


@pytest.mark.slow
@pytest.mark.exhaustive  # as in a simulation, but for the place where they begin
def test_a_run_over_grpc_has_them_too(run, tmp_path):
    path = tmp_path / "lines"
    result, _ = run(
        trackers=[Lines(str(path))], backend="processes", worker__per_process=5, aggregator="krum"
    )
    assert result.outcome == "finished"
    assert [what for what, *_ in lines(path)] == ["begin", *4 * ["round"], "weights", "end"]


def test_a_run_of_a_sweep_is_named_as_its_folder_will_be(run, tmp_path):
    path = tmp_path / "lines"
    run(trackers=[Lines(str(path))], folder=tmp_path / "0123456789abcdef.running")
    assert lines(path)[0][1] == "0123456789abcdef"
