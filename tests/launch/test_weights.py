"""Simulations of workers whose vectors weigh differently."""

import json

import pytest
import torch

from varangian.config import loads
from varangian.config.build import task
from varangian.config.yaml_text import read
from varangian.experiments.audit.command import audit
from varangian.launch import run
from varangian.launch.dry_run import rehearse
from varangian.launch.server_run import with_sample_weights
from varangian.registry import ConfigError
from varangian.worker.training.compute import WorkerCompute

WEIGHTS = "weights={w00: 1, w01: 2, w02: 3, w03: 4, w04: 5}"


def test_the_mean_has_the_weights(carried_out):
    result, records, _ = carried_out("aggregator=mean", "f=0", WEIGHTS)
    assert result.outcome == "finished"
    wanted = {f"w{i:02}": pytest.approx((i + 1) / 15) for i in range(5)}
    assert all(record.weights == wanted for record in records)
    other, _, _ = carried_out("aggregator=mean", "f=0")
    assert other.digest != result.digest


@pytest.mark.parametrize("rule", ["median", "nnm+trimmed_mean", "arc+caf"])
def test_equal_weights_change_no_bit(carried_out, rule):
    equal = "weights={w00: 3, w01: 3, w02: 3, w03: 3, w04: 3}"
    (without, _, _), (weighed, _, _) = (
        carried_out(f"aggregator={rule}"),
        carried_out(f"aggregator={rule}", equal),
    )
    assert without.digest == weighed.digest


@pytest.mark.parametrize("way", ["fedlaavg", "async", "fedavg"])
def test_every_way_to_take_part_weighs(carried_out, way):
    settings = (f"participation={way}", "f=0", "rounds=6")
    result, records, notes = carried_out(*settings, "aggregator=mean", WEIGHTS)
    assert result.outcome == "finished"
    last = records[-1].weights
    assert set(last) <= {f"w{i:02}" for i in range(5)}
    assert last["w04"] == pytest.approx(max(last.values()))
    assert any("weights from 1 to 5" in note for note in notes)


def test_numbers_of_samples(small, carried_out):
    dealt = (
        "data=digits",
        "partition={dirichlet: {alpha: 0.5}}",
        "weights=samples",
        "aggregator=mean",
        "f=0",
    )
    result, records, notes = carried_out(*dealt, "rounds=2")
    assert read(result.folder / "config.yaml")["weights"] == "samples"
    kept = json.loads((result.folder / "manifest.json").read_text())
    assert kept["weights"] == kept["samples"]
    sizes = kept["samples"]
    assert (sum(sizes.values()), len(sizes)) == (1438, 5)
    assert records[0].weights == {name: pytest.approx(size / 1438) for name, size in sizes.items()}
    assert any(note.startswith("weights from") for note in notes)
    found = rehearse(small(*dealt))
    assert any(sentence.startswith("weights: from") for sentence in found.worked)


def test_numbers_of_samples_that_break_the_promise_of_the_rule(small):
    dealt = ("partition={dirichlet: {alpha: 0.05}}", "weights=samples", "aggregator=trimmed_mean")
    config = small(*dealt)
    (problem,) = rehearse(config).problems
    assert (problem.path, "heaviest may have" in problem.rule) == ("aggregator", True)
    with pytest.raises(ConfigError, match="heaviest may have"):
        run(config)


@pytest.mark.parametrize("weights", [WEIGHTS.replace("5", "4"), "weights=samples"])
def test_kept_vectors_are_aggregated_again_by_weight(carried_out, weights):
    cap = ("weights_cap.alpha_star=0.35", "server.keep_rows=2", "partition={dirichlet: {alpha: 1.0}}")
    result, _, _ = carried_out("aggregator=nnm+trimmed_mean", weights, *cap)
    found = audit(result.folder, recompute=True)
    assert not found.problems


@pytest.mark.parametrize("rule", ["krum", "nnm+median"])
def test_attackers_see_the_rule_as_before_where_weights_are_equal(carried_out, rule):
    attacked = (
        f"aggregator={rule}",
        "rounds=3",
        "byzantine.count=1",
        "byzantine.attack={alie: {z: optimal}}",
    )
    equal = "weights={w00: 3, w01: 3, w02: 3, w03: 3, w04: 3}"
    assert carried_out(*attacked)[0].digest == carried_out(*attacked, equal)[0].digest


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ({"weights": {f"w{i:02}": i + 1 for i in range(5)}}, (1, 2, 3, 4, 5)),
        (
            {"weights": {f"w{i:02}": i + 1 for i in range(5)}, "weights_cap": {"alpha_star": 0.25}},
            (1, 2, 3, 3, 3),  # 3 of 12 is a quarter
        ),
        ({}, None),
    ],
)
def test_attackers_who_know_the_rule_know_the_weights(weights, wanted):
    settings = {"model": "softmax", "workers": 5, "f": 1, "aggregator": "median", "backend": "simulate"}
    attack = {"byzantine": {"count": 1, "attack": {"ipm": {"epsilon": "optimal"}}}}
    compute = WorkerCompute(task(loads({**settings, **attack, **weights})))
    names, d = ("w00", "w01", "w02", "w03"), compute.initial().numel()
    rule = compute.view(0, names, torch.zeros(4, d)).rule
    assert rule.weights == (None if wanted is None else pytest.approx(wanted))
    fewer = compute.view(0, ("w00", "w02", "w03"), torch.zeros(3, d)).rule
    assert fewer.weights == (None if wanted is None else pytest.approx((*wanted[:1], *wanted[2:])))


def test_attackers_count_the_samples_that_the_server_counts():
    settings = {"model": "softmax", "workers": 5, "f": 1, "aggregator": "median", "backend": "simulate"}
    attack = {"byzantine": {"count": 1, "attack": {"ipm": {"epsilon": "optimal"}}}}
    dealt = {"partition": {"dirichlet": {"alpha": 1}}, "weights": "samples"}
    config = loads({**settings, **attack, **dealt, "weights_cap": {"alpha_star": 0.3}})
    compute = WorkerCompute(task(config))
    rule = compute.view(0, config.honest_names, torch.zeros(4, compute.initial().numel())).rule
    assert rule.weights == tuple(with_sample_weights(config, compute).worker_weights.values())
