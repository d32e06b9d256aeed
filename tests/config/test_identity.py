"""The identity of a run."""

import pytest

from varangian.config import load
from varangian.config.identity import has_effect, identity_of, run_id, with_effect


@pytest.mark.parametrize(
    "setting",
    [
        "output=elsewhere",
        "server.port=5000",
        "server.tls=true",
        "server.checkpoint=null",
        "server.checkpoint.every=7",
        "server.keep_rows=10",
        "server.absent_after=60",
        "server.stop_grace=0",
        "server.deadline_floor=1",
        "worker.patience=9",
        "worker.state=null",
        "f=3",
    ],
)
def test_where_a_run_takes_place_is_no_part_of_its_identity(setting):
    assert run_id(load(None, [setting])) == run_id(load())


NEEDED = {"server.gate={}": ["evaluate.validation=0.1"]}
"""Without which a setting cannot be."""


@pytest.mark.parametrize(
    "setting",
    [
        "seed=2",
        "optimizer.lr=0.5",
        "backend=simulate",
        "worker.threads=2",
        "f=2",
        "aggregator.per_block=true",
        "server.deadline=auto",
        "server.gate={}",
    ],
)
def test_what_changes_numbers_changes_the_identity(setting):
    needed = NEEDED.get(setting, [])
    assert run_id(load(None, [setting, *needed])) != run_id(load(None, needed))


def test_the_limits_of_a_deadline_count_where_it_sets_itself():
    own = ["server.deadline=auto", "server.deadline_floor=1"]
    assert run_id(load(None, own)) != run_id(load(None, own[:1]))


def test_identities_are_those_of_earlier_versions():
    """A new setting changes them, unless it is left out at its default: sweeps would begin anew."""
    assert run_id(load(None, ["worker.inner=adamw"])) != run_id(load(None, ["worker.momentum=0"]))
    assert run_id(load()) == "b7c0ca367645ebbd"
    partial = ["backend=simulate", "participation.fedavg.participants=8"]
    assert run_id(load(None, partial)) == "42d94aa06acde746"


def test_settings_without_an_effect_may_be_missing():
    resolved = load().resolved()
    assert identity_of(with_effect(resolved)) == identity_of(resolved)
    assert with_effect({"seed": 1}) == {"seed": 1}
    assert not has_effect("server.checkpoint.every")
    assert has_effect("server.deadline")
    assert has_effect("server.checkpointing")


def test_two_ways_to_write_a_setting_have_one_identity():
    written = "aggregator={mix: [{nnm: {f: 3}}], rule: {krum: {f: 3}}}"
    assert run_id(load(None, [written])) == run_id(load(None, ["aggregator=nnm+krum"]))
    assert run_id(load(None, ["aggregator.per_block=false"])) == run_id(load())
    assert run_id(load(None, ["server.deadline=60"])) == run_id(load())
    assert len(run_id(load())) == 16
