"""Runs read from folders, and what cannot be read."""

import json
import shutil

import numpy as np
import pytest
from tests.experiments.results.conftest import learning, record, settings

from varangian.config import load, loads
from varangian.experiments.results.read import read_run, read_runs
from varangian.experiments.results.run import ResultsError
from varangian.launch import RunResult, run


@pytest.fixture
def folder(tmp_path, write_run):
    return write_run(tmp_path / "run", settings(), learning([0.5, 0.75]))


def test_a_run_that_varangian_made(tmp_path):
    config = load(None, ["data=synthetic", "model=softmax", "workers=5", "f=1", "rounds=3",
                         "aggregator=median", "backend=simulate", f"output={tmp_path}"])  # fmt: skip
    result = run(config, observe=lambda _: None, note=lambda _: None)
    read = read_run(result.folder)
    assert loads(dict(read.config)) == config
    assert (read.state, read.running, read.reason) == ("finished", False, "")
    assert read.result["digest"] == result.digest
    assert [row["round"] for row in read.rounds] == [0, 1, 2]
    rounds, values = read.columns("accuracy")
    assert (rounds.tolist(), values.tolist()) == ([3], [result.accuracy])
    assert read.columns("update_norm")[1].tolist() == [row["update_norm"] for row in read.rounds]
    assert read.metrics == ("train_loss", "loss", "accuracy")


def test_columns_leave_out_rounds_without_a_value(folder):
    read = read_run(folder)
    rounds, values = read.columns("accuracy")
    assert (rounds.tolist(), values.tolist()) == ([2, 4], [0.5, 0.75])
    assert read.columns("lr")[0].tolist() == [1, 2, 3, 4]
    assert read.columns("effective")[0].tolist() == []
    (folder / "metrics.csv").unlink()
    again = read_run(folder)
    for name in ("accuracy", "lr", "loss"):
        assert [part.tolist() for part in again.columns(name)] == [
            part.tolist() for part in read.columns(name)
        ]


def test_numbers_that_are_not_finite_are_kept(tmp_path, write_run):
    rows = [record(0, loss=float("inf")), record(1, loss=float("nan"))]
    _, values = read_run(write_run(tmp_path / "run", settings(), rows)).columns("loss")
    assert np.isposinf(values[0])
    assert np.isnan(values[1])


def test_the_torn_line_of_a_run_that_goes_on_is_no_error(tmp_path, write_run):
    folder = write_run(tmp_path / "a.running", settings(), learning([0.5, 0.75]), ended=None)
    for name in ("rounds.jsonl", "metrics.csv"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-7])
    read = read_run(folder)
    assert (read.id, read.state, read.running) == ("a", "unfinished", True)
    assert len(read.rounds) == 3
    assert read.columns("accuracy")[1].tolist() == [0.5]


def cut(path, by):
    path.write_bytes(path.read_bytes()[:-by])


def test_a_run_whose_folder_a_sweep_renames_is_read_on(tmp_path, write_run):
    going = write_run(tmp_path / "abc.running", settings(), learning([0.5]), ended=None)
    read = read_run(going)
    assert read.running
    going.rename(tmp_path / "abc")
    assert read.config["workers"] == 10
    assert len(read.rounds) == 2


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: cut(run / "rounds.jsonl", 9), "rounds.jsonl, line 4, ends half way"),
        (
            lambda run: cut(
                run / "rounds.jsonl", len((run / "rounds.jsonl").read_bytes().split(b"\n")[3]) + 1
            ),
            "should end with round 3, and its line 3 is of round 2",
        ),
        (lambda run: (run / "rounds.jsonl").unlink(), "rounds.jsonl: No such file"),
        (lambda run: (run / "result.json").write_text("{"), "result.json should be JSON"),
        (lambda run: (run / "result.json").write_text("[]"), "should be an object of JSON"),
        (lambda run: (run / "manifest.json").write_text("nonsense"), "manifest.json should be JSON"),
    ],
)
def test_a_damaged_run_is_named(folder, damage, sentence):
    damage(folder)
    with pytest.raises(ResultsError, match="run") as caught:
        read_runs([folder.parent])
    assert sentence in str(caught.value)
    assert str(folder) in str(caught.value)


def test_damage_that_is_found_when_it_is_read(folder):
    (folder / "config.yaml").write_text("seed: 1\nworkers: [\n")
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text("".join([lines[0], "nothing\n", *lines[2:]]))
    lines = (folder / "metrics.csv").read_text().replace("0.5", "half")
    (folder / "metrics.csv").write_text(lines)
    read = read_run(folder)
    with pytest.raises(ResultsError, match=r"rounds.jsonl, line 2, should be the record of a round"):
        _ = read.rounds
    with pytest.raises(ResultsError, match=r"metrics.csv, line 2, should have a number or nothing"):
        read.columns("accuracy")
    with pytest.raises(ResultsError, match=r"config.yaml, line 3"):
        _ = read.config


def test_many_damaged_runs_are_counted(tmp_path, folder):
    for i in range(7):
        shutil.copytree(folder, tmp_path / f"copy{i}")
        cut(tmp_path / f"copy{i}" / "rounds.jsonl", 5)
    with pytest.raises(ResultsError) as caught:
        read_runs([tmp_path])
    assert len(str(caught.value).splitlines()) == 6
    assert "2 more runs are damaged" in str(caught.value)


def test_folders_are_searched_and_a_run_is_read_once(tmp_path, folder):
    deep = tmp_path / "more" / "demo-1"
    shutil.copytree(folder, deep / "first")
    (tmp_path / ".hidden").mkdir()
    found = read_runs([tmp_path, folder, deep])
    assert [run.folder for run in found] == [deep / "first", folder]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nothing", "There is no such folder"),
        ("empty", "There is no run in it"),
        ("file.txt", "It is another file"),
        ("bad.sweep.json", "should be the JSON of a sweep"),
        ("other.sweep.json", "Its part 'points' is missing"),
    ],
)
def test_paths_without_runs(tmp_path, path, sentence):
    (tmp_path / "empty").mkdir()
    for name, text in (("file.txt", ""), ("bad.sweep.json", "{"), ("other.sweep.json", "{}")):
        (tmp_path / name).write_text(text)
    with pytest.raises(ResultsError, match=path) as caught:
        read_runs([tmp_path / path])
    assert sentence in str(caught.value)


def test_runs_of_another_version_are_read_and_named_once(tmp_path, write_run):
    for name in ("a", "b"):
        write_run(tmp_path / name, settings(), learning([0.5]), version="0.0.9")
    notes = []
    assert len(read_runs([tmp_path], notes.append)) == 2
    assert len(notes) == 1
    assert "2 runs, as" in notes[0]
    assert "made by varangian 0.0.9" in notes[0]


def test_the_plan_of_a_sweep_leads_to_its_runs(tmp_path, write_run):
    write_run(tmp_path / "aa", settings(), learning([0.5]))
    write_run(tmp_path / "bb.running", settings(seed=2), learning([0.5]), ended=None)
    write_run(tmp_path / "other", settings(seed=3), learning([0.5]))
    points = [{"id": name, "settings": {}, "seed": 1} for name in ("bb", "aa", "cc")]
    plan = tmp_path / "grid.sweep.json"
    plan.write_text(json.dumps({"points": points}))
    found = read_runs([plan])
    assert [run.id for run in found] == ["bb", "aa"]
    assert [point.id for point in found.sweeps[0].points] == ["bb", "aa", "cc"]
    assert {run.id for run in read_runs([tmp_path])} == {"aa", "bb", "other"}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"id": "../aa"}, "../aa"),
        ({"id": "/aa"}, "/aa"),
        ({"id": "a\0a"}, "x00"),
        ({"id": "\ud800"}, "ud800"),
        ({"settings": "mean"}, "dictionary"),
    ],
)
def test_an_edited_plan_leads_nowhere_else(tmp_path, write_run, change, part):
    write_run(tmp_path / "aa", settings(), learning([0.5]))
    (tmp_path / "sweep").mkdir()
    plan = tmp_path / "sweep" / "grid.sweep.json"
    plan.write_text(json.dumps({"points": [{"id": "aa", "settings": {}, "seed": 1} | change]}))
    with pytest.raises(ResultsError, match="should be the JSON of a sweep") as caught:
        read_runs([plan])
    assert part in str(caught.value)


def test_of_a_round_that_was_done_again_the_last_line_counts(tmp_path, write_run):
    records = [record(round, loss=9.0) for round in (0, 1, 2, 3)]
    again = [record(1, loss=1.0, resumed={"round": 1})]
    more = [record(2, loss=1.0), record(2, loss=2.0, resumed={"round": 2})]
    folder = write_run(tmp_path / "run", settings(), [*records, *again, *more], ended=None)
    expected = [(0, 9.0), (1, 1.0), (2, 2.0)]
    assert [(one["round"], one["loss"]) for one in read_run(folder).rounds] == expected
    result = RunResult(None, None, "", 3, 1.0, "", "finished", folder)
    assert [(one["round"], one["loss"]) for one in result.history] == expected
