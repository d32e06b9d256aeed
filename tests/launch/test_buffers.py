"""Buffers of models, as the statistics of BatchNorm: refused, of each worker alone, or their median."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tests.extent import for_everybody
from tests.launch.simulation.test_resume import Simulations

import varangian
from varangian.cli.main import main
from varangian.config import load
from varangian.config.build import task
from varangian.launch import RunError, run
from varangian.launch.checkpoints.kept_rows import KeptRound, kept_rounds
from varangian.registry import ConfigError
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.momentum import Momentum
from varangian.worker.transport.results import Declined

MODEL = ("model=tests.own_networks:counting", "data=digits", "workers=7", "f=2", "worker.batch_size=8")
SMALL = (*MODEL, "rounds=4", "aggregator=median", "evaluate.every=2", "optimizer=adam", "seed=3")
ATTACKED = ("byzantine.count=2",)


@pytest.fixture
def carry_out(tmp_path):
    def carry_out(*settings):
        return run(load(None, [*SMALL, f"output={tmp_path}", *settings]), note=lambda text: None)

    return carry_out


def test_a_model_with_buffers_that_change_is_refused_unless_it_is_said_what_becomes_of_them(carry_out):
    with pytest.raises(
        RunError, match=r"Found buffers that change: seen, body.2.running_mean.*buffers=robust"
    ):
        carry_out("backend=simulate")


def test_the_saved_model_has_the_medians_and_is_the_one_that_was_evaluated(carry_out):
    result = carry_out("backend=simulate", "buffers=robust")
    state = varangian.load(result.folder, state=True)
    assert state["seen"] == 4 * 8
    assert state["body.2.num_batches_tracked"] == 4
    assert (state["body.2.running_var"] > 0).all()
    assert not torch.equal(state["body.2.running_mean"], torch.zeros(12))
    model = varangian.load(result.folder)
    data = WorkerCompute(task(load(None, [*SMALL, "buffers=robust"]))).dataset
    with torch.no_grad():
        right = (
            (model(data.prepared(data.test_x, torch.device("cpu"))).argmax(1) == data.test_y).float().mean()
        )
    assert float(right) == pytest.approx(result.accuracy)


def test_with_local_ones_the_server_has_those_that_the_model_is_made_with(carry_out):
    result = carry_out("backend=simulate", "buffers=local")
    state = varangian.load(result.folder, state=True)
    assert state["seen"] == 0
    assert torch.equal(state["body.2.running_mean"], torch.zeros(12))


def test_what_a_worker_pushes_is_a_gradient_without_and_buffers_without_momentum():
    compute = WorkerCompute(task(load(None, [*SMALL, "buffers=robust", "worker.local_steps=3"])))
    initial, d = compute.initial(), compute.layout.trained.numel
    assert [name for name, _ in compute.layout.entries][-5:-2] == [
        "buffer:seen",
        "buffer:mask",
        "buffer:body.2.running_mean",
    ]
    first, second = (compute.contribution("w00", round, initial) for round in (0, 1))
    assert first is not None
    assert second is not None
    assert (first[d], second[d]) == (24, 24)  # each from the buffers that it was given
    alone = WorkerCompute(
        task(load(None, [*SMALL, "buffers=robust", "worker.local_steps=3", "worker.momentum=0"]))
    )
    plain = alone.contribution("w00", 1, initial)
    assert plain is not None
    assert torch.equal(plain[d:], second[d:])
    assert torch.allclose(second[:d], 0.1 * plain[:d] + 0.9 * first[:d], atol=1e-6)
    kept = Momentum(0.5, buffers=1)
    assert [kept("w", round, lambda: torch.ones(3)).tolist() for round in (0, 1)] == [
        [0.5, 0.5, 1.0],
        [0.75, 0.75, 1.0],
    ]


def test_local_ones_go_on_from_round_to_round_and_a_round_again_has_the_same_bits():
    compute = WorkerCompute(task(load(None, [*SMALL, "buffers=local", "worker.momentum=0"])))
    initial = compute.initial()
    assert initial.numel() == compute.layout.numel == compute.layout.trained.numel
    first = compute.contribution("w00", 0, initial)
    again = compute.contribution("w00", 0, initial)
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    kept = compute.state("w00")
    assert kept["buffers"][0] == 8
    compute.contribution("w00", 1, initial)
    assert compute.state("w00")["buffers"][0] == 16
    assert compute.state("w01")["buffers"] is None
    compute.restore("w00", kept)
    assert compute.state("w00")["buffers"][0] == 8


def test_a_model_whose_statistics_are_not_finite_declines():
    compute = WorkerCompute(task(load(None, [*SMALL, "buffers=robust"])))
    parameters = compute.initial()
    parameters[-20] = math.inf
    with pytest.raises(Declined):
        compute.contribution("w00", 0, parameters)


ALIKE = [
    pytest.param(
        ("buffers=robust", "wire.dtype=bfloat16", *ATTACKED, "byzantine.attack=alie"), id="bfloat16"
    ),
    pytest.param(
        ("buffers=local", "worker.local_steps=2", *ATTACKED, "byzantine.attack=ipm"),
        id="local",
    ),
    pytest.param(
        ("buffers=robust", "wire.dtype=int8", "worker.inner=adamw", "worker.local_steps=2"),
        id="int8",
    ),
    pytest.param(
        ("buffers=robust", *ATTACKED, "byzantine.attack=non_finite", "ema={reference_batch: 8}"),
        id="not finite",
    ),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("settings", ALIKE)
def test_processes_and_simulation_end_with_the_same_digest(carry_out, settings):
    """Over sockets without workers of their own: `tests/serving/test_buffers.py`."""
    apart = carry_out(*settings, *for_everybody(), "backend=processes")
    together = carry_out(*settings, "backend=simulate")
    assert (apart.digest, apart.loss) == (together.digest, together.loss)
    robust = "buffers=robust" in settings
    for result in (apart, together):
        state = varangian.load(result.folder, state=True)
        steps = 2 if "worker.local_steps=2" in settings else 1
        assert state["seen"] == (4 * 8 * steps if robust else 0)


@pytest.mark.parametrize("mode", ["local", pytest.param("robust", marks=pytest.mark.exhaustive)])
def test_a_simulation_goes_on_with_the_same_bits(tmp_path, mode):
    settings = [*SMALL, f"buffers={mode}", "backend=simulate", *ATTACKED, "byzantine.attack=mimic"]
    Simulations(tmp_path / "runs").assert_each_border_goes_on(*settings, borders=(2,))


ATTACKS = [
    "gaussian",
    *(
        pytest.param(attack, marks=pytest.mark.exhaustive)
        for attack in ("sign_flip", "non_finite", "{ipm: {epsilon: 1000000.0}}")
    ),
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_do_not_move_buffers_beyond_those_of_honest_workers(carry_out, attack):
    """Each round, by what honest workers of that round have pushed."""
    settings = ("buffers=robust", *ATTACKED, f"byzantine.attack={attack}", "server.keep_rows=4")
    result = carry_out(*settings, "backend=simulate")
    compute = WorkerCompute(task(load(None, [*SMALL, "buffers=robust"])))
    state = varangian.load(result.folder, state=True)
    d = compute.layout.trained.numel
    for round, path in kept_rounds(result.folder).items():
        kept = KeptRound.read(path, round)
        assert kept.buffers is not None
        honest = torch.stack([kept.buffers[name] for name in ("w00", "w01", "w02", "w03", "w04")])
        after = kept_rounds(result.folder).get(round + 1)
        if after is None:
            mean = honest[:, 4:16]
            found = state["body.2.running_mean"]
            assert (mean.amin(0) <= found).all()
            assert (found <= mean.amax(0)).all()
        else:
            found = KeptRound.read(after, round + 1).learner["parameters"][d:]
            assert (honest.amin(0) <= found).all()
            assert (found <= honest.amax(0)).all()
    assert main(["audit", str(result.folder), "--recompute"]) == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ("participation={fedlaavg: {form: delta}}", "f=0", "aggregator=mean"),
            "workers push differences of vectors",
        ),
        (("server.memory=window", "aggregator=median"), "server.memory=window"),
        (("server.rows=bfloat16",), "no exact integers"),
        (("workers=6", "aggregator=mean", "f=2"), "4 vectors, of which f = 2 are not a minority"),
    ],
)
def test_what_robust_buffers_need(settings, sentence):
    with pytest.raises(ConfigError, match=f"buffers: should not be robust here: .*{sentence}"):
        load(None, ["buffers=robust", *settings])


def test_batched_gradients_are_computed_one_by_one(carry_out):
    result = carry_out("backend=simulate", "buffers=robust", "simulate.gradients=batched")
    facts = json.loads((result.folder / "manifest.json").read_text())
    assert "the buffers of the model" in json.dumps(facts)
    assert result.digest == carry_out("backend=simulate", "buffers=robust").digest


def test_the_median_is_by_weight_where_workers_have_one(carry_out):
    heavy = "weights={w00: 9, w01: 1, w02: 1, w03: 1, w04: 1, w05: 1, w06: 1}"
    result = carry_out(
        "backend=simulate", "buffers=robust", "f=0", "aggregator=mean", heavy, "server.keep_rows=4"
    )
    last = KeptRound.read(kept_rounds(result.folder)[3], 3)
    assert last.buffers is not None
    state = varangian.load(result.folder, state=True)
    assert torch.equal(state["body.2.running_mean"], last.buffers["w00"][4:16])
