"""Simulations of workers whose vectors weigh differently."""

import json

import pytest

from varangian.config.yaml_text import read
from varangian.experiments.audit.command import audit
from varangian.launch import run
from varangian.launch.dry_run import rehearse
from varangian.registry import ConfigError

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
