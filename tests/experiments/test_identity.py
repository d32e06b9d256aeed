"""The identity of a run."""

import pytest

from varangian.config import load
from varangian.experiments.identity import run_id


@pytest.mark.parametrize(
    "setting", ["output=elsewhere", "server.port=5000", "server.tls=true", "worker.patience=9", "f=3"]
)
def test_where_a_run_takes_place_is_no_part_of_its_identity(setting):
    assert run_id(load(None, [setting])) == run_id(load())


@pytest.mark.parametrize(
    "setting",
    [
        "seed=2",
        "optimizer.lr=0.5",
        "backend=simulate",
        "worker.threads=2",
        "f=2",
        "aggregator.per_block=true",
    ],
)
def test_what_changes_numbers_changes_the_identity(setting):
    assert run_id(load(None, [setting])) != run_id(load())


def test_two_ways_to_write_a_setting_have_one_identity():
    written = "aggregator={mix: [{nnm: {f: 3}}], rule: {krum: {f: 3}}}"
    assert run_id(load(None, [written])) == run_id(load(None, ["aggregator=nnm+krum"]))
    assert run_id(load(None, ["aggregator.per_block=false"])) == run_id(load())
    assert len(run_id(load())) == 16
