"""Weights of workers in a configuration: forms, the cap, and the conditions of rules."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.config.kit import accepted, problems
from tests.extent import examples

from varangian.aggregators.numeric.shares import WeightCap, least_favourable
from varangian.config import load, loads
from varangian.config.build import condition, policy
from varangian.config.checks.weights import weight_sentence
from varangian.launch.checkpoints.changes import changes, refused
from varangian.launch.membership.changed_settings import change_of, with_members

SIZES = {"w00": 190.0, "w01": 4200, "w02": 9300, "w03": 12010, "w04": 15222, "w05": 17834}
SIX = ("workers=6", "f=1", "aggregator=nnm+trimmed_mean")


def weighed(*overrides, weights=SIZES):
    text = ", ".join(f"{name}: {weight}" for name, weight in weights.items())
    return load(None, [*SIX, f"weights={{{text}}}", *overrides])


def test_numbers_by_worker():
    config = weighed()
    assert config.worker_weights == SIZES
    assert loads(config.resolved()) == config
    assert accepted().accepts(config.resolved())
    assert load(None, SIX).worker_weights is None


@pytest.mark.parametrize("name", ["sizes.yaml", "sizes.json"])
def test_a_file(tmp_path, name):
    path = tmp_path / name
    text = "".join(f"{name}: {size}\n" for name, size in SIZES.items())
    path.write_text(text if name.endswith("yaml") else str(SIZES).replace("'", '"'))
    assert load(None, [*SIX, f"weights={path}"]).weights == SIZES


@pytest.mark.parametrize(
    ("settings", "path", "said"),
    [
        (["weights={w00: 0}"], "weights.w00", "should be positive and finite"),
        (["weights={w00: many}"], "weights.w00", "should be a positive number"),
        (["weights={w00: true}"], "weights.w00", "should be a positive number"),
        (["weights={'': 3}"], "weights", "should have names of workers"),
        (["weights=7"], "weights", "a mapping from workers to weights, a file with one, or samples"),
        (["weights=no/such/file"], "weights", "no such file"),
        (["weights={w00: 1, w01: 2, v02: 3}"], "weights", "w02, w03, w04, w05 missing"),
        (["weights={w00: 1, w01: 2, v02: 3}"], "weights", "'v02', which is no worker"),
        (["weights_cap.alpha_star=0.4"], "weights_cap", "truncates `weights`, and there are none"),
        (["weights=samples"], "weights", "with partition=shared, which deals no samples"),
        (
            ["weights=samples", "partition=iid", "aggregator=meamed"],
            "aggregator",
            "MeaMed(f=1): it has no form for rows of unequal weight",
        ),
    ],
)
def test_what_is_wrong_is_said(settings, path, said):
    assert said in problems(*SIX, *settings)[path]


def test_weights_that_break_the_promise_of_the_rule():
    heavy = {**SIZES, "w05": 90000}
    text = ", ".join(f"{name}: {size}" for name, size in heavy.items())
    found = problems(*SIX, f"weights={{{text}}}")["aggregator"]
    assert "the f = 1 heaviest may have" in found
    assert "Without weights it would hold; `weights_cap`" in found
    assert weighed("weights_cap.alpha_star=0.4", weights=heavy).worker_weights["w05"] < 90000


@pytest.mark.parametrize(
    ("settings", "path", "said"),
    [
        (["weights_cap.alpha_star=0.1"], "weights_cap.alpha_star", "at least 1 / 6 = 0.167"),
        (["weights_cap={alpha: 0.5, alpha_star: 0.4}"], "weights_cap.alpha_star", "at least 3 / 6"),
        (["weights_cap.alpha_star=0.5"], "weights_cap", "below 1/2"),
        (["weights_cap={alpha: 1, alpha_star: 0.4}"], "weights_cap", "`alpha` should be between"),
        (["weights_cap={}"], "weights_cap.alpha_star", "is required"),
        (["aggregator=bulyan", "f=0"], "aggregator", "no form for rows of unequal weight"),
        (["aggregator=bulyan", "f=0"], "aggregator", "Weights are taken by caf, centered_clipping"),
        (
            ["participation={fedlaavg: {form: delta}}", "aggregator=mean", "f=0"],
            "weights",
            "of deltas only their sum is kept",
        ),
    ],
)
def test_settings_that_weights_cannot_go_with(settings, path, said):
    text = ", ".join(f"{name}: {size}" for name, size in SIZES.items())
    assert said in problems(*SIX, f"weights={{{text}}}", *settings)[path]


def test_the_quorum_is_as_many_as_the_weights_ask_for():
    assert load(None, SIX).quorum == 5
    # Of five rows the heaviest may have 17834 of 42934 without the second heaviest: 0.42.
    assert weighed().quorum == 5
    # Of five, 24000 of 49100 would be 0.49, and Krum needs 2 B + max p < 1.
    assert weighed(weights={**SIZES, "w05": 19000}).quorum == 5
    assert weighed("aggregator=krum", "weights_cap.alpha_star=0.25").quorum == 6


def test_a_round_closes_when_the_weights_of_its_rows_meet_the_condition():
    requires = condition(weighed("server.quorum=5"))
    names = sorted(SIZES)
    assert requires(names, ()) is None
    assert "the f = 1 heaviest may have" in requires(["w00", "w01", "w05"], ())
    # A heavy row that is proved invalid spends its own weight, and a light one little.
    assert requires(["w00", "w01", "w02", "w05"], ["w03"]) is None
    assert "those that were not found invalid may have 0.563" in requires(["w01", "w02", "w05"], ["w00"])
    assert policy(weighed()).requires(names[:5], ()) is None


def test_every_way_to_take_part_names_its_rows():
    for way in ("async", "fedavg={participants: 5}", "fedlaavg", "asap"):
        form = f"participation={way}" if "=" not in way else f"participation={{{way.replace('=', ': ')}}}"
        more = ["aggregator=mean", "f=0"] if way == "asap" else []
        config = weighed(form, *more)
        assert condition(config)(sorted(SIZES)[1:], ()) is None


def test_a_new_worker_has_the_least_weight():
    config = with_members(weighed(), [*SIZES, "alice"], 1)
    assert config.worker_weights["alice"] == 190
    assert change_of(config, {}, (), ()).weights == {**SIZES, "alice": 190}
    smaller = with_members(config, sorted(SIZES)[:-1], 1)
    assert sorted(smaller.worker_weights) == sorted(SIZES)[:-1]


def test_a_run_that_goes_on_keeps_its_weights():
    other = weighed(weights={**SIZES, "w01": 4300})
    (change,) = refused(changes(weighed(), other), other)
    assert str(change) == "weights.w01 was 4200.0 and is 4300.0"


def test_what_the_heaviest_weigh_is_said():
    assert weight_sentence(load(None, SIX)) is None
    assert weight_sentence(weighed()) == (
        "weights from 190 to 17834; the f = 1 heaviest (w05) have 0.304 of the weight"
    )
    assert weight_sentence(weighed("weights_cap.alpha_star=0.25")).endswith(
        "the f = 1 heaviest (w04) have 0.25 of the weight; 2 truncated at 12850"
    )


@settings(max_examples=examples(200), deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 1000) | st.floats(0.5, 50), min_size=2, max_size=12),
    st.floats(0.05, 0.9),
    st.floats(0.05, 0.49),
)
def test_the_cap_is_the_largest_that_keeps_the_heaviest_down(weights, alpha, alpha_star):
    cap = WeightCap(alpha=alpha, alpha_star=alpha_star)
    k = cap.counted(len(weights), 0)

    def share(most):
        cut = sorted((min(weight, most) for weight in weights), reverse=True)
        return sum(cut[:k]) / sum(cut)

    most = cap.bound(weights, 0)
    if most is None:
        assert k / len(weights) > alpha_star
        return
    assert share(most) <= alpha_star + 1e-9
    assert most == max(weights) or share(most * (1 + 1e-6)) > alpha_star
    assert cap.capped(weights, 0) == tuple(min(most, weight) for weight in weights)


def test_least_favourable_rows():
    assert sorted(least_favourable([5, 1, 4, 2, 3], 3, 1)) == [1, 2, 5]
    assert sorted(least_favourable([5, 1, 4, 2, 3], 3, 2)) == [1, 4, 5]
    assert sorted(least_favourable([5, 1, 4, 2, 3], 2, 3)) == [4, 5]
    assert sorted(least_favourable([5, 1, 4, 2, 3], 5, 0)) == [1, 2, 3, 4, 5]
