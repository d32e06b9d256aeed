"""The table of weights, and the numbers of a round."""

import csv

from varangian.trackers.numbers import MANY, numbers_of
from varangian.trackers.weights import WeightTable


def test_a_row_for_each_round_and_a_column_for_each_worker():
    table = WeightTable()
    table.add(0, {"b": 0.25, "a": 0.75})
    table.add(1, None)
    table.add(2, {"b": 0.0, "c": 1.0})
    assert table.workers == ("a", "b", "c")
    assert [*table.rows()] == [(0, [0.75, 0.25, None]), (2, [None, 0.0, 1.0])]
    assert [*csv.reader(table.csv().splitlines())] == [
        ["round", "a", "b", "c"],
        ["0", "0.75", "0.25", ""],
        ["2", "", "0.0", "1.0"],
    ]
    assert [(w.worker, w.rounds, w.mean, w.zero) for w in table.summary()] == [
        ("a", 1, 0.75, 0),
        ("b", 2, 0.125, 1),
        ("c", 1, 1.0, 0),
    ]


def test_a_long_run_keeps_every_second_round_then_every_fourth():
    table = WeightTable(cells=20)
    for round in range(101):
        table.add(round, {"a": 0.5, "b": 0.5})
    assert table.every == 16
    assert [round for round, _ in table.rows()] == [*range(0, 101, 16)]


def test_a_round_that_is_done_again_takes_back_those_after_it():
    table = WeightTable()
    for round in (0, 1, 2, 3, 1, 2):
        table.add(round, {"a": float(round)})
    assert [round for round, _ in table.rows()] == [0, 1, 2]


def test_earlier_rounds_are_read_from_the_record(tmp_path):
    path = tmp_path / "rounds.jsonl"
    lines = ['{"round": 0, "weights": {"a": 1.0}}', "[]", "{", '{"round": 1, "weights": null}']
    lines += ['{"round": 2, "weights": {"a": 0.5}}', '{"round": 3, "weights": {"a": 0.1}}']
    path.write_text("\n".join(lines))
    table = WeightTable()
    table.read(path, 3)
    table.read(tmp_path / "none", 3)
    assert [*table.rows()] == [(0, [1.0]), (2, [0.5])]


def test_the_numbers_of_a_round_are_finite_and_have_safe_names(record):
    assert numbers_of(record(3)) == {
        "loss": 2.5,
        "effective": 1.6,
        "reference_weight": 0.0,
        "class_accuracy/3": 0.5,
        "own_metric": 1.0,
        "seconds/wait": 0.25,
        "workers/missing": 0.0,
        "workers/declined": 0.0,
        "workers/dropped": 1.0,
        "workers/gated": 0.0,
        "workers/counted": 2.0,
        "updated": 1.0,
        "weight/w00": 0.75,
        "weight/w01": 0.25,
        "weight/w02": 0.0,
    }


def test_many_workers_have_no_series_of_their_own(record):
    many = {f"w{i:03}": 1.0 for i in range(MANY + 1)}
    assert not [name for name in numbers_of(record(0, weights=many)) if name.startswith("weight/")]
