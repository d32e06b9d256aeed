"""Code of the user in settings: forms, paths, the schema, and objects that a program gives."""

import json

import pytest
from tests.config.kit import accepted, problems
from tests.own_parts import Shift, TrimmedSum, Weighted

from varangian.aggregators import Krum
from varangian.config import RunConfig, load, loads
from varangian.registry import ConfigError


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregator": {"tests.own_parts:TrimmedSum": {"k": 3}}},
        {"aggregator": "tests.own_parts:trimmed"},
        {"aggregator": "nnm+tests.own_parts:Doubled+tests.own_parts:trimmed"},
        {"aggregator": {"mix": [{"tests.own_parts:Doubled": None}], "rule": "krum"}},
        {"aggregator": {"fedavg": {"rule": "tests.own_parts:trimmed"}}},
        {"partition": {"tests.own_parts:Skewed": {"keep": 3}}},
        {"byzantine": {"count": 1, "attack": "tests.own_parts:flip"}},
        {"metrics": ["accuracy", "tests.own_parts:low", {"tests.own_parts:Recall": {"label": 1}}]},
        {"model": {"tests.own_parts:make": {}}, "loss": "tests.own_parts:make"},
    ],
)
def test_forms_that_load_are_in_the_schema_and_load_again(settings):
    resolved = loads(settings).resolved()
    assert loads(json.loads(json.dumps(resolved))).resolved() == resolved
    assert accepted().accepts(settings)
    assert accepted().accepts(json.loads(json.dumps(resolved)))


def test_the_schema_refuses_what_is_no_name():
    for aggregator in ("tests.own_parts", "a:", {"a:B": {}, "c:D": {}}, {"a:B": 3}):
        assert not accepted().accepts({"aggregator": aggregator})


def test_a_function_with_options_is_the_custom_of_its_kind():
    config = loads({"model": {"a:b": {"depth": 3}}, "metrics": [{"a:c": {"beta": 2}}]})
    assert config.model.options == {"depth": 3}
    assert config.resolved()["metrics"] == [
        {"custom": {"target": "a:c", "options": {"beta": 2}, "name": None}}
    ]


def test_paths_lead_through_a_name_with_dots():
    config = load(
        None,
        [
            "aggregator.tests.own_parts:TrimmedSum.k=3",
            *("byzantine.count=1", "byzantine.attack.tests.own_parts:Shift.z=1"),
            "partition.tests.own_parts:Skewed.keep=7",
            "model.a.b:c.depth=2",
        ],
    )
    assert (config.aggregator.rule, config.byzantine.attack) == (TrimmedSum(k=3), Shift(z=1.0))
    assert (config.partition.keep, config.model.options) == (7, {"depth": 2})
    mixed = load(None, ["aggregator=nnm+krum", "aggregator.rule.tests.own_parts:TrimmedSum.k=4"])
    assert mixed.aggregator.rule == TrimmedSum(k=4)
    found = problems("aggregator.tests.own_parts:TrimmedSum.kk=3")
    assert "there is no such field. Found 3" in found["aggregator.tests.own_parts:TrimmedSum.kk"]


def test_a_program_may_give_objects():
    config = RunConfig(aggregator=TrimmedSum(k=3), byzantine={"count": 1, "attack": Shift()})
    assert config.aggregator.f == 3
    assert loads(config.resolved()) == config
    assert RunConfig(aggregator=Krum(f=3)).resolved() == RunConfig(aggregator="krum").resolved()
    weighted = RunConfig(aggregator=Weighted(f=2)).resolved()
    assert weighted["aggregator"] == {"tests.own_parts:Weighted": {"f": 2, "scale": 1.0, "labels": [1, 2]}}


def test_an_object_that_cannot_be_found_again_is_refused():
    class Local:
        def requires(self, n, f):
            return None

        def columnwise(self, block):
            return block[0]

    with pytest.raises(ValueError, match="found as module:Class, at the top of a module"):
        RunConfig(aggregator=Local())


@pytest.mark.parametrize("path", ["evaluation.metrics", "evaluate.metrics"])
def test_the_setting_of_metrics_is_named(path):
    assert "Did you mean 'metrics'?" in "".join(problems(f"{path}=[accuracy]").values())


def test_what_fails_in_a_class_of_the_user_is_a_problem():
    with pytest.raises(ConfigError, match="should have the methods of an attack"):
        load(None, ["byzantine={count: 1, attack: 'tests.own_parts:Nothing'}"])
