"""What the page makes of the records of rounds."""

import json
import math

from varangian.server.monitoring.history import POINTS, WINDOW, Curve, History
from varangian.server.monitoring.overview import SHOWN, Overview, curves_of, views


def record(round, **fields):
    return {
        "round": round,
        "weights": {"w00": 0.75, "w01": 0.25},
        "pushes": {"w00": "a", "w01": "b"},
        **fields,
    }


def test_a_long_curve_keeps_its_ends_and_its_extremes():
    curve = Curve()
    for round in range(50_000):
        curve.add(round, {12_345: -7.0, 40_001: 9.0}.get(round, math.sin(round / 1000)))
    rounds = [round for round, _ in curve.points]
    values = [value for _, value in curve.points]
    assert len(curve.points) < POINTS
    assert rounds == sorted(set(rounds))
    assert (rounds[0], rounds[-1], min(values), max(values)) == (0, 49_999, -7.0, 9.0)


def test_the_last_outcome_of_each_worker_has_its_reason():
    history = History()
    history.add(record(0, dropped={"w01": "not finite"}))
    history.add(record(1, missing=("w00",), not_waited_for={"w00": "absent"}))
    history.add(record(2, declined={"w02": "no\x1b[31m data"}, revoked=("w03",)))
    history.add(record(3, weights=None, skipped="too few"))
    found = {name: (one.round, one.kind, one.reason) for name, one in history.outcomes.items()}
    assert found == {
        "w00": (3, "unused", "too few"),
        "w01": (3, "unused", "too few"),
        "w02": (2, "declined", "no\\x1b[31m data"),
        "w03": (2, "revoked", "its certificate is revoked, or it was expelled"),
    }
    cells = {one.name: list(one.weights) for one in views(["w00", "w01", "w02"], history, {})}
    assert cells == {
        "w00": [0.75, "missing", 0.75, None],
        "w01": ["dropped", 0.25, 0.25, None],
        "w02": [None, None, "declined", None],
    }
    assert (history.updates, history.last) == (3, 3)


def test_rounds_that_are_done_again_count_once():
    history = History()
    for round in range(10):
        history.add(record(round, loss=1.0 + round))
    history.add(record(6, loss=0.5))
    assert curves_of(history)["loss"] == [(round, 1.0 + round) for round in range(6)] + [(6, 0.5)]
    assert [one.round for one in history.window] == [0, 1, 2, 3, 4, 5, 6]


def test_what_a_checkpoint_takes_back_is_shown_no_more():
    history = History()
    for round in range(10):
        history.add(record(round, loss=1.0 + round, declined={"w02": "late"} if round > 6 else {}))
    history.add(record(10, ema_loss=3.0))
    history.cut(5)
    assert (history.latest, history.last) == ({"loss": 5.0}, 4)
    assert history.outcomes == {}
    history.add(record(5))
    assert {name: one.round for name, one in history.outcomes.items()} == {"w00": 5, "w01": 5}


def test_what_is_not_finite_is_left_out():
    history = History()
    history.add(record(0, loss=math.inf, accuracy=None, metrics={"x" * 100: math.nan, "y": 2}))
    assert curves_of(history) == {"y": [(0, 2.0)]}
    history.add(record(1, weights={"w00": math.nan, "w01": 0.5}))
    assert [list(one.weights) for one in views(["w00", "w01"], history, {})] == [[0.75, None], [0.25, 0.5]]


def test_of_very_many_workers_those_to_look_at_are_listed():
    names = [f"w{place:04}" for place in range(3000)]
    history = History()
    for round in range(WINDOW + 5):
        history.add(
            {
                "round": round,
                "weights": dict.fromkeys(names[:-3], 1 / 2997),
                "dropped": dict.fromkeys(names[-3:], "not finite"),
            }
        )
    found = views(names, history, {})
    assert len(found) == SHOWN
    assert {one.name for one in found} >= set(names[-3:])
    state = Overview(
        run="x",
        live=True,
        state="running",
        sentence="",
        round=3,
        rounds=4,
        workers_total=3000,
        workers=found,
    )
    assert len(state.json()) < 1_000_000
    assert json.loads(state.json())["workers_total"] == 3000
