"""Advice names the rule with the best worst case that was measured, and says what it does not know."""

import importlib.util
import json
import pathlib

import pytest

import varangian
from varangian.aggregators import Aggregator
from varangian.config import load
from varangian.experiments.advice.advice import advise
from varangian.experiments.advice.choice import choose, nearest
from varangian.experiments.advice.evidence import Table, costs, evidence, skew_of
from varangian.experiments.advice.question import ask
from varangian.registry import ConfigError

ROOT = pathlib.Path(__file__).parents[3]
SKEWED = {"dirichlet": {"alpha": 0.1}}


def table(rows, **fields):
    """A table of rules by name, each with its accuracy under every attack."""
    plain = {
        "name": "made",
        "command": "varangian sweep made.yaml",
        "seeds": 2,
        "rounds": 100,
        "clean": 0.97,
    }
    plain |= {
        "n": 15,
        "f": 3,
        "partition": "iid",
        "momentum": 0.9,
        "data": "digits",
        "model": "mlp",
        **fields,
    }
    return Table.of(
        {**plain, "rows": [{"aggregator": k, "clean": 0.96, "attacks": v} for k, v in rows.items()]}
    )


MADE = [
    table(
        {
            "mean": {"alie": 0.95, "sign_flip": 0.1, "label_flip": 0.94},
            "krum": {"alie": 0.90, "sign_flip": 0.91, "label_flip": 0.9},
            "median": {"alie": 0.85, "sign_flip": 0.95, "label_flip": 0.92},
        },
        name="iid",
    ),
    table(
        {
            "mean": {"alie": 0.3, "sign_flip": 0.1, "label_flip": 0.9},
            "krum": {"alie": 0.2, "sign_flip": 0.3, "label_flip": 0.4},
            "median": {"alie": 0.5, "sign_flip": 0.6, "label_flip": 0.7},
        },
        name="skewed",
        partition=SKEWED,
    ),
    table({"krum": {"alie": 0.6}}, name="declared too many", declared=6),
    table({"krum": {"alie": 0.7}, "median": {"alie": 0.65}}, name="without momentum", momentum=0.0),
]


def advice(*, threat="any", declared=None, tables=MADE, **settings):
    question = ask({"workers": 15, "f": 3, **settings}, declared=declared, threat=threat)
    return advise(question, tables)


def said(found):
    return " ".join(str(found).split())


@pytest.mark.parametrize(
    ("settings", "rule", "worst"),
    [
        ({"partition": "iid"}, "krum", (0.90, "alie")),
        ({"partition": SKEWED}, "median", (0.5, "alie")),
        ({}, "median", (0.85, "alie")),  # 5 points behind in one setting; krum is 30 behind in the other
    ],
)
def test_the_best_worst_case_of_the_nearest_settings_decides(settings, rule, worst):
    found = advice(**settings)
    assert found.aggregator == rule
    assert found.settings == (f"aggregator={rule}", "worker.momentum=0.9", "workers=15", "f=3")
    first = found.measured[0]
    assert (first["worst"], first["worst_attack"]) == worst
    load(None, [*found.settings])  # it can be pasted


def test_a_rule_that_the_run_cannot_use_is_named_with_the_reason():
    found = advice(partition="iid", workers=7)
    assert found.aggregator == "median"
    assert "krum would be as good or better, but: " in said(found)
    assert "f/n = 0.20, not 0.43 (iid: f = 3, iid)" in said(found)
    assert "close to the limit of 2 f + 1 = 7" in said(found)


def test_weights_of_workers_are_asked_too():
    weights = {f"w{i:02}": 1.0 + i for i in range(15)}
    found = advice(partition="iid", weights=weights)
    budget = (13 + 14 + 15) / 120
    assert found.aggregator == "krum"
    assert "measured with workers of equal weight" in said(found)
    assert f"coefficient kappa for the weight B = {budget:.3g} of the 3 heaviest" in said(found)
    config = load(None, [*found.settings])
    wanted = config.aggregator.kappa(15, 3, [*weights.values()])
    assert f"at most {wanted:.3g} times" in said(found)
    assert "measured with workers of equal weight" not in said(advice(partition="iid"))


def test_rules_that_take_no_weights_or_lose_by_them_are_not_advised():
    made = [table({"bulyan": {"alie": 0.9}, "arc+caf": {"alie": 0.9}, "median": {"alie": 0.8}})]
    assert advice(tables=made).aggregator in ("bulyan", "arc+caf")
    for weights in ({f"w{i:02}": 1.0 + i for i in range(15)}, "samples"):
        found = advice(tables=made, weights=weights, partition="iid")
        assert found.aggregator == "median"
        assert "it has no form for rows of unequal weight" in said(found)
        assert "arc+caf would be as good or better, but: with weights it gives up" in said(found)
    assert "depends on the weights, which are not known here" in said(found)


@pytest.mark.parametrize(("name", "loses"), [("unit_mean", True), ("nnm+trimmed_mean", False)])
def test_a_rule_that_a_heavy_worker_moves_is_advised_with_a_word_about_it(name, loses):
    made = [table({name: {"alie": 0.9}, "median": {"alie": 0.8}})]
    found = advice(tables=made, weights="samples", partition="iid")
    assert found.aggregator == name
    assert ("heaviest workers flipped the sign" in said(found)) == loses
    assert "heaviest workers flipped" not in said(advice(tables=made, partition="iid"))


def test_the_mean_is_advised_against_wrong_labels_alone_where_it_wins():
    found = advice(partition=SKEWED, threat="labels")
    assert found.aggregator == "mean"
    assert "one chooses the result" in said(found)
    assert "mean 90.0 %, median 70.0 %" in said(advice(partition=SKEWED))


def test_without_attackers_it_is_the_mean():
    assert advice(f=0).aggregator == "mean"


def test_rules_that_seeds_do_not_tell_apart_are_decided_by_what_is_proven():
    near = table({"unit_mean": {"alie": 0.903}, "krum": {"alie": 0.90}, "median": {"alie": 0.8}})
    choice = choose(ask({"partition": "iid"}), [near])
    assert choice.best.aggregator == "krum"
    assert [one.aggregator for one in choice.equal] == ["unit_mean"]


def test_of_tables_of_one_setting_the_one_with_most_attacks_counts():
    few = table({"krum": {"alie": 0.9}, "median": {"alie": 0.8}})
    many = table({"krum": {"alie": 0.9, "ipm": 0.5}, "median": {"alie": 0.8, "ipm": 0.8}})
    for tables in ([few, many], [many, few]):
        assert choose(ask({"partition": "iid"}), tables).best.aggregator == "median"


def test_declaring_too_many_costs_what_theory_and_measurements_say():
    text = said(advice(partition="iid", declared=6))
    assert "f=6 where 3 attack: the error may be 3.0 times as large" in text  # 6 / 6 against 3 / 9
    assert "worst case 90.0 % with f=3, and 60.0 % with f=6" in text
    assert "the guarantee is void" in said(advice(partition="iid", declared=2))


def test_what_momentum_changes_is_said_where_both_were_measured():
    text = said(advice(partition="iid"))
    assert "worker.momentum=0 in place of 0.9: worst case 70.0 %, alie, in place of 90.0 %" in text
    assert advice(partition="iid", worker={"momentum": 0.0}).aggregator == "krum"


def test_a_rule_of_the_configuration_is_compared():
    assert "Your rule, median, has 85.0 % in its worst case, alie" in said(
        advice(partition="iid", aggregator="median")
    )
    assert "Your rule, krum, is the one advised" in said(advice(partition="iid", aggregator="krum"))
    assert "Your rule was not measured there" in said(advice(partition="iid", aggregator="flag"))
    impossible = advice(partition="iid", workers=7, aggregator="krum")
    assert "Your rule cannot be used: " in said(impossible)


def test_without_evidence_no_number_is_made_up():
    found = advice(tables=[])
    assert (found.aggregator, found.settings, found.measured) == (None, (), ())
    assert "no rule to advise" in said(found)


@pytest.mark.parametrize(
    ("settings", "more", "path"),
    [
        ({"workers": 6, "f": 3}, {}, "f"),
        ({"f": -1}, {}, "f"),
        ({}, {"declared": 8}, "--declared"),
        ({"partition": "irid"}, {}, "partition"),
        ({"wrokers": 3}, {}, "wrokers"),
        ({"aggregator": "krm"}, {}, "aggregator"),
    ],
)
def test_questions_that_have_no_answer(settings, more, path):
    with pytest.raises(ConfigError) as error:
        ask(settings, **more)
    assert [problem.path for problem in error.value.problems] == [path]


@pytest.mark.parametrize(
    ("partition", "skew"), [("iid", 0), (SKEWED, 1 / 1.1), ("extreme", 1), ("mine:Own", None)]
)
def test_how_different_data_are_as_a_number(partition, skew):
    assert skew_of(partition) == skew


def test_the_evidence_of_the_package_can_be_read_and_its_rules_exist():
    tables = evidence()
    assert tables
    for one in tables:
        for name in one.rows:
            settings = [f"aggregator={name}", f"workers={one.n}", f"f={one.declared}"]
            assert isinstance(load(None, settings).aggregator, Aggregator)
        assert nearest(ask({"workers": one.n, "f": one.f}), tables) or one.all_poisoned


def test_the_costs_of_the_package_are_those_that_were_measured():
    spec = importlib.util.spec_from_file_location("costs", ROOT / "benchmarks/costs.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert costs() == script.costs()


def test_the_command_and_the_function_say_the_same(advised, tmp_path):
    (tmp_path / "run.yaml").write_text("workers: 15\nf: 3\npartition: iid\n")
    code, out, err = advised("run.yaml", "--momentum", "0.9", "-d", "1000000", "--json")
    assert (code, err) == (0, "")
    same = varangian.advise(tmp_path / "run.yaml", parameters=1_000_000, worker__momentum=0.9)
    assert json.loads(out) == json.loads(json.dumps(same.plain()))
    code, out, _ = advised("-n", "15", "-f", "3", "--partition", "iid")
    assert (code, out.splitlines()[0]) == (0, " ".join(same.settings))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-n", "5", "-f", "3"), "f: should be at most 2 for 5 workers"),
        (("--partition", "iid", "--alpha", "1"), "--alpha: belongs to --partition dirichlet"),
        (("--declared", "9"), "--declared: should be at most 7 for 15 workers"),
        (("--alpha", "-1"), "alpha"),
    ],
)
def test_bad_questions_are_one_sentence_each(advised, arguments, sentence):
    code, out, err = advised(*arguments)
    assert (code, out) == (2, "")
    assert sentence in err
