"""Aggregation of models that clients send as arrays by name."""

import json
import math
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from varangian.aggregators import RULES, Aggregator, aggregator_from
from varangian.aggregators.numeric.shares import WeightCap
from varangian.federated import rounds
from varangian.federated.arrays import Layout, median_metrics
from varangian.federated.claims import checked_cap, read_claims
from varangian.federated.models import Models
from varangian.federated.rounds import Round
from varangian.torch import steps


def model(seed=0, wide=False):
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.normal(size=(5, 3)).astype(np.float64 if wide else np.float32),
        "scale": np.asarray(rng.normal(), np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "count": np.array([seed, 9 - seed], np.int64),
        "mask": np.array(seed % 2 == 0),
    }


def flat(arrays):
    return np.concatenate([arrays["weight"].reshape(-1), arrays["scale"].reshape(-1)])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize(
    "rule", ["mean", "nnm+trimmed_mean", "centered_clipping", "{mix: [], rule: krum, per_block: true}"]
)
def test_the_update_is_that_of_the_aggregator(rule, differences, wide):
    spec = {"rule": "krum", "per_block": True} if rule.startswith("{") else rule
    base, clients = model(wide=wide), {str(i): model(i, wide) for i in range(1, 8)}
    layout = Layout.of(base)
    rows = np.stack([flat(one) - (0 if differences else flat(base)) for one in clients.values()])
    wanted = aggregator_from(spec, "aggregator", f=1)(
        torch.tensor(rows.astype(np.float64 if wide else np.float32)), blocks=layout.blocks
    ).vector.numpy()
    arrays, kept = Models(spec, 1).aggregate(1, layout, clients, None if differences else base)
    assert kept == tuple(clients)
    np.testing.assert_allclose(
        flat(arrays) - (0 if differences else flat(base)), wanted, rtol=1e-6, atol=1e-6
    )
    assert {name: (one.shape, one.dtype) for name, one in arrays.items()} == {
        name: (one.shape, one.dtype) for name, one in base.items()
    }
    assert arrays["count"].tolist() == [4, 5]
    assert arrays["mask"] == np.False_


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("weight"), "lacks the array 'weight'"),
        (
            lambda m: m.update(more=m["scale"], x=m["scale"]),
            "array 'more' that was not asked for, and 1 more",
        ),
        (lambda m: m.update(weight=m["weight"].T), r"shape \(5, 3\). Found \(3, 5\)"),
        (lambda m: m.update(weight=np.zeros((1,) * 20, np.float32)), "20 dimensions"),
        (lambda m: m.update(count=m["count"].astype(np.int32)), "'count' should be int64. Found int32"),
        (lambda m: m.update(weight=m["weight"].astype(">f4")), "Found >f4"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(change, words):
    layout, sent = Layout.of(model()), model(1)
    assert layout.problem(sent) is None
    change(sent)
    with pytest.raises(ValueError, match=words):
        raise ValueError(layout.problem(sent))


def test_randomness_is_that_of_the_round_and_the_seed():
    layout, clients = Layout.of(model()), {str(i): model(i) for i in range(9)}

    def update(number, seed):
        return flat(Models("bucketing+median", 1, seed=seed).aggregate(number, layout, clients, model())[0])

    np.testing.assert_array_equal(update(1, 0), update(1, 0))
    assert (update(1, 0) != update(2, 0)).any()
    assert (update(1, 0) != update(1, 1)).any()


def test_names_are_in_the_order_of_numbers_and_arrival_has_no_influence():
    clients = {name: model(i) for i, name in enumerate(("10", "9", "101", "11", "12", "13", "14", "8"))}
    first, second = Models("bucketing+median", 1), Models("bucketing+median", 1)
    one, kept = first.aggregate(1, Layout.of(model()), clients, None)
    two, _ = second.aggregate(1, Layout.of(model()), dict(reversed(clients.items())), None)
    assert kept == ("8", "9", "10", "11", "12", "13", "14", "101")
    np.testing.assert_array_equal(flat(one), flat(two))


@dataclass(frozen=True)
class Far:
    """A rule that goes far beyond the rows."""

    def requires(self, n, f):
        return None

    def __call__(self, gram):
        return torch.full((len(gram),), 100.0, dtype=torch.float64)


def test_a_new_model_that_is_not_finite_is_no_update():
    base = {"weight": np.full(3, 100, np.float16)}
    clients = {str(i): {"weight": np.full(3, 1000, np.float16)} for i in range(3)}
    models = Models(Aggregator(Far()), 0)
    assert models.aggregate(1, Layout.of(base), clients, base) == (None, ())
    assert "not finite" in models.last.error
    assert models.last.clients == ()


@pytest.mark.parametrize("rule", [name for name in RULES if name != "fltrust"])
def test_every_rule_says_what_it_needs(rule):
    try:
        models = Models(rule, 1)
    except ValueError as error:
        assert "place" in str(error)  # noqa: PT017 - the other rules are those that can be used
        return
    least = next(n for n in range(1, 100) if models.too_few(n) is None)
    assert f"at least {least} clients" in models.too_few(least - 1) if least > 1 else True


def test_claims_that_are_no_positive_numbers_are_the_least_of_all():
    claims = {"a": 7, "b": 3.5, "c": -1, "d": float("nan"), "e": None, "f": "x", "g": 10**400, "h": [1]}
    weights = read_claims(claims)
    assert weights == {"a": 7, "b": 3.5} | dict.fromkeys("cdefgh", 3.5)
    assert read_claims({"a": 0, "b": None}) is None


def test_weights_are_capped_or_there_is_no_update():
    layout, sent = Layout.of(model()), {str(i): model(i) for i in range(5)}
    weigh = {"0": 1e9, "1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0}
    models = Models("mean", 0, cap=checked_cap(0.4, "weights_cap"))
    arrays, _ = models.aggregate(1, layout, sent, None, weigh=weigh)
    capped = np.array([WeightCap(alpha_star=0.4).capped([*weigh.values()], 0)])
    wanted = capped @ np.stack([flat(one) for one in sent.values()]) / capped.sum()
    np.testing.assert_allclose(flat(arrays), wanted[0], rtol=1e-5)
    two = dict([*sent.items()][:2])
    assert models.aggregate(2, layout, two, None, weigh=weigh) == (None, ())
    assert "cannot have so little as 0.4" in models.last.error


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["loss", "more", "parts"]),
            st.one_of(st.integers(), st.floats(), st.lists(st.floats(), max_size=3)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_metrics_are_within_those_of_the_honest_majority(records):
    """Five clients agree; whatever up to four others report, the median is one of theirs or between two."""
    honest = [{"loss": 1.0 + i, "parts": [2.0, float(i)]} for i in range(5)]
    found = median_metrics([*honest, *records[:4]])
    assert {*found} == {"loss", "parts"}
    assert 1 <= found["loss"] <= 5
    assert found["parts"][0] == 2.0 or len(records[:4]) >= 4 or math.isfinite(found["parts"][0])


def test_metrics_that_are_nowhere_finite_are_nan():
    assert math.isnan(median_metrics([{"loss": math.nan}, {"loss": math.inf}])["loss"])
    assert median_metrics([]) == {}


def test_the_record_is_a_line_of_json_and_a_sentence():
    record = Round(3, ("a", "b"), {"c": "bad"}, {"d": "gone"}, {"a": 0.5, "b": 0.5}, math.inf)
    line = json.loads(record.line())
    assert line["effective"] == 2
    assert "spread" not in line
    assert (
        str(record)
        == "Round 3: 2 models took part, 1 were dropped (c: bad), 1 clients sent none (d: gone)."
    )


@pytest.mark.parametrize(
    ("append", "record"),
    [
        (lambda path: rounds.appender(path), Round(3, (), {}, {}, None)),
        (lambda path: steps.appender(path, {"n": 2}), steps.Step(3, (), None)),
    ],
)
def test_a_log_that_cannot_be_written_any_more_is_a_warning(append, record, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    write = append(folder / "log.jsonl")
    write(record)
    assert len((folder / "log.jsonl").read_text().splitlines()) >= 1
    shutil.rmtree(folder)
    with pytest.warns(RuntimeWarning, match=r"log.jsonl cannot be written, and lacks \w+ 3"):
        write(record)


def test_without_flower_the_error_says_what_to_install(monkeypatch):
    import sys

    import varangian.flower

    for name in ["flwr", *(name for name in sys.modules if name.startswith("flwr."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith("varangian.flower.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'varangian\[flower\]'"):
        varangian.flower.Robust  # noqa: B018


def test_a_program_that_raises_at_a_record_does_not_end_the_run(caplog):
    records = []

    def on_round(record):
        records.append(record)
        raise RuntimeError("no such key")

    models = Models("median", 1, on_round=on_round)
    for number in range(2):
        models.aggregate(number, Layout.of(model()), {str(i): model(i) for i in range(3)}, None)
        models.report()
    assert len(records) == 2
    (said,) = caplog.messages
    assert said.startswith("on_round raised, and is called on: RuntimeError: no such key (")
