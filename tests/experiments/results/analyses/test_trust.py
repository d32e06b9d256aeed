"""Trust over time: weights of workers, and who had no part in a round."""

import numpy as np
import pytest
from tests.experiments.results.conftest import ATTACKS, record, settings

from varangian.experiments.results.analyses.trust import trust
from varangian.experiments.results.read import read_run

NAMES = [f"w{i:02d}" for i in range(10)]


@pytest.fixture
def timeline(tmp_path, write_run):
    rows = [
        record(0, weights=dict.fromkeys(NAMES[:4], 0.25) | {"w09": 0.0}, dropped={"w08": "not finite"}),
        record(
            1,
            weights={"w00": 0.5, "w09": 0.5},
            missing=("w01", "w02"),
            not_waited_for={"w02": "absent"},
            declined={"w03": "<b>no data</b>"},
            revoked=("w04",),
        ),
        record(2, skipped="no quorum", missing=("w01",)),
    ]
    config = settings(byzantine__attack=ATTACKS["alie"])
    return read_run(write_run(tmp_path / "run", config, rows))


def test_weights_and_marks(timeline):
    shown = trust(timeline)
    assert shown.workers == tuple(NAMES)
    assert shown.attackers == {"w08", "w09"}
    expected = np.full((10, 3), np.nan)
    expected[:4, 0], expected[9, 0], expected[0, 1], expected[9, 1] = 0.25, 0, 0.5, 0.5
    np.testing.assert_array_equal(shown.weights, expected)
    marks = {
        (NAMES[worker], mark.round): (mark.kind, mark.reason)
        for (worker, _), found in shown.marks.items()
        for mark in found
    }
    assert marks == {
        ("w08", 1): ("dropped", "not finite"),
        ("w01", 2): ("missing", "no answer in time"),
        ("w02", 2): ("absent", "absent"),
        ("w03", 2): ("declined", "<b>no data</b>"),
        ("w04", 2): ("revoked", "its certificate was revoked"),
        ("w01", 3): ("missing", "no answer in time"),
    }
    assert shown.skipped == {3: "no quorum"}
    assert shown.attacking_share == pytest.approx(0.25)


def test_many_rounds_share_columns(timeline):
    shown = trust(timeline, most=2)
    assert (shown.first, shown.last) == ((1, 3), (2, 3))
    assert shown.weights[0, 0] == pytest.approx((0.25 + 0.5) / 2)
    assert shown.weights[1, 0] == 0.25
    assert [mark.round for mark in shown.marks[1, 0]] == [2]


def test_a_rule_without_weights(tmp_path, write_run):
    shown = trust(read_run(write_run(tmp_path / "run", settings(), [record(0), record(1)])))
    assert not shown.weighed
    assert shown.attacking_share is None
    assert shown.attackers == frozenset()
