"""Alarms: rounds after which a state may be worth less."""

import math

import pytest
from tests.launch.checkpoints.kit import CONFIG, record

from varangian.config.build import machine
from varangian.launch.checkpoints.alarms import Alarms


@pytest.fixture
def alarms():
    """Alarms after twelve usual rounds."""
    made = Alarms(every=10)
    for round in range(12):
        made.look(
            record(round, loss=2.0, update_norm=1.0, dropped={"w00": "not finite"} if round == 0 else {})
        )
    made.first = made.last = None
    return made


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"skipped": "round 12: Krum failed: no"}, "round 12 had no update"),
        ({"loss": math.nan}, "loss was not finite"),
        ({"loss": 1.0, "metrics": {"mae": math.inf}}, "mae was not finite"),
        ({"loss": 20.5}, "the loss was 20.5, after 2"),
        ({"update_norm": 10.5}, "the update was 10.5 long, and 1 was usual"),
        ({"update_norm": math.inf}, "the update was inf long, and 1 was usual"),
        ({"dropped": {"w01": "not finite"}}, "w01 was dropped for the first time"),
    ],
)
def test_what_is_an_alarm(alarms, fields, reason):
    alarms.look(record(12, **fields))
    assert (alarms.first, alarms.last, alarms.reason) == (12, 12, reason)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": 19.0, "update_norm": 9.0},
        {"dropped": {"w00": "not finite"}},
        {"missing": ("w01",)},
        {"skipped": "round 12: the quorum of 4 is not met"},
    ],
)
def test_what_is_none(alarms, fields):
    alarms.look(record(12, **fields))
    assert alarms.first is None


def test_a_lack_of_workers_is_none():
    policy = machine(CONFIG).policy
    for pushed in ((), ("w00",), ("w00", "w01", "w02", "w03")):
        if shortage := policy.shortage(pushed, ()):
            made = Alarms(every=10)
            made.look(record(0, skipped=f"round 0: {shortage}"))
            assert made.first is None


def test_the_first_updates_say_what_is_usual():
    made = Alarms(every=10)
    for round in range(9):
        made.look(record(round, update_norm=1000.0**round))
    assert made.first is None


def test_alarms_that_follow_each_other_are_one_spell(alarms):
    for round in (12, 20, 39):
        alarms.look(record(round, loss=math.nan))
    assert (alarms.first, alarms.last) == (12, 39)
    alarms.look(record(59, loss=math.nan))
    assert (alarms.first, alarms.last) == (59, 59)


def test_they_come_back(alarms):
    again = Alarms(every=10)
    again.restore(alarms.plain())
    assert again == alarms
    new = Alarms(every=10)
    new.restore(Alarms(every=10).plain())
    assert new == Alarms(every=10)
