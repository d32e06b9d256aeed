"""The saved model of a run: the whole state, and it comes back."""

import sys

import pytest
import torch
from torch import nn

import varangian
from varangian.launch import RunError

MINE = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.frozen = nn.Linear(features, 8)
        self.frozen.requires_grad_(False)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.norm = nn.GroupNorm(2, 8)
        self.register_buffer("scale", torch.rand(3))
        self.register_buffer("steps", torch.tensor(7))
        self.out = nn.Linear(8, classes)

    def forward(self, x):
        return self.out(self.norm(self.second(self.first(self.frozen(x.flatten(1))))))

def build(features, classes):
    return Tied(features[0], classes)

def lazy(features, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.LazyLinear(classes))
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    (tmp_path / "tied_model.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("tied_model", None)


@pytest.fixture
def run(carried_out):
    result, _, _ = carried_out("model={custom: {target: 'tied_model:build'}}", "ema.reference_batch=8")
    return result


def test_the_state_fits_the_users_own_module(run):
    from tied_model import build  # type: ignore[import-not-found]

    state = varangian.load(run.folder, state=True)
    module = build(tuple(state["frozen.weight"].shape[1:]), len(state["out.bias"]))
    assert set(state) == set(module.state_dict())
    module.load_state_dict(state)
    assert torch.equal(module.frozen.weight, state["frozen.weight"])
    assert module.steps == 7


def test_the_model_comes_back_with_its_names_tied(run):
    model = varangian.load(run.folder)
    assert isinstance(model, nn.Module)
    assert not model.training
    assert model.first.weight is model.second.weight
    average = varangian.load(run.folder, ema=True)
    assert not torch.equal(average.out.weight, model.out.weight)
    assert torch.equal(average.frozen.weight, model.frozen.weight)


def test_lazy_layers_come_back(carried_out):
    result, _, _ = carried_out("model={custom: {target: 'tied_model:lazy'}}")
    state = varangian.load(result.folder, state=True)
    model = varangian.load(result.folder)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_run_that_ends_on_an_error_saves_its_parameters(small, tmp_path):
    notes = []

    def observe(record):
        if record.round == 2:
            raise RuntimeError("a bug of the caller")

    with pytest.raises(RuntimeError, match="a bug of the caller"):
        varangian.run(small(), observe=observe, note=notes.append)
    (folder,) = (tmp_path / "runs").iterdir()
    assert notes[-1] == f"the parameters after 3 rounds are in {folder}"
    assert isinstance(varangian.load(folder), nn.Module)
    assert not (folder / "result.json").exists()


def test_what_is_not_there_is_said(run, tmp_path):
    with pytest.raises(RunError, match=r"should be the folder of a run with parameters\.safetensors"):
        varangian.load(tmp_path)
    (run.folder / "parameters.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="should be a file of safetensors"):
        varangian.load(run.folder)
