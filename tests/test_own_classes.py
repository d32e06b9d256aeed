"""Classes and functions of the user in the place of registered names."""

import pickle

import pytest
import torch

from varangian.aggregators import MIXINGS, RULES
from varangian.own_classes import replaced, shown
from varangian.registry import ConfigError
from varangian.worker.attacks import ATTACKS
from varangian.worker.data.partition import PARTITIONS
from varangian.worker.training.metrics import METRICS


@pytest.mark.parametrize(
    ("registry", "spec"),
    [
        (RULES, {"tests.own_parts:TrimmedSum": {"k": 3}}),
        (RULES, {"tests.own_parts:Weighted": {"f": 1, "scale": 2.0, "labels": [3]}}),
        (RULES, {"tests.own_parts:trimmed": {"f": 1, "power": 1}}),
        (MIXINGS, {"tests.own_parts:Doubled": {"factor": 3.0}}),
        (ATTACKS, {"tests.own_parts:Shift": {"z": 1.0}}),
        (ATTACKS, {"tests.own_parts:flip": {"scale": 2.0}}),
        (ATTACKS, {"tests.own_parts:aimed": {"target": 3, "options": "all", "function": 1.0}}),
        (ATTACKS, {"tests.own_parts:Relabel": {}}),
        (PARTITIONS, {"tests.own_parts:Skewed": {"keep": 4}}),
        (PARTITIONS, {"tests.own_parts:one_for_all": {}}),
        (METRICS, {"tests.own_parts:Recall": {"label": 3}}),
    ],
)
def test_what_is_built_is_written_again_and_reaches_other_processes(registry, spec):
    built = registry.build(spec, "here", {"f": 1})
    assert registry.spec(built) == registry.spec(pickle.loads(pickle.dumps(built))) == spec
    assert [*registry.spec(registry.build(spec, "here"))] == [registry.name(built)] == [*spec]


@pytest.mark.parametrize(
    ("registry", "spec", "said"),
    [
        (
            RULES,
            {"tests.own_parts:TrimmedSum": {"k": 1, "kk": 3}},
            "here.tests.own_parts:TrimmedSum.kk: there is no such field",
        ),
        (
            RULES,
            "tests.own_parts:TrimmedSum",
            "here.tests.own_parts:TrimmedSum.k: is required (an integer).",
        ),
        (RULES, {"tests.own_parts:TrimmedSum": {"k": 3.0}}, "should be an integer. Found 3.0."),
        (RULES, {"tests.own_parts:TrimmedSum": {"k": 0}}, "`k` should be at least 1. Found 0."),
        (RULES, {"tests.own_parts:Weighted": {"scal": 1}}, "Found 1. Did you mean 'scale'?"),
        (RULES, {"tests.own_parts:Weighted": {"scale": "1"}}, "scale: should be a number. Found '1'."),
        (RULES, {"tests.own_parts:trimmed": {"power": 1.5}}, "power: should be an integer. Found 1.5."),
        (RULES, {"tests.own_parts:Forgetful": {"k": 1}}, "should keep `k` as an attribute of this name"),
        (RULES, "tests.own_parts:Loose", "'Loose' should name each of its settings. Found **options"),
        (
            RULES,
            "tests.own_parts:Nothing",
            "lacks `requires(n, f)`, which returns why its guarantee does not hold",
        ),
        (RULES, "tests.own_parts:Nothing", "`aggregate(rows)`, `columnwise(block)` or `__call__(gram)`"),
        (
            RULES,
            "tests.own_parts:Doubled",
            "is a mixing, a step before a rule: write tests.own_parts:Doubled+trimmed",
        ),
        (RULES, "tests.own_parts:of_nothing", "is called with (rows), which it does not take"),
        (
            RULES,
            "tests.own_parts:TrimedSum",
            "tests.own_parts has no 'TrimedSum'. Did you mean 'TrimmedSum'?",
        ),
        (RULES, "tests.own_parts:PARTS.x", "tests.own_parts has no 'PARTS'"),
        (RULES, "no_such_file:Rule", "ModuleNotFoundError: No module named 'no_such_file'"),
        (
            RULES,
            "tests.own_parts.TrimmedSum",
            "A class of your own is written as 'tests.own_parts:TrimmedSum'.",
        ),
        (RULES, "tests.own_parts:Made", "should be found under its own name"),
        (MIXINGS, "tests.own_parts:TrimmedSum", "It lacks `mix(gram, rng)`"),
        (
            MIXINGS,
            "tests.own_parts:trimmed",
            "'tests.own_parts:trimmed' should be a class. Found function.",
        ),
        (ATTACKS, "tests.own_parts:Nothing", "It lacks `__call__(own, knows)`"),
        (ATTACKS, "tests.own_parts:Blind", "should say what it must see, as `needs: ClassVar"),
        (PARTITIONS, "tests.own_parts:Nothing", "It lacks `split(labels, workers, seed)`"),
        (METRICS, "tests.own_parts:Nothing", "It lacks `__call__(outputs, targets)`"),
    ],
)
def test_what_does_not_fit_is_one_problem(registry, spec, said):
    with pytest.raises(ConfigError) as found:
        registry.build(spec, "here", {"f": 1})
    assert said in str(found.value)
    assert len(found.value.problems) == 1


def test_an_object_of_a_class_without_a_name_is_no_part_of_a_configuration():
    class Local:
        def requires(self, n, f):
            return None

    with pytest.raises(KeyError):
        RULES.spec(Local())


def test_settings_are_replaced_and_shown_of_any_class():
    weighted = RULES.build("tests.own_parts:Weighted", "", {"f": 3})
    assert RULES.spec(replaced(weighted, f=1)) == {
        "tests.own_parts:Weighted": {"f": 1, "scale": 1.0, "labels": [1, 2]}
    }
    assert shown(weighted) == "Weighted(f=3, scale=1.0, labels=[1, 2])"
    assert shown(RULES.build({"tests.own_parts:trimmed": {"f": 2}}, "")) == "trimmed(f=2, power=1)"
    assert replaced(RULES.build({"tests.own_parts:trimmed": {"f": 2}}, ""), f=1).aggregate(
        torch.eye(3)
    ).shape == (3,)
