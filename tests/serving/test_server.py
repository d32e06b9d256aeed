"""A server from Python: whatever holds for `varangian server` holds for a module of a program."""

import asyncio
import json
import math
import signal
import subprocess
import sys
import threading

import pytest
import torch
from tests.extent import patience
from tests.serving.own import net, pull_to_zero, workers
from torch import nn

import varangian
from varangian.launch.result import RunError
from varangian.registry import ConfigError
from varangian.worker.training.flat import flatten

PUBLIC = {
    "result.json",
    "rounds.jsonl",
    "metrics.csv",
    "config.yaml",
    "manifest.json",
    "parameters.safetensors",
}


def test_a_module_is_trained_by_its_workers_and_has_the_final_parameters(served):
    start = flatten(net())
    result, module, seen, reasons, notes = served()
    assert (result.outcome, result.rounds, result.loss, result.accuracy) == ("finished", 4, None, None)
    assert seen == {name: [0, 1, 2, 3] for name in ("w00", "w01", "w02")}
    assert set(reasons.values()) == {"all 4 rounds are done"}
    assert flatten(module).norm() < start.norm()
    assert {path.name for path in result.folder.iterdir()} >= PUBLIC
    assert any(note.startswith("serving at 127.0.0.1:") for note in notes)


def test_the_numbers_are_those_of_plain_training(served):
    """One worker without momentum, and the mean: the server steps as torch does."""
    settings = {"workers": 1, "f": 0, "aggregator": "mean", "optimizer": {"name": "adam", "lr": 0.1}}
    _, module, *_ = served(**settings)
    expected = nn.Parameter(flatten(net()))
    adam = torch.optim.Adam([expected], lr=0.1, fused=True)
    for round in range(4):
        expected.grad = pull_to_zero(expected.detach(), "w00", round)
        adam.step()
    assert torch.equal(flatten(module), expected)


def test_the_saved_state_loads_into_another_module(served):
    result, module, *_ = served(rounds=2)
    other = net(seed=1)
    other.load_state_dict(varangian.load(result.folder))
    assert torch.equal(flatten(other), flatten(module))
    assert varangian.load(result.folder, state=True).keys() == other.state_dict().keys()
    assert varangian.read(result.folder).digest == result.digest


def test_an_evaluation_sees_the_parameters_of_the_round_in_evaluation_mode(served):
    seen = []

    def evaluate(model):
        assert not model[1].training
        assert not torch.is_grad_enabled()
        seen.append(flatten(model))
        return {"loss": seen[-1].norm() ** 2, "accuracy": 0.5, "length": float(seen[-1].norm())}

    module = nn.Sequential(*net(), nn.BatchNorm1d(2))
    module.train()
    module[-1].eval()  # as somebody does who has frozen it
    result, module, *_ = served(module, evaluate=evaluate, evaluate__every=2)
    assert len(seen) == 1 + 2
    assert [part.training for part in module] == [True, True, True, False]
    assert result.accuracy == 0.5
    assert result.metrics == {"length": pytest.approx(float(flatten(module).norm()))}
    rounds = [json.loads(line) for line in (result.folder / "rounds.jsonl").read_text().splitlines()]
    assert [record["loss"] is None for record in rounds] == [True, False, True, False]
    assert (
        (result.folder / "metrics.csv")
        .read_text()
        .startswith("round,time,lr,train_loss,loss,accuracy,length")
    )


def test_a_failing_evaluation_is_nan_and_said_once(served):
    calls = []

    def evaluate(model):
        calls.append(model)
        if len(calls) > 1:
            raise KeyError("depth")
        return {"accuracy": 1.0}

    result, *_, notes = served(evaluate=evaluate, evaluate__every=1)
    assert (result.outcome, result.rounds) == ("finished", 4)
    assert result.accuracy is None or math.isnan(result.accuracy)
    (said,) = [note for note in notes if "evaluate" in note]
    assert "KeyError: 'depth' (" in said
    assert "test_server.py, line" in said


def test_a_module_that_is_not_finite_is_named_before_the_run(served):
    module = net()
    module[2].bias.data[1] = math.nan
    with pytest.raises(RunError, match=r"finite parameters to begin with\. Found .* in '2\.bias'"):
        served(module)


def test_an_evaluation_that_fails_at_once_is_named_before_the_run(served, tmp_path):
    with pytest.raises(RunError, match=r"`evaluate` failed: ZeroDivisionError: .*test_server.py, line"):
        served(evaluate=lambda model: 1 / 0)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="there is no SIGCHLD here")
def test_a_handler_that_an_evaluation_leaves_is_not_called_in_the_loop_of_the_server(tmp_path):
    """That of a DataLoader raises in whatever the main thread does when a process of it has ended."""
    seen, called = [], []

    def handler(number, frame):
        seen.append(number)

    def evaluate(model):
        called.append(threading.current_thread())
        if len(called) == 1:  # as a DataLoader, once for a program
            assert called[0] is threading.main_thread()
            signal.signal(signal.SIGCHLD, handler)
        elif called[-1] is not threading.main_thread():
            signal.pthread_kill(threading.main_thread().ident, signal.SIGCHLD)
        return 0.0

    settings = {"workers": 1, "f": 0, "rounds": 3, "aggregator": "mean", "evaluate__every": 1}
    server = varangian.Server(net(), evaluate=evaluate, output=str(tmp_path), **settings)

    def ready(address):
        seen.clear()  # programs that have said what machine this is

        def push():
            with varangian.connect(address, net(), token=server.token("w00")) as worker:
                while worker.pull():
                    worker.push(worker.parameters)

        threading.Thread(target=push, daemon=True).start()

    before = signal.signal(signal.SIGCHLD, handler)
    try:
        assert server.serve("127.0.0.1:0", ready=ready).outcome == "finished"
        assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert seen == []
    assert {*called} > {threading.main_thread()}


def test_on_round_is_called_with_each_record_in_order(served):
    records = []
    served(on_round=records.append)
    assert [record.round for record in records] == [0, 1, 2, 3]
    assert all(len(record.pushes) == 3 for record in records)


def test_on_round_that_fails_does_not_end_the_run(served):
    def fails(record):
        raise ValueError("no disk")

    result, *_, notes = served(on_round=fails)
    assert result.outcome == "finished"
    (first,) = [note for note in notes if "in round 0" in note]
    assert "ValueError: no disk (" in first
    assert "warning: `on_round` failed in 4 of 4 rounds" in notes


def test_a_round_without_an_update_is_said_once(served):
    def not_finite(parameters, name, round):
        return parameters.fill_(float("nan")) if name != "w00" else parameters

    result, *_, notes = served(vector=not_finite)
    assert result.outcome == "failed"
    (said,) = [note for note in notes if "no update in round 0" in note]
    assert said.startswith("warning: ")
    assert not [note for note in notes if "no update in round 1" in note]


def test_a_program_can_stop_its_server(tmp_path):
    module, stopped, held = net(), threading.Event(), []

    def on_round(record):
        if record.round == 1:
            stopped.set()
            held[0].stop("it is good enough")

    server = varangian.Server(module, workers=2, f=0, rounds=10**6, aggregator="mean", output=str(tmp_path),
                              on_round=on_round)  # fmt: skip
    with server.start() as running:
        held.append(running)
        proofs = {name: server.token(name) for name in ("w00", "w01")}
        with workers(running.address, proofs, module) as (_, reasons):
            result = running.result(patience(60))
    assert stopped.is_set()
    assert (result.outcome, result.reason) == ("interrupted", "it is good enough")
    assert set(reasons.values()) == {"it is good enough"}


def test_leaving_the_block_stops_the_run(tmp_path):
    server = varangian.Server(net(), workers=2, f=0, aggregator="mean", output=str(tmp_path))
    with server.start() as running:
        assert not running.done
        with pytest.raises(TimeoutError):
            running.result(0)
        with pytest.raises(RunError, match="at work"):
            server.serve()
    assert running.done
    assert running.result().reason == "stopped by the program"


def test_a_server_serves_in_a_running_loop_and_tells_its_address(tmp_path):
    module = net()
    server = varangian.Server(module, workers=2, f=0, rounds=2, aggregator="mean", output=str(tmp_path))
    addresses, worked = [], []

    def ready(address):
        addresses.append(address)
        proofs = {name: server.token(name) for name in ("w00", "w01")}

        def together():
            with workers(address, proofs, module):
                worked.append(True)

        threading.Thread(target=together).start()

    async def cell():
        return server.serve("127.0.0.1:0", ready=ready)

    result = asyncio.run(cell())
    assert (result.outcome, len(addresses), worked) == ("finished", 1, [True])


def test_a_port_that_is_taken_is_an_error_of_start(tmp_path):
    server = varangian.Server(net(), workers=2, f=0, aggregator="mean", output=str(tmp_path))
    other = varangian.Server(net(), workers=2, f=0, aggregator="mean", output=str(tmp_path))
    with server.start() as running, pytest.raises(RunError, match=running.address.rpartition(":")[2]):
        other.start(running.address)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": "digits"}, "data: is no setting of varangian.Server"),
        ({"byzantine__count": 1}, "byzantine.count: is no setting"),
        ({"rouds": 3}, "rouds: .*Did you mean 'rounds'"),
        ({"evaluate": 3}, "evaluate: should be a function"),
        ({"on_round": 3}, "on_round: should be a function"),
        ({"f": 2}, "f"),
        ({"weights": "samples"}, "weights: should be numbers by worker: the data are in the programs"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, said):
    with pytest.raises(ConfigError, match=said):
        varangian.Server(net(), **{"workers": 3, "f": 1, "aggregator": "median", **settings})


def test_modules_that_cannot_be_trained_are_named():
    frozen = net().requires_grad_(False)
    for module, said in (
        (frozen, "parameters that train"),
        (3, "torch.nn.Module"),
        (nn.LazyLinear(2), "lazy"),
    ):
        with pytest.raises(RunError, match=said):
            varangian.Server(module)


def test_a_network_needs_certificates_or_a_word():
    server = varangian.Server(net(), workers=3, f=1, aggregator="median")
    with pytest.raises(ConfigError, match="without TLS anybody who sees the traffic can be any worker"):
        server.serve("0.0.0.0:0")


def test_tokens_are_those_of_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("VARANGIAN_SECRET", "0123456789abcdef")
    server = varangian.Server(net(), workers=["alice", "bob"], f=0, aggregator="mean")
    printed = subprocess.run(
        [sys.executable, "-m", "varangian", "token", "alice"],
        capture_output=True, text=True, check=True, timeout=patience(60),
    ).stdout  # fmt: skip
    assert server.token("alice") == printed.strip()
    with pytest.raises(ValueError, match="Found 'carol'"):
        server.token("carol")
    with pytest.raises(RunError, match="at least 16 bytes"):
        varangian.Server(net(), secret="short")
    with pytest.raises(RunError, match=r"`secret` should be a text or bytes. Found int"):
        varangian.Server(net(), secret=20)  # which bytes() makes 20 zeros of


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"address": 50051}, r"address: should be a text, HOST:PORT. Found 50051"),
        ({"certs": 3}, "certs: should be a path. Found 3"),
        ({"folder": b"runs"}, "folder: should be a path"),
        ({"resume": 3}, "resume: should be a path, True or False. Found 3"),
        ({"insecure": "no"}, "insecure: should be True or False. Found 'no'"),
        ({"force": 1}, "force: should be True or False. Found 1"),
        ({"note": "x"}, "note: should be a function"),
        ({"ready": 3}, "ready: should be a function"),
        ({"format": "pretty"}, "format: should be one of auto, .* Found 'pretty'"),
    ],
)
def test_arguments_of_a_wrong_type_are_named_and_the_server_can_still_serve(wrong, says, tmp_path):
    server = varangian.Server(net(), workers=1, f=0, rounds=1, aggregator="mean")
    with pytest.raises(ConfigError, match=says):
        server.serve(**{"address": "127.0.0.1:0", "folder": tmp_path / "run"} | wrong)
    if not {"ready", "format"} & wrong.keys():
        with pytest.raises(ConfigError, match=says):
            server.start(**{"address": "127.0.0.1:0", "folder": tmp_path / "run"} | wrong)
    assert not server._serving.locked()


def test_a_blocking_server_is_stopped_from_on_round_and_serves_again(tmp_path, capsys):
    module, threads = net(), []

    def on_round(record):
        if record.round == 1:
            server.stop("enough")

    def ready(address):
        def together():
            with workers(address, {"w00": server.token("w00")}, module):
                pass

        threads.append(threading.Thread(target=together))
        threads[-1].start()

    server = varangian.Server(module, workers=1, f=0, rounds=10**6, aggregator="mean", output=str(tmp_path),
                              on_round=on_round)  # fmt: skip
    for format in (None, "plain"):
        result = server.serve(ready=ready, format=format)
        assert (result.outcome, result.reason) == ("interrupted", "enough")
    assert "enough" in capsys.readouterr().out
    server.stop("nothing is served")
    for thread in threads:
        thread.join(patience(30))


def test_on_round_that_hangs_is_not_waited_for_long(served, monkeypatch):
    monkeypatch.setattr("varangian.serving.work.END", 0.2)
    go_on = threading.Event()
    result, *_, notes = served(on_round=lambda record: go_on.wait(patience(60)))
    go_on.set()
    assert result.outcome == "finished"
    assert "warning: `on_round` has not taken the end of the run in time" in notes
    assert "warning: `on_round` was not called for 3 of 4 rounds" in notes


def test_a_configuration_of_a_whole_experiment_stands_below(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "workers: 5\nf: 1\nmodel: cnn\ndata: cifar10\npartition: {dirichlet: {alpha: 0.1}}\n"
        "byzantine: {count: 1, attack: sign_flip}\naggregator: nnm+krum\noptimizer: {name: adam, lr: 0.5}\n"
        "worker: {momentum: 0.5}\n"
    )
    config = varangian.Server(net(), config=file, optimizer__lr=0.25, workers=6).config
    assert (config.workers, config.f, config.optimizer.lr, config.worker.momentum) == (6, 1, 0.25, 0.5)
    plain = config.resolved()
    assert (plain["model"], plain["data"]) == ({"own": {"name": "Sequential"}}, {"own": {}})
    assert config.byzantine.count == 0


def test_functions_of_the_user_that_take_sentences_end_nothing(tmp_path, caplog):
    def fails(sentence):
        raise OSError("no terminal")

    server = varangian.Server(net(), workers=1, f=0, aggregator="mean", output=str(tmp_path))
    with server.start(note=fails) as running:
        running.stop("enough")
        assert running.result(patience(60)).reason == "enough"
    assert any("serving at" in text and "OSError: no terminal" in text for text in caplog.messages)
    with pytest.raises(RunError, match="`ready` failed: ZeroDivisionError"):
        server.serve(ready=lambda address: 1 / 0)
    assert all((folder / "lock").exists() for folder in tmp_path.iterdir())
    with server.start() as running:  # nothing is held
        running.stop()
