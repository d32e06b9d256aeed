"""Runs with code of the user: errors before the first round, and rounds that are skipped or declined."""

import json

import pytest

from varangian.config import load, loads
from varangian.launch import RunError, run
from varangian.launch.dry_run import rehearse
from varangian.registry import ConfigError

SMALL = (
    *("backend=simulate", "model=softmax", "data={synthetic: {train: 60, test: 20}}"),
    *("workers=5", "f=1", "rounds=5", "worker.batch_size=4", "evaluate.every=2"),
)


def carried_out(tmp_path, *settings):
    config = load(None, [*SMALL, f"output={tmp_path}", *settings])
    records = []
    result = run(config, observe=records.append)
    assert loads(config.resolved()).resolved() == config.resolved()
    return result, records


def test_a_rule_that_fails_costs_a_round(tmp_path):
    from tests import own_parts

    own_parts.late.calls = -1  # it is tried once before the run
    result, records = carried_out(tmp_path, "aggregator=tests.own_parts:late")
    assert [record.skipped is None for record in records] == [True, True, False, False, True]
    assert "tests.own_parts:late failed: KeyError: 'oops'" in records[2].skipped
    assert "is not finite" in records[3].skipped
    assert result.outcome == "finished"
    assert "failed: KeyError: 'oops'" in result.code_error


def test_an_attack_that_fails_costs_its_worker_a_round(tmp_path):
    attack = ("byzantine.count=1", "byzantine.attack=tests.own_parts:tardy")
    result, records = carried_out(tmp_path, "aggregator=median", *attack)
    (reason,) = records[1].declined.values()
    assert "`byzantine.attack` 'tests.own_parts:tardy' failed: ZeroDivisionError" in reason
    assert [len(record.declined) for record in records] == [0, 1, 0, 0, 0]
    assert (
        result.code_error
        == f"{reason.rstrip('.')}. This was so in 1 of 5 rounds, so the scores do not count."
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["aggregator=tests.own_parts:Failing"], "tests.own_parts:Failing failed: ZeroDivisionError"),
        (["aggregator.tests.own_parts:Failing.what=nan"], "should give finite numbers for finite rows"),
        (["aggregator=tests.own_parts:short_rule"], "should return a vector of"),
        (["partition=tests.own_parts:of_the_first"], "at least one index for each worker"),
        (["partition=tests.own_parts:beyond"], "indices from 0 to 59. Found 60 to 60"),
        (
            ["byzantine.count=1", "byzantine.attack=tests.own_parts:short"],
            "should return a tensor of shape [68]. Found shape [2]",
        ),
        (
            ["metrics=[{subset_loss: {target: 'tests.own_parts:places'}}]"],
            "should return a boolean for each",
        ),
    ],
)
def test_what_fails_at_once_is_said_before_the_run(tmp_path, settings, said):
    config = load(None, [*SMALL, f"output={tmp_path}/runs", *settings])
    with pytest.raises((RunError, ConfigError)) as found:
        run(config)
    assert said in str(found.value)
    assert [said in str(problem) for problem in rehearse(config).problems] == [True]
    assert not (tmp_path / "runs").exists()


def test_a_condition_that_fails_is_a_problem_of_the_configuration():
    with pytest.raises(ConfigError, match="z is too large"):
        load(None, [*SMALL, "byzantine={count: 1, attack: {'tests.own_parts:Shift': {z: 10}}}"])
    with pytest.raises(ConfigError, match="it needs n > 2 k >= 2 f, and k is 3"):
        load(None, [*SMALL, "aggregator={'tests.own_parts:TrimmedSum': {k: 3}}"])


def test_the_folder_says_whose_code_it_was_and_has_all_values(tmp_path):
    result, _ = carried_out(
        tmp_path,
        "aggregator=nnm+tests.own_parts:Weighted",
        *("byzantine.count=1", "byzantine.attack.tests.own_parts:Shift.z=1.5"),
        *("metrics=[{'tests.own_parts:Recall': {label: 1}}]", "partition=tests.own_parts:Skewed"),
    )
    assert result.folder.name.endswith("-nnm-Weighted-Shift")
    known = json.loads((result.folder / "manifest.json").read_text())
    assert [*known["own_code"]] == ["tests/own_parts.py"]
    assert load(result.folder / "config.yaml").byzantine.attack.z == 1.5
    header = (result.folder / "metrics.csv").read_text().splitlines()[0]
    assert ",loss,Recall_share,Recall_of,update_norm" in header
    assert [*json.loads((result.folder / "result.json").read_text())["metrics"]] == [
        "Recall_share",
        "Recall_of",
    ]
