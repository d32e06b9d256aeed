"""Specifications as a user writes them, what comes of them, and back."""

import re
from dataclasses import dataclass

import pytest
import yaml
from tests.aggregators import kit
from torch import Tensor

from varangian.aggregators import (
    ARC,
    CAF,
    MIXINGS,
    NNM,
    RULES,
    Aggregator,
    Bucketing,
    Gram,
    Krum,
    Mean,
    Median,
    aggregator_from,
    spec_of,
)
from varangian.registry import ConfigError


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("median", Aggregator(Median(), f=2)),
        ("krum", Aggregator(Krum(f=2), f=2)),
        ({"krum": None}, Aggregator(Krum(f=2), f=2)),
        ({"krum": {"select": 3}}, Aggregator(Krum(f=2, select=3), f=2)),
        ({"krum": {"f": 4}}, Aggregator(Krum(f=4), f=2)),
        ("multi_krum", Aggregator(Krum(f=2, select="max"), f=2)),
        ({"rule": "mean"}, Aggregator(Mean(), f=2)),
        ({"mix": [], "rule": "mean"}, Aggregator(Mean(), f=2)),
        ({"rule": "krum", "per_block": False}, Aggregator(Krum(f=2), f=2)),
        ({"rule": "krum", "per_block": True}, Aggregator(Krum(f=2), f=2, per_block=True)),
        ({"rule": "nnm+krum", "per_block": True}, Aggregator(Krum(f=2), (NNM(f=2),), 2, per_block=True)),
        (
            {"mix": ["nnm", {"bucketing": {"s": 3}}], "rule": {"krum": {"select": 1}}},
            Aggregator(Krum(f=2), (NNM(f=2), Bucketing(s=3)), f=2),
        ),
    ],
)
def test_read(spec: object, wanted: Aggregator) -> None:
    assert aggregator_from(spec, "aggregator", f=2) == wanted


@pytest.mark.parametrize("f", [0, 2])
@pytest.mark.parametrize(
    ("spec", "before"),
    [
        ("default", ()),
        ({"rule": "default"}, ()),
        ("bucketing + default", (Bucketing(),)),
        ({"mix": ["bucketing"], "rule": "default"}, (Bucketing(),)),
    ],
)
def test_a_combination_is_its_parts(spec: object, before: tuple[Bucketing, ...], f: int) -> None:
    built = aggregator_from(spec, "aggregator", f=f)
    assert built == Aggregator(CAF(f=f), (*before, ARC(f=f)), f=f)
    assert "default" not in str(spec_of(built))
    assert built.requires(15) is None


def problems(spec: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        aggregator_from(spec, "aggregator", f=2)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("spec", "sentences"),
    [
        ("krun", ["aggregator: there is no aggregator of this name. Found 'krun'. Did you mean 'krum'?"]),
        (
            {"krum": {"F": 3}},
            ["aggregator.krum.F: there is no such field. Found 3. Did you mean 'f'?"],
        ),
        (
            "nnm",
            [
                "aggregator: should be a rule, or mixings and then a rule, joined by +. Found 'nnm'. "
                "'nnm' is a mixing, a step before a rule: write nnm+trimmed_mean."
            ],
        ),
        (
            "nnm+krun",
            ["aggregator: there is no aggregator of this name. Found 'krun'. Did you mean 'krum'?"],
        ),
        ("nmn+krum", ["aggregator: there is no mixing of this name. Found 'nmn'. Did you mean 'nnm'?"]),
        (
            {"mix": ["median"], "rule": "mean"},
            [
                "aggregator.mix.0: there is no mixing of this name. Found 'median'. "
                "'median' is a rule, and stands after `rule`."
            ],
        ),
        (
            {"mix": "nnm", "rule": "mean"},
            ["aggregator.mix: should be a list of mixings. Found 'nnm'. Put it in brackets."],
        ),
        (
            {"per_block": True},
            [
                "aggregator.rule: is required (the aggregator after the mixings). "
                f"Known: {', '.join(RULES)}."
            ],
        ),
        (
            {"rule": "krum", "per_block": "yes"},
            ["aggregator.per_block: should be true or false. Found 'yes'."],
        ),
        (
            {"krum": {"per_block": True}},
            ["aggregator.krum.per_block: there is no such field. Found True. It stands beside `rule`: "
                "write {rule: krum, per_block: true}."],
        ),
        (
            {"centered_clipping": {"tau": -1}},
            ["aggregator.centered_clipping: `tau` should be positive and finite. Found -1.0."],
        ),
    ],
)  # fmt: skip
def test_refused(spec: object, sentences: list[str]) -> None:
    assert problems(spec) == sentences


@pytest.mark.parametrize(
    ("spec", "better"),
    [
        ("nnm", "nnm+trimmed_mean"),
        ("bucketing + nnm", "bucketing+nnm+trimmed_mean"),
        ("krum+nnm", "nnm+krum"),
        ("nnm+", "nnm+trimmed_mean"),
        ("+krum", "krum"),
        ("krum, nnm", "nnm+krum"),
        (["krum", "nnm"], "nnm+krum"),
        ({"mix": ["nnm"], "rule": "bucketing"}, "bucketing+trimmed_mean"),
        ({"nnm": {"f": 2}}, "{mix: [nnm], rule: trimmed_mean}"),
        ("krum+median", None),
    ],
)
def test_what_is_suggested_is_an_aggregator(spec: object, better: str | None) -> None:
    (sentence,) = problems(spec)
    assert better is None or sentence.endswith(f"write {better}.")
    found = re.search(r"write (.*)\.$", sentence)
    assert (found is None) is (better is None)
    if found is not None:
        aggregator_from(yaml.safe_load(found[1]), "aggregator", f=1)


# clipping has a field without default
@pytest.mark.parametrize(
    "mixings", [[], *([name] for name in MIXINGS if name != "clipping"), ["arc", "nnm"]]
)
@pytest.mark.parametrize("rule", ["krum", "median"])
def test_names_joined_by_plus_are_mixings_and_a_rule(mixings: list[str], rule: str) -> None:
    wanted = aggregator_from({"mix": mixings, "rule": rule}, "aggregator", f=2)
    spec = "+".join([*mixings, rule])
    for written in (spec, spec.replace("+", " + "), {"rule": spec}, {"mix": [], "rule": spec}):
        assert aggregator_from(written, "aggregator", f=2) == wanted
    if mixings:
        behind = {"mix": mixings[:1], "rule": "+".join([*mixings[1:], rule])}
        assert aggregator_from(behind, "aggregator", f=2) == wanted


def test_rule_is_required() -> None:
    (sentence,) = problems({"mix": ["nnm"]})
    assert sentence.startswith("aggregator.rule: is required (the aggregator after the mixings). Known: ")


def test_all_problems_at_once() -> None:
    spec = {
        "mix": ["nmn", {"bucketing": {"s": "two"}}, {"clipping": {}}],
        "rule": {"krum": {"select": 1.5, "k": 1}},
        "rules": 1,
    }
    paths = [sentence.split(":")[0] for sentence in problems(spec)]
    assert paths == [
        "aggregator.rules",
        "aggregator.mix.0",
        "aggregator.mix.1.bucketing.s",
        "aggregator.mix.2.clipping.radius",
        "aggregator.rule.krum.k",
        "aggregator.rule.krum.select",
    ]


@pytest.mark.parametrize(
    "spec", [None, 3, [], {}, ["krum"], {"krum": {}, "mean": {}}, {1: {}}, {"krum": 3}]
)
def test_nonsense(spec: object) -> None:
    assert len(problems(spec)) == 1


@pytest.mark.parametrize("name", kit.specs())
def test_there_and_back(name: str) -> None:
    aggregator = aggregator_from(kit.specs()[name], "aggregator", f=kit.F)
    assert aggregator_from(spec_of(aggregator), "aggregator", f=kit.F) == aggregator


def test_back_with_every_field_and_the_name_that_says_most() -> None:
    assert spec_of(Aggregator(Krum(f=2, select="max"))) == {
        "multi_krum": {"f": 2, "select": "max", "convention": "paper"}
    }
    assert spec_of(Aggregator(Median(), (Bucketing(),))) == {
        "mix": [{"bucketing": {"s": 2}}],
        "rule": {"median": {"convention": "midpoint"}},
    }


def test_rule_without_a_name_cannot_be_written_down() -> None:
    @dataclass(frozen=True)
    class Mine:
        def requires(self, n: int, f: int) -> None: ...
        def __call__(self, gram: Gram) -> Tensor: ...

    with pytest.raises(KeyError, match="is not a registered aggregator"):
        spec_of(Aggregator(Mine()))


@pytest.mark.parametrize("registry", [RULES, MIXINGS], ids=["rules", "mixings"])
def test_every_name_has_a_summary(registry: object) -> None:
    assert isinstance(registry, type(RULES))
    for name in registry:
        assert registry.summary(name).endswith("."), name


@pytest.mark.parametrize("spec", ["krum", "nnm+krum", "median"])
def test_blocks_are_written_only_where_they_are_asked_for(spec: str) -> None:
    whole = aggregator_from(spec, "aggregator", f=2)
    split = aggregator_from({"rule": spec, "per_block": True}, "aggregator", f=2)
    assert "per_block" not in spec_of(whole)
    assert spec_of(split)["per_block"] is True
    for built in (whole, split):
        assert aggregator_from(spec_of(built), "aggregator", f=2) == built
