"""A function of a program as the loss of the gate, friendly and hostile."""

import json
import math
import threading

import pytest
import torch
from tests.extent import patience
from tests.serving.own import net, pull_to_zero

from varangian import Server, connect
from varangian.launch.result import RunError
from varangian.registry import ConfigError


def flipped(parameters, name, round):
    """One of three pushes the model away."""
    found = pull_to_zero(parameters, name, round)
    return -found if name == "w02" else found


def size(model):
    """The loss that those vectors descend."""
    return sum(float(parameter.square().sum()) for parameter in model.parameters())


def gated(folder):
    return [json.loads(line)["gated"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


FOUR = {"workers": 4, "aggregator": "mean", "optimizer": {"lr": 0.1}, "worker__momentum": 0}


def test_a_vector_that_raises_the_loss_is_left_out(served):
    result, *_ = served(vector=flipped, gate=size, server__gate={"tolerance": 0.001}, **FOUR)
    assert [[*names] for names in gated(result.folder)] == [["w02"]] * 4


def test_it_needs_no_settings(served):
    result, *_ = served(vector=flipped, gate=size, **FOUR)
    assert all("w02" in names for names in gated(result.folder))


@pytest.mark.parametrize("aggregator", ["mean", "median"])
def test_its_worker_hears_of_weight_0_and_of_no_refusal(tmp_path, aggregator):
    settings = FOUR | {"aggregator": aggregator, "f": 1, "rounds": 4, "output": str(tmp_path)}
    outcomes = {}

    def work(name, sign):
        with connect(running.address, net(7), token=running.token(name), name=name) as worker:
            while worker.pull():
                outcomes.setdefault(name, []).append(worker.push(sign * worker.parameters))

    server = Server(net(), gate=size, **settings)
    with server.start(note=lambda text: None) as running:
        signs = {"w00": 1, "w01": 1, "w02": 1, "w03": -1}
        threads = [threading.Thread(target=work, args=given) for given in signs.items()]
        for thread in threads:
            thread.start()
        running.result(patience(60))
        for thread in threads:
            thread.join(patience(60))
    assert all(outcome.accepted for found in outcomes.values() for outcome in found)
    heard = {name: {outcome.weight for outcome in found[1:]} for name, found in outcomes.items()}
    others = pytest.approx(1 / 3) if aggregator == "mean" else None
    assert heard["w03"] == {0.0}
    assert [*heard["w00"]] == [others]


def fails(model):
    raise RuntimeError("no such file")


def swaps(model):
    model[0].weight = torch.nn.Parameter(torch.zeros_like(model[0].weight))
    return 0.0


class Later:
    """Well at first, and then something else."""

    def __init__(self, then, at=1):
        self.then, self.at, self.calls = then, at, 0

    def __call__(self, model):
        self.calls += 1
        return size(model) if self.calls <= self.at else self.then(model)


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
@pytest.mark.parametrize(
    "then",
    [
        fails,
        lambda _: math.nan,
        *(
            pytest.param(then, marks=pytest.mark.exhaustive)
            for then in (lambda _: "low", lambda _: torch.ones(2))
        ),
    ],
)
def test_a_function_that_fails_later_ends_nothing(served, then, at):
    result, _, _, _, notes = served(vector=flipped, gate=Later(then, at), **FOUR)
    assert (result.outcome, gated(result.folder)) == ("finished", [{}] * 4)
    assert any("the gate has no loss on held-out data" in note for note in notes)


def test_one_that_changes_parameters_changes_none_of_the_server(served):
    def grabs(model):
        found = size(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1e9)
        return found

    result, *_ = served(vector=flipped, gate=grabs, **FOUR)
    other, *_ = served(vector=flipped, gate=size, **FOUR)
    assert result.digest == other.digest


def test_one_that_draws_draws_alike_for_all_vectors_of_a_round(served):
    seen = []

    def draws(model):
        seen.append(float(torch.rand(())))
        return size(model)

    served(vector=flipped, gate=draws, **FOUR)
    rounds = [seen[1 + 5 * round : 6 + 5 * round] for round in range(4)]
    assert [len({*drawn}) for drawn in rounds] == [1] * 4
    assert len({*seen}) == 4


@pytest.mark.parametrize("gate", [fails, swaps, lambda model: None, lambda model: math.nan])
def test_one_that_fails_at_once_is_said_before_the_run(served, gate):
    with pytest.raises(RunError, match="gate`"):
        served(gate=gate, **FOUR)


def test_settings_that_go_with_it():
    module = torch.nn.Linear(2, 1)
    with pytest.raises(ConfigError, match="should be a function"):
        Server(module, workers=4, f=1, gate=0.1)
    with pytest.raises(ConfigError, match="needs a function of the program"):
        Server(module, workers=4, f=1, server__gate={"step": 0.1})
    with pytest.raises(ConfigError, match="with f = 0"):
        Server(module, workers=4, f=0, gate=size)
    server = Server(module, workers=4, f=1, gate=size, server__gate={"every": 5})
    assert server.config.server.gate.every == 5
