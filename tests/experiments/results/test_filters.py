"""Filter of runs by their settings."""

import json

import pytest
from tests.experiments.results.conftest import learning, settings

from varangian.experiments.results.filters import EVERYTHING, Filter, agrees
from varangian.experiments.results.read import read_runs
from varangian.experiments.results.run import ResultsError

CHAIN = {"mix": [{"nnm": {"f": 2}}], "rule": {"median": {"convention": "midpoint"}}}


@pytest.mark.parametrize(
    ("wanted", "found", "fits"),
    [
        (3, 3, True),
        (1, True, False),
        (0.5, 0.5, True),
        (None, None, True),
        ("alie", {"alie": {"z": 1.5}}, True),
        ({"alie": {"z": 1.5}}, {"alie": {"z": 1.5, "objective": "deviation"}}, True),
        ({"alie": {"z": 1}}, {"alie": {"z": 1.5}}, False),
        ("nnm+median", CHAIN, True),
        ("median", CHAIN, False),
        ({"rule": "median"}, CHAIN, True),
        ({"mix": [{"nnm": {"f": 3}}]}, CHAIN, False),
        ([1, 2], [1], False),
        ({"count": 3}, {"count": 3, "attack": None}, True),
    ],
)
def test_a_name_stands_for_any_fields_and_written_fields_must_agree(wanted, found, fits):
    assert agrees(wanted, found) is fits


def test_of_several_values_any_and_of_several_settings_all(compared):
    results = read_runs([compared[0]])
    some = Filter.of(["aggregator=krum", "byzantine.attack=alie", "byzantine.attack=null"])(results)
    found = {(*run.config["aggregator"], *(run.config["byzantine"]["attack"] or ["none"])) for run in some}
    assert (len(some), found) == (6, {("krum", "none"), ("krum", "alie")})
    assert EVERYTHING(results) is results
    assert len(Filter.of(["aggregator.krum.select=1"])(results)) == 9


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["f=7"], "No run has f=7. Values in these runs: 2."),
        (["byzantine.attack=mimic"], "Values in these runs: "),
        (["byzantine.atack=alie"], "Did you mean 'byzantine.attack'?"),
        (["aggregator=krum", "aggregator.median.convention=midpoint"], "No run has"),
        (["seed=1", "byzantine.attack=alie", "aggregator=krum", "byzantine.count=0"], "No run has all of"),
        (["f"], "should be key=value"),
    ],
)
def test_settings_that_no_run_has(compared, texts, sentence):
    with pytest.raises(ResultsError) as caught:
        Filter.of(texts)(read_runs([compared[0]]))
    assert sentence in str(caught.value)


def test_a_plan_keeps_the_points_with_the_settings(tmp_path, write_run):
    write_run(tmp_path / "one", settings(seed=1), learning([0.5]))
    points = [
        {"id": name, "settings": {"f": f}, "seed": 1, "config": settings(f=f)}
        for name, f in (("one", 2), ("two", 2), ("three", 3))
    ]
    left_out = [{"settings": {"f": f}, "reason": "too many"} for f in (2, 3)]
    plan = {"name": "s", "points": points, "impossible": left_out, "config": {}}
    (tmp_path / "s.sweep.json").write_text(json.dumps(plan))
    (sweep,) = Filter.of(["f=2"])(read_runs([tmp_path / "s.sweep.json"])).sweeps
    assert [point.id for point in sweep.points] == ["one", "two"]
    assert [fields for fields, _ in sweep.left_out] == [{"f": 2}]
