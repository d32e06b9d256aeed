"""`varangian.nvflare.Robust`: what becomes of results of sites, models and differences of models."""

import json

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="NVFlare is not installed (pip install 'varangian[nvflare]')")

import torch
from nvflare.apis.dxo import DataKind
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from varangian.aggregators import aggregator_from
from varangian.aggregators.numeric.shares import WeightCap
from varangian.nvflare import Robust

SITES = [f"site-{i}" for i in range(1, 8)]
BAD = "site-4"


def model(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "layer.weight": (scale * rng.normal(size=(4, 3))).astype(np.float32),
        "layer.bias": (scale * rng.normal(size=3)).astype(np.float32),
        "batches": np.array(seed, dtype=np.int64),
    }


def flat(params):
    return np.concatenate([np.asarray(params[name]).reshape(-1) for name in ("layer.bias", "layer.weight")])


def result(site, params, kind=ParamsType.FULL, metrics=None, meta=None):
    return FLModel(
        params_type=kind, params=params, metrics=metrics, meta={"client_name": site, **(meta or {})}
    )


def a_round(robust, results):
    robust.reset_stats()
    for one in results:
        robust.accept_model(one)
    return robust.aggregate_model()


def rows_of(models, base=None):
    rows = np.stack([flat(one) for one in models])
    return torch.tensor(rows - (0 if base is None else base))


class Spoilt(dict):
    """A mapping that cannot be read."""

    def items(self):
        raise RuntimeError("no")


class Unreadable:
    def materialize(self):
        raise OSError("gone")


BADLY = {
    "nan": lambda m: m | {"layer.bias": m["layer.bias"] * np.float32("nan")},
    "extra": lambda m: m | {"more": m["layer.bias"]},
    "missing": lambda m: {"layer.bias": m["layer.bias"]},
    "shape": lambda m: m | {"layer.weight": m["layer.weight"].T},
    "dtype": lambda m: m | {"layer.weight": m["layer.weight"].astype(np.float64)},
    "objects": lambda m: m | {"layer.weight": np.array([{}], dtype=object)},
    "text": lambda m: m | {"layer.weight": "\x1b[2J"},
    "none": lambda m: m | {"layer.weight": None},
    "complex": lambda m: m | {"layer.weight": m["layer.weight"] * 1j},
    "numbered": lambda m: m | {7: m["layer.weight"]},
    "empty": lambda m: {},
    "no mapping": lambda m: [1, 2],
    "unreadable": Spoilt,
    "gone from the disk": lambda m: m | {"layer.weight": Unreadable()},
}


@pytest.mark.parametrize("kind", [ParamsType.FULL, ParamsType.DIFF])
@pytest.mark.parametrize("badly", BADLY)
def test_a_bad_result_is_dropped_and_the_update_is_that_of_the_rule(badly, kind):
    robust, models = Robust("nnm+trimmed_mean", f=1), {site: model(i) for i, site in enumerate(SITES)}
    sent = {**models, BAD: BADLY[badly](models[BAD])}
    answer = a_round(robust, [result(site, params, kind) for site, params in sent.items()])
    assert [*robust.last.dropped] == [BAD]
    assert robust.last.dropped[BAD].isprintable()
    assert robust.faults == {BAD: 1}
    assert answer.params_type == kind
    others = [params for site, params in models.items() if site != BAD]
    centre = np.zeros(15)
    if kind == ParamsType.FULL:
        centre = np.sort(rows_of(others).numpy(), axis=0)[2]
    rows = rows_of(others, centre.astype(np.float32))
    wanted = aggregator_from("nnm+trimmed_mean", "aggregator", f=1)(rows, faults=1).vector.numpy() + centre
    np.testing.assert_allclose(flat(answer.params), wanted, rtol=1e-6, atol=1e-6)
    assert answer.params["batches"] == 2
    assert answer.params["batches"].dtype == np.int64


def test_another_kind_of_parameters_is_dropped():
    robust = Robust(f=1)
    kinds = {site: ParamsType.FULL if site == BAD else ParamsType.DIFF for site in SITES}
    answer = a_round(robust, [result(site, model(i), kinds[site]) for i, site in enumerate(SITES)])
    assert robust.last.dropped == {BAD: "is a model where most sites sent a difference"}
    assert answer.params_type == ParamsType.DIFF


def test_a_round_without_an_update_leaves_the_model():
    robust = Robust("krum", f=1)
    before = result("server", model(0))
    for results in (
        [],
        [result(site, model(i)) for i, site in enumerate(SITES[:3])],
        [result(site, BADLY["nan"](model(i))) for i, site in enumerate(SITES)],
        [result(site, {str(i): np.ones(3)}) for i, site in enumerate(SITES)],
    ):
        answer = a_round(robust, results)
        assert robust.last.error
        after = FLModelUtils.update_model(result("server", model(0)), answer)
        assert flat(after.params).tolist() == flat(before.params).tolist()
    assert {*robust.last.absent} == {*SITES}


def test_models_are_measured_from_the_model_of_the_last_round():
    robust = Robust("centered_clipping", f=1)
    first = a_round(robust, [result(site, model(i)) for i, site in enumerate(SITES)])
    base = flat(first.params)
    moved = [{**model(i, 0.1), "layer.bias": model(i, 0.1)["layer.bias"] + 5} for i in range(7)]
    second = a_round(robust, [result(site, one) for site, one in zip(SITES, moved, strict=True)])
    centre = np.sort(rows_of([model(i) for i in range(7)]).numpy(), axis=0)[3].astype(np.float32)
    rule = aggregator_from("centered_clipping", "aggregator", f=1)
    last = rule(rows_of([model(i) for i in range(7)], centre)).vector
    wanted = rule(rows_of(moved, base), last).vector.numpy() + base
    np.testing.assert_allclose(flat(second.params), wanted, rtol=1e-5, atol=1e-5)


def test_tensors_come_back_as_tensors_of_their_type():
    def sent(i):
        params = {name: torch.from_numpy(value) for name, value in model(i).items()}
        return {**params, "half": torch.full((2,), float(i), dtype=torch.bfloat16)}

    answer = a_round(Robust("median", f=1), [result(site, sent(i)) for i, site in enumerate(SITES)])
    assert answer.params["half"].dtype == torch.bfloat16
    assert answer.params["half"].tolist() == [3.0, 3.0]
    assert answer.params["batches"].dtype == torch.int64


def test_weights_are_those_of_the_operator_and_steps_have_no_influence():
    weights = {site: float(10 * i + 1) for i, site in enumerate(SITES)}
    robust = Robust("mean", f=0, weights=weights)
    sent = [
        result(
            site, model(i), ParamsType.DIFF, meta={"NUM_STEPS_CURRENT_ROUND": 10**9 if site == BAD else 1}
        )
        for i, site in enumerate(SITES)
    ]
    stranger = result("site-99", model(9, 1000.0), ParamsType.DIFF)
    answer = a_round(robust, [*sent, stranger])
    wanted = np.average([flat(model(i)) for i in range(7)], axis=0, weights=[*weights.values()])
    np.testing.assert_allclose(flat(answer.params), wanted, rtol=1e-5)
    assert robust.last.absent == {"site-99": "has no weight"}
    with pytest.raises(ValueError, match=r"weights\.a: should be a positive number"):
        Robust("mean", f=0, weights={"a": 0.0})


def test_claimed_steps_weigh_and_are_capped():
    def sent(i, site):
        steps = 10**12 if site == BAD else 10 * (i + 1)
        meta = {} if i == 6 else {"NUM_STEPS_CURRENT_ROUND": steps}
        return result(site, model(i), ParamsType.DIFF, meta=meta)

    robust = Robust("geometric_median", f=1, weights="steps", weights_cap=0.3)
    answer = a_round(robust, [sent(i, site) for i, site in enumerate(SITES)])
    claims = [10.0 if i == 6 else 1e12 if site == BAD else 10.0 * (i + 1) for i, site in enumerate(SITES)]
    rule = aggregator_from("geometric_median", "aggregator", f=1)
    weights = WeightCap(alpha_star=0.3).capped(claims, 1)
    wanted = rule(rows_of([model(i) for i in range(7)]), weights=weights).vector.numpy()
    np.testing.assert_allclose(flat(answer.params), wanted, rtol=1e-5, atol=1e-6)
    a_round(robust, [sent(i, site) for i, site in enumerate(SITES[:3])])
    assert "cannot have so little" in robust.last.error
    with pytest.raises(ValueError, match=r"or 'steps'\. Found 'steps!'"):
        Robust(weights="steps!")


def test_a_site_is_who_the_server_says_and_counts_once():
    robust = Robust("median", f=1)
    again = result(BAD, model(9, 1e6))
    sent = [result(site, model(i), meta={"site_name": "site-1"}) for i, site in enumerate(SITES)]
    a_round(robust, [*sent, again])
    assert {*robust.last.clients} == {*SITES}


def test_metrics_are_medians():
    bad = {"loss": float("inf"), "steps": "9", "mine": 3, "text": [1, 2]}
    metrics = [bad if site == BAD else {"loss": 1.0 + i, "good": True} for i, site in enumerate(SITES)]
    sent = [result(site, model(i), metrics=metrics[i]) for i, site in enumerate(SITES)]
    answer = a_round(Robust("median", f=1), sent)
    assert answer.metrics == {"loss": 4.0, "good": 1.0}


def test_the_log_and_the_round_of_the_workflow(tmp_path):
    from nvflare.apis.fl_context import FLContext

    robust = Robust("krum", f=1, log=str(tmp_path / "rounds.jsonl"))
    robust.fl_ctx = FLContext()
    for number in (5, 6):
        robust.fl_ctx.set_prop(AppConstants.CURRENT_ROUND, number, private=True, sticky=False)
        a_round(robust, [result(site, model(i)) for i, site in enumerate(SITES)])
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [5, 6]
    assert sum(lines[0]["weights"].values()) == pytest.approx(1)


def test_scatter_and_gather_takes_it():
    from nvflare.apis.dxo import from_shareable
    from nvflare.apis.fl_constant import ReservedKey
    from nvflare.apis.fl_context import FLContext

    robust, context = Robust("median", f=1), FLContext()
    for i, site in enumerate(SITES):
        shareable = FLModelUtils.to_shareable(
            FLModel(ParamsType.DIFF, model(i), meta={"client_name": "site-1"})
        )
        shareable.set_peer_props({ReservedKey.IDENTITY_NAME: site})  # as the server does
        assert robust.accept(shareable, context)
    answer = robust.aggregate(context)
    assert isinstance(answer, Shareable)
    assert from_shareable(answer).data_kind == DataKind.WEIGHT_DIFF
    assert {*robust.last.clients} == {*SITES}
