"""One line of JSON per round, whatever a worker or a rule put into it."""

import json
import math

import pytest

from varangian.server.observability.record import (
    RoundRecord,
    Scores,
    record_of_skip,
    record_of_step,
)
from varangian.server.protocol.events import Close, Skip
from varangian.server.training.learner import Step

NAN, INF = float("nan"), float("inf")
STEP = Step(
    norm=2.5,
    weights={"w00": 0.5, "w01": 0.5},
    reference_weight=0.25,
    dropped={"w02": "not finite"},
    details={"explained": {"w00": 0.9, "w01": NAN}},
    lr=0.1,
    seconds={"aggregate": 1.0, "step": 2.0},
    effective=2.0,
    spread=0.5,
)


def no_constants(name: str):
    raise AssertionError(f"{name} is not JSON")


def parsed(record: RoundRecord):
    line = record.json()
    assert "\n" not in line
    assert line.isascii()
    assert line.isprintable()
    return json.loads(line, parse_constant=no_constants)


def closed(round: int = 0, **fields: object) -> Close:
    usual = {"workers": ("w00", "w01"), "faults": {}, "missing": (), "waited": 3.0}
    return Close(round, **usual | fields, because="all answered")


def test_a_committed_round():
    record = record_of_step(
        closed(7, missing=("w03",), declined={"w04": "no memory left"}, revoked=("w05",)),
        STEP,
        ages={"w01": 0, "w00": 2},
        evaluation=(0.3, 0.9),
        seconds={"evaluate": 4.0},
        parameters="5e",
        gated={"w06": 0.5, "w07": math.inf},
    )
    assert parsed(record) == {
        "round": 7,
        "fragment": None,
        "loss": 0.3,
        "accuracy": 0.9,
        "ema_loss": None,
        "ema_accuracy": None,
        "metrics": None,
        "train_loss": None,
        "weights": {"w00": 0.5, "w01": 0.5},
        "reference_weight": 0.25,
        "effective": 2.0,
        "spread": 0.5,
        "dropped": {"w02": "not finite"},
        "gated": {"w06": 0.5, "w07": None},
        "missing": ["w03"],
        "waited_for": ["w03"],
        "not_waited_for": {},
        "because": "all answered",
        "quorum_after": None,
        "deadline": None,
        "declined": {"w04": "no memory left"},
        "revoked": ["w05"],
        "ages": {"w00": 2, "w01": 0},
        "details": {"explained": {"w00": 0.9, "w01": None}},
        "update_norm": 2.5,
        "lr": 0.1,
        "skipped": None,
        "pushes": None,
        "parameters": "5e",
        "resumed": None,
        "membership": None,
        "seconds": {"wait": 3.0, "evaluate": 4.0, "aggregate": 1.0, "step": 2.0},
        "aggregation": {},
    }


def test_a_round_without_evaluation_has_no_loss():
    record = parsed(record_of_step(closed(7), STEP))
    assert (record["loss"], record["accuracy"]) == (None, None)


def test_a_deadline_that_set_itself_is_in_the_record_of_its_round():
    assert parsed(record_of_step(closed(7, deadline=13.5), STEP))["deadline"] == 13.5
    skip = Skip(3, (), {}, (), 13.5, "too few", deadline=13.5)
    assert parsed(record_of_skip(skip))["deadline"] == 13.5


def test_a_skipped_round():
    skip = Skip(3, ("w00",), {"w01": "not finite"}, ("w02",), 10.0, "too few")
    record = parsed(record_of_skip(skip, (1.0, 0.5)))
    assert record["skipped"] == "too few"
    assert (record["dropped"], record["missing"]) == ({"w01": "not finite"}, ["w02"])
    assert (record["weights"], record["update_norm"], record["lr"]) == (None, None, None)
    assert record["seconds"] == {"wait": 10.0}
    assert record["accuracy"] == 0.5


def test_numbers_without_a_word_in_json_become_null():
    record = parsed(record_of_step(closed(), STEP, evaluation=(NAN, -INF), seconds={"evaluate": INF}))
    assert (record["loss"], record["accuracy"], record["seconds"]["evaluate"]) == (None, None, None)


@pytest.mark.parametrize(
    "hostile",
    [
        '"}\n{"round": 1e9, "x": "',
        "\x1b[2J\x1b]0;owned\x07",
        "line\u2028separator\u2029",
        "</script><script>alert(1)</script>",
        "\x00\x7f\x9b",
        "\ud800 alone",
        "../../etc/passwd",
        "имя",
    ],
)
def test_hostile_names_and_reasons_stay_text(hostile: str):
    record = RoundRecord(
        round=0,
        dropped={hostile: hostile},
        missing=(hostile,),
        weights={hostile: 1.0},
        skipped=hostile,
        seconds={},
    )
    back = parsed(record)
    assert back["dropped"] == {hostile: hostile}
    assert back["missing"] == [hostile]
    assert back["weights"] == {hostile: 1.0}
    assert back["skipped"] == hostile


def test_numbers_come_back_exactly():
    value = 0.1 + 0.2
    assert parsed(record_of_step(closed(), STEP, evaluation=(value, value)))["loss"] == value


def test_scores_of_the_average_are_there_where_it_is():
    record = record_of_step(closed(), STEP, evaluation=Scores(1.0, 0.5, 0.75, 0.625))
    assert (record.ema_loss, record.ema_accuracy) == (0.75, 0.625)
    assert record.scores == Scores(1.0, 0.5, 0.75, 0.625)
    assert record_of_step(closed(), STEP, evaluation=(1.0, 0.5)).scores == Scores(1.0, 0.5)
    assert record_of_step(closed(), STEP).scores == Scores()
