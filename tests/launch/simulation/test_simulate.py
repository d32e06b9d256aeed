import json

import pytest
import torch
from safetensors.torch import load_file

from varangian.launch import RunError, run
from varangian.worker.training.compute import WorkerCompute
from varangian.worker.training.trainer import Trainer
from varangian.worker.transport.results import Declined


def test_a_run_leaves_its_numbers(carried_out):
    result, records, notes = carried_out()
    assert (result.outcome, result.rounds, result.reason) == ("finished", 5, "all 5 rounds are done")
    assert [record.round for record in records] == [0, 1, 2, 3, 4]
    assert (records[-1].accuracy, records[-1].loss) == (result.accuracy, result.loss)
    assert notes == []
    assert json.loads((result.folder / "result.json").read_text())["digest"] == result.digest
    lines = (result.folder / "rounds.jsonl").read_text().splitlines()
    assert all(line.startswith(record.json()[:-1]) for line, record in zip(lines, records, strict=True))


@pytest.mark.whole
@pytest.mark.parametrize(
    ("setting", "one", "other"),
    [
        ("seed", 1, 2),
        ("wire.dtype", "bfloat16", "float32"),
        ("wire.dtype", "int8", "float32"),
        ("server.rows", "bfloat16", "float32"),
    ],
)
def test_the_same_setting_gives_the_same_digest_and_another_another(carried_out, setting, one, other):
    digests = [carried_out(f"{setting}={value}")[0].digest for value in (one, one, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_machine_without_the_memory_is_not_begun_on(small, tmp_path, monkeypatch):
    monkeypatch.setattr("varangian.launch.server_run.available_memory", lambda: 1 << 20)
    with pytest.raises(RunError, match="of memory, and this machine or its container has"):
        run(small(), observe=lambda record: None, note=lambda text: None)
    assert not (tmp_path / "runs").exists()


def test_an_average_of_the_model_is_evaluated_and_saved_beside_it(carried_out):
    plain, _, _ = carried_out("evaluate.every=2")
    result, records, _ = carried_out("evaluate.every=2", "ema={decay: 0.5, reference_batch: 40}")
    assert result.digest == plain.digest
    evaluated = [record.ema_accuracy is not None for record in records]
    assert (
        evaluated == [record.accuracy is not None for record in records] == [False, True, False, True, True]
    )
    assert (records[-1].ema_accuracy, records[-1].ema_loss) == (result.ema_accuracy, result.ema_loss)
    assert result.ema_loss > result.loss, "it lags behind a model that learns"
    assert (plain.ema_loss, plain.ema_accuracy) == (None, None)
    model, average = (load_file(result.folder / f"{n}.safetensors") for n in ("parameters", "ema"))
    assert {name: x.shape for name, x in model.items()} == {name: x.shape for name, x in average.items()}
    assert any(not torch.equal(model[name], average[name]) for name in model)


def test_an_average_without_memory_is_the_model(carried_out):
    result, _, _ = carried_out("ema={decay: 0, reference_batch: 1}")
    assert (result.ema_loss, result.ema_accuracy) == (result.loss, result.accuracy)


def test_rounds_without_an_update_change_no_average(carried_out):
    faulty = ["byzantine.attack=non_finite", "byzantine.count=2", "rounds=3"]
    result, records, _ = carried_out(*faulty, "ema={decay: 0, reference_batch: 1}", "evaluate.every=1")
    assert all(record.skipped for record in records)
    assert {record.ema_loss for record in records} == {result.loss}


def test_more_faults_than_declared_end_the_run(carried_out):
    result, records, _ = carried_out("byzantine.attack=non_finite", "byzantine.count=2", "rounds=50")
    assert result.outcome == "failed"
    assert all("2 proven faulty (w03, w04)" in record.skipped for record in records)
    assert result.rounds == len(records) < 50
    assert "had no update" in result.reason
    short, *_ = carried_out("byzantine.attack=non_finite", "byzantine.count=2", "rounds=3")
    assert (short.outcome, short.reason) == ("failed", "no round had an update")
    assert result.accuracy is not None, "of the parameters that are left"


def test_a_shortfall_can_fail_at_once(carried_out):
    result, records, _ = carried_out(
        "byzantine.attack=non_finite", "byzantine.count=2", "server.shortfall=fail"
    )
    assert (result.outcome, len(records)) == ("failed", 1)


def test_the_mean_is_lost_to_one_attacker(carried_out):
    attack = ["byzantine.attack=sign_flip", "byzantine.count=1", "rounds=30"]
    lost, _, _ = carried_out(*attack, "aggregator=mean")
    kept, _, _ = carried_out(*attack, "aggregator=median")
    assert lost.accuracy < 0.6 < 0.9 < kept.accuracy


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data={cifar10: {path: nowhere}}"], "nowhere"),
        (["data=synthetic", "model=cnn"], "takes images"),
        (["model=no_such_module:build"], "cannot be imported"),
        (["worker.device=abacus"], "Found 'abacus'"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit(carried_out, tmp_path, settings, said):
    with pytest.raises(RunError, match=said):
        carried_out(*settings)
    assert not (tmp_path / "runs").exists(), "nothing was begun"


@pytest.mark.parametrize("way", ["sync", "fedavg", "fedlaavg", "async", {"asap": {"graph": "complete"}}])
def test_a_worker_that_declines_costs_one_round_of_one_worker(carried_out, monkeypatch, way):
    answer = WorkerCompute.answer

    def failing(worker_compute, name, round, parameters):
        if (name, round) == ("w01", 2):
            raise Declined("data:load raised KeyError")
        return answer(worker_compute, name, round, parameters)

    monkeypatch.setattr(WorkerCompute, "answer", failing)
    result, records, _ = carried_out(f"participation={json.dumps(way)}", "rounds=5")
    assert (result.outcome, result.rounds) == ("finished", 5)
    declined = [record.declined for record in records if record.declined]
    assert declined == [{"w01": "data:load raised KeyError"}]
    assert all(record.dropped == {} and record.missing == () for record in records)


@pytest.mark.parametrize("way", ["sync", "fedavg", "fedlaavg", "async"])
def test_a_model_that_diverges_convicts_nobody(carried_out, way):
    result, records, _ = carried_out(
        f"participation={way}", "optimizer.lr=3e38", "rounds=20", "worker.momentum=0"
    )
    assert all(record.dropped == {} and record.missing == () for record in records)
    assert "the model has diverged" in result.reason


def test_an_honest_worker_declines_what_would_convict_it(carried_out, monkeypatch):
    gradient = Trainer.gradient

    def spoilt(trainer, parameters, x, y, *purpose):
        found = gradient(trainer, parameters, x, y, *purpose)
        return found * torch.inf if purpose[1:] == ("w01", 2) else found

    monkeypatch.setattr(Trainer, "gradient", spoilt)
    attack = ("byzantine.attack.non_finite.value=inf", "byzantine.count=1")
    result, records, _ = carried_out(*attack)
    assert result.outcome == "finished"
    assert [set(record.dropped) for record in records] == [{"w04"}] * 5
    assert [list(record.declined) for record in records] == [[], [], ["w01"], [], []]
    assert records[-1].weights is None or set(records[-1].weights) >= {"w01"}
