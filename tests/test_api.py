"""Runs and sweeps from programs and notebooks."""

import asyncio
import hashlib
import signal
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tests import own_parts

import varangian
from varangian.aggregators import NNM, Aggregator, Krum
from varangian.config import RunConfig, load
from varangian.launch import RunError, RunResult
from varangian.registry import ConfigError

SMALL = {
    "backend": "simulate",
    "model": "softmax",
    "data": {"synthetic": {"train": 60, "test": 20, "classes": 3}},
    "workers": 5,
    "f": 1,
    "rounds": 4,
    "evaluate.every": 2,
    "worker.batch_size": 4,
}


@pytest.fixture
def small(tmp_path):
    return {**SMALL, "output": str(tmp_path)}


def test_a_result_has_records_columns_parameters_and_the_model(small):
    seen = []
    result = varangian.run(small, observe=seen.append, metrics=["accuracy", "class_accuracy"])
    assert (
        [record["round"] for record in result.history] == [record.round for record in seen] == [0, 1, 2, 3]
    )
    assert result.column("round") == [1, 3]
    assert result.column("accuracy")[-1] == result.accuracy
    assert result.column("class_accuracy_2")[-1] == result.metrics["class_accuracy_2"]
    assert {len(values) for values in result.columns.values()} == {2}
    with pytest.raises(KeyError, match="Did you mean 'accuracy'"):
        result.column("acuracy")
    digest = hashlib.blake2b(result.parameters.numpy().data, digest_size=16).hexdigest()
    assert digest == result.digest
    model = result.model()
    assert not model.training
    assert torch.equal(torch.cat([p.flatten() for p in model.parameters()]), result.parameters)
    assert result.config["optimizer"]["lr"] == 1.0


def test_a_result_says_in_a_line_and_in_a_table_how_it_ended(small):
    result = varangian.run(small, rounds=1)
    assert repr(result).startswith("RunResult(finished after 1 rounds: loss ")
    assert repr(result).endswith(f"folder {str(result.folder)!r})")
    assert "<th style='text-align:left'>digest</th>" in result._repr_html_()
    assert "<i>" not in RunResult(None, 1.0, "ab", 1, 1.0, "<i>", "failed")._repr_html_()
    with pytest.raises(RunError, match="has no folder"):
        RunResult(None, 1.0, "ab", 1, 1.0, "done", "failed").parameters  # noqa: B018


def test_a_result_is_read_again_from_its_folder(small, tmp_path):
    result = varangian.run(small, rounds=1, folder=tmp_path / "here")
    again = varangian.read(tmp_path / "here")
    assert again == result
    with pytest.raises(RunError, match=r"the folder of a run with result\.json"):
        varangian.read(tmp_path)


def test_settings_come_from_a_file_a_mapping_a_configuration_or_nothing(small, tmp_path):
    (tmp_path / "run.yaml").write_text("workers: 9\noptimizer: {lr: 0.5, momentum: 0.1}\n")
    with_file = varangian.api.configuration(str(tmp_path / "run.yaml"), {"optimizer__lr": 0.2, "f": 2})
    assert (with_file.workers, with_file.f) == (9, 2)
    assert (with_file.optimizer.lr, with_file.optimizer.momentum) == (0.2, 0.1)
    given = load(None, ["workers=7", "f=1"])
    assert varangian.api.configuration(given, {}) is given
    assert varangian.api.configuration(given, {"rounds": 3}) == given.model_copy(update={"rounds": 3})
    assert varangian.api.configuration(None, {}) == load()
    numbers = varangian.api.configuration(
        {"optimizer.lr": np.float64(0.25), "model": {"mlp": {"hidden": (8, 4)}}}, {"rounds": np.int64(7)}
    )
    assert (numbers.rounds, numbers.optimizer.lr, numbers.model.hidden) == (7, 0.25, (8, 4))


def test_objects_classes_and_functions_stand_for_their_names():
    config = varangian.api.configuration(
        {"aggregator": Aggregator(Krum(f=2), mix=(NNM(f=2),)), "f": 2},
        {"byzantine": {"count": 1, "attack": own_parts.Shift(z=1.0)}, "partition": own_parts.Skewed},
    )
    assert config == load(
        None,
        [
            *("aggregator=nnm+krum", "f=2", "byzantine.count=1"),
            "byzantine.attack.tests.own_parts:Shift.z=1.0",
            "partition=tests.own_parts:Skewed",
        ],
    ).model_copy(update={"partition": config.partition})
    functions = varangian.api.configuration(
        None, {"aggregator": own_parts.trimmed, "model": own_parts.make}
    )
    assert functions.model.target == "tests.own_parts:make"
    assert list(functions.resolved()["aggregator"]) == ["tests.own_parts:trimmed"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"aggregator": lambda rows: rows[0]}, "aggregator: should be at the top of a module or a cell"),
        ({"optimizer__lr": [1j]}, "optimizer.lr.0: should be a number, a text, a list"),
        (
            {"agregator": "krum"},
            "agregator: there is no such setting. Found 'krum'. Did you mean 'aggregator'?",
        ),
        ({"optimizer__rate": 1}, "optimizer.rate: there is no such setting"),
        ({"rounds": "ten"}, "rounds: should be an integer. Found 'ten'."),
    ],
)
def test_settings_that_mean_nothing_are_problems(settings, said):
    with pytest.raises(ConfigError) as found:
        varangian.run(**settings)
    assert said in str(found.value)


def test_something_else_is_no_configuration():
    with pytest.raises(TypeError, match="should be a file, a mapping of settings or a RunConfig"):
        varangian.run(3)


def test_a_view_that_does_not_exist_is_an_error_before_anything_starts(small):
    for start in (lambda: varangian.run(small, format="x"), lambda: varangian.sweep({}, format="x")):
        with pytest.raises(
            ConfigError, match=r"format: should be one of auto, rich, plain, json.*Found 'x'"
        ):
            start()


def test_code_of_a_notebook_is_found_in_one_process_alone(monkeypatch, small):
    main = types.ModuleType("__main__")
    exec("def rule(rows, f):\n    return rows.median(dim=0).values", vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert varangian.run(small, aggregator=main.rule).config["aggregator"] == {"__main__:rule": {"f": 1}}
    with pytest.raises(ConfigError, match="rule can be found in this process alone"):
        varangian.run(small, aggregator=main.rule, backend="processes")
    with pytest.raises(ConfigError, match="Write them to a file and import it"):
        varangian.sweep({"base": dict(small), "grid": {"aggregator": [main.rule]}})


def test_runs_in_a_running_loop_and_in_threads_have_the_same_digests(small):
    async def cell():
        return varangian.run(small)

    alone = varangian.run(small)
    assert asyncio.run(cell()).digest == alone.digest
    with ThreadPoolExecutor(2) as threads:
        seeds = [1, 2]
        results = [*threads.map(lambda seed: varangian.run(small, seed=seed), seeds)]
    assert results[0].digest == alone.digest != results[1].digest
    assert len({result.folder for result in results}) == 2


def test_ctrl_c_ends_a_run_after_the_round_in_hand(small):
    def interrupt(record):
        if record.round == 1:
            signal.raise_signal(signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    result = varangian.run(small, rounds=1000, observe=interrupt)
    assert (result.outcome, result.signal) == ("interrupted", signal.SIGINT)
    assert 2 <= len(result.history) < 1000


def test_advice_is_said_as_a_note(small):
    notes = []
    varangian.run(small, aggregator="mean", rounds=1, note=notes.append)
    assert any("promises nothing" in note for note in notes)


def test_a_configuration_may_be_made_by_hand(small):
    config = RunConfig(rounds=2, backend="simulate", output=small["output"], model="softmax")
    assert varangian.run(config).rounds == 2


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_sweep_in_a_running_loop(small):
    grid = {
        "base": small,
        "grid": {"aggregator": [own_parts.trimmed, "krum"], "byzantine.attack": [None, own_parts.Shift()]},
        "name": "mine",
    }

    async def cell():
        return varangian.sweep(grid, jobs=2, seeds=2, byzantine__count=1)

    result = asyncio.run(cell())
    assert repr(result).startswith("SweepResult(8 of 8 runs done, 0 failed, file ")
    assert [one.rounds for one in result.runs] == [4] * 8
    assert {row["aggregator"] for row in result.rows()} == {"tests.own_parts:trimmed", "krum"}
    assert "trimmed" in result.table()
    assert "<pre>" in result._repr_html_()
    assert result.failed == ()
    assert varangian.sweep(grid, jobs=1, seeds=2, byzantine__count=1).carried_out == 0


def test_a_run_goes_on_from_its_folder(tmp_path):
    settings = {**SMALL, "output": str(tmp_path), "server.checkpoint.every": 1}
    first = varangian.run(settings, rounds=3)
    over = varangian.run(resume=first.folder)
    assert (over.digest, over.folder) == (first.digest, first.folder)
    longer = varangian.run(resume=first.folder, rounds=5)
    assert (longer.rounds, longer.folder, longer.config["rounds"]) == (5, first.folder, 5)
    assert longer.digest == varangian.run(settings, rounds=5).digest
    again = varangian.run(settings, rounds=3, seed=9, resume=True)
    assert again.folder != first.folder
    with pytest.raises(RunError, match="give `resume` or `folder`"):
        varangian.run(resume=first.folder, folder=tmp_path / "other")
