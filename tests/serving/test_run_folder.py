"""The run folder, the page and the commands of a run whose server a program has."""

import json
import re
import urllib.request

import pytest
import torch
from tests.extent import patience
from tests.serving.own import net, workers
from torch import nn

import varangian
from varangian.cli.main import main
from varangian.client.training.model import ModelVector
from varangian.launch.result import RunError
from varangian.worker.training.flat import flatten


def length(model):
    return {"length": flatten(model).norm()}


def test_the_page_has_the_scores(tmp_path):
    module, notes, pages = net(), [], []

    def on_round(record):
        (url,) = (note.rpartition(" ")[2] for note in notes if "the page of the run is" in note)
        with urllib.request.urlopen(f"{url}state.json") as answer:
            pages.append(json.load(answer))

    server = varangian.Server(
        module, workers=2, f=0, rounds=3, aggregator="mean", output=str(tmp_path), server__metrics_port=0,
        evaluate=length, evaluate__every=1, on_round=on_round,
        optimizer=lambda parameters: torch.optim.Adam(parameters, 0.1),
    )  # fmt: skip
    with server.start(note=notes.append) as running:
        proofs = {name: server.token(name) for name in ("w00", "w01")}
        with workers(running.address, proofs, module):
            running.result(patience(60))
    assert pages, notes
    assert "length" in pages[0]["scores"]
    assert pages[0]["facts"]["model, data"] == "Sequential (own), own"
    assert pages[0]["facts"]["optimizer"] == "Adam (own), learning rate 0.1"


def test_commands_read_the_folder(served, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result, *_ = served(evaluate=length)
    assert main(["status", str(result.folder)]) == 0
    assert "length" in capsys.readouterr().out
    assert main(["audit", str(result.folder)]) == 0
    assert "4 lines of 4 rounds" in capsys.readouterr().out
    assert main(["rewind", str(result.folder)]) in (0, 1)
    assert varangian.read(result.folder).metrics == result.metrics


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--resume", "{folder}", "rounds=9"],
        *(
            pytest.param(command, marks=pytest.mark.exhaustive)
            for command in (
                ["run", "{folder}/config.yaml"],
                ["server", "{folder}/config.yaml"],
                ["server", "--resume", "{folder}", "rounds=9"],
            )
        ),
    ],
)
def test_commands_that_need_the_model_refuse_it(served, capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VARANGIAN_SECRET", "0123456789abcdef")
    module = net()
    result, *_ = served(module)
    assert main([part.format(folder=result.folder) for part in command]) != 0
    said = capsys.readouterr().err
    assert re.search(r"varangian: `data` own: .* Only the one that has served it goes on with it", said)
    again, *_ = served(module, rounds=5, start={"resume": result.folder})
    assert (again.rounds, again.folder) == (5, result.folder)


def test_a_run_goes_on_in_its_folder_with_its_settings(served, tmp_path):
    average = {"decay": 0.9, "reference_batch": 10}
    half, *_ = served(server__checkpoint={"every": 1}, ema=average, evaluate=length)
    server = varangian.Server(net(), rounds=6, evaluate=length)
    module = net(seed=4)
    with server.start(resume=half.folder) as running:
        names = ("w00", "w01", "w02")
        with workers(running.address, {name: running.token(name) for name in names}, module) as (seen, _):
            result = running.result(patience(60))
    assert seen["w00"] == [4, 5]
    assert {"length", "ema_length"} <= set(result.metrics)
    assert varangian.load(result.folder, ema=True).keys() == module.state_dict().keys()


def test_the_newest_run_goes_on_by_itself(served):
    first, *_ = served(rounds=2, server__checkpoint={"every": 1}, start={"resume": True})
    second, _, seen, _, notes = served(rounds=4, server__checkpoint={"every": 1}, start={"resume": True})
    assert second.folder == first.folder
    assert seen["w00"] == [2, 3]
    assert any("goes on with round 2 of 4" in note for note in notes)


def test_a_run_without_rounds_left_is_read(served):
    first, *_ = served(rounds=2)
    server = varangian.Server(net())
    assert server.serve(resume=first.folder).digest == first.digest
    with pytest.raises(RunError, match=r"all 2 rounds of .* are done"):
        server.start(resume=first.folder)


def test_another_module_than_before_is_refused(served):
    first, *_ = served(rounds=2, server__checkpoint={"every": 1})
    with pytest.raises(RunError, match="is of another model"):
        served(net(sizes=(5, 4, 2)), rounds=4, start={"resume": first.folder})


class Tied(nn.Module):
    """Two layers with one weight, a frozen parameter, a buffer, and half precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 3, dtype=torch.bfloat16), nn.Linear(3, 3, dtype=torch.bfloat16)
        self.b.weight = self.a.weight
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.norm = nn.BatchNorm1d(3)


@pytest.mark.parametrize("wrap", [lambda module: module, nn.DataParallel])
def test_modules_of_all_kinds_are_saved_whole_and_under_their_own_names(served, wrap):
    inner = Tied()
    layout = ModelVector(inner).layout
    names = [name for name, _ in layout.entries]
    assert names == ["a.weight", "a.bias", "b.bias", "norm.weight", "norm.bias"]
    result, *_ = served(wrap(inner), layout=layout, evaluate=lambda model: float(inner.a.bias.sum()))
    other = Tied()
    other.load_state_dict(varangian.load(result.folder))
    assert torch.equal(other.a.bias, inner.a.bias)
    assert other.b.weight is other.a.weight
    assert inner.a.weight.dtype == torch.bfloat16
