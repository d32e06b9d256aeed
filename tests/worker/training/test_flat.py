import pytest
import torch
from torch import nn

from varangian.worker.training.flat import (
    LARGEST,
    DivergedError,
    ModelError,
    check_finite,
    check_model,
    flatten,
    layout_of,
    load,
)


def small():
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4, bias=False))


def test_layout_has_the_order_of_named_parameters():
    assert layout_of(small()).entries == (("0.weight", (2, 3)), ("0.bias", (2,)), ("2.weight", (4, 2)))


def test_flatten_and_load_are_inverse():
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0))
    module = small()
    load(module, vector)
    assert torch.equal(flatten(module), vector)
    assert torch.equal(module[0].weight, vector[:6].view(2, 3))
    assert torch.equal(module[2].weight, vector[8:].view(4, 2))


def test_neither_shares_memory_with_the_vector():
    vector = torch.zeros(16)
    module = small()
    load(module, vector)
    vector.fill_(1)
    flatten(module).fill_(2)
    assert torch.equal(flatten(module), torch.zeros(16))


@pytest.mark.parametrize("shape", [(15,), (17,), (1, 16), ()])
def test_load_refuses_another_length(shape):
    with pytest.raises(ValueError, match="16 numbers"):
        load(small(), torch.zeros(shape))


def test_a_shared_parameter_counts_once():
    module = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    module["b"].weight = module["a"].weight
    assert layout_of(module).entries == (("a.weight", (3, 3)),)


def test_frozen_parameters_stay_at_home():
    module = small()
    module[0].requires_grad_(False)
    kept = module[0].weight.clone()
    load(module, torch.ones(8))
    assert layout_of(module).entries == (("2.weight", (4, 2)),)
    assert torch.equal(module[0].weight, kept)


def test_layout_refuses_other_types():
    with pytest.raises(ModelError, match=r"float32.*'0.weight'.*float64"):
        layout_of(small().double())


def test_layout_refuses_a_model_without_parameters():
    with pytest.raises(ModelError, match="Found none"):
        layout_of(nn.ReLU())


def test_statistics_are_refused_by_name():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ModelError, match=r"1\.running_mean.*use GroupNorm"):
        check_model(module, lambda: module(torch.randn(5, 3)))


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("positions", torch.arange(3.0))

    def forward(self, x):
        return x + self.weight + self.positions


@pytest.mark.parametrize(
    "module",
    [small(), Positions(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))],
)
def test_constant_buffers_and_batch_statistics_are_welcome(module):
    check_model(module, lambda: module(torch.ones(5, 3)))


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 3.4e38, -3.4e38])
def test_what_the_server_could_not_keep_is_not_sent(number):
    vector = torch.zeros(1001)
    check_finite(vector)
    vector[1000] = number
    with pytest.raises(DivergedError, match="the model has diverged"):
        check_finite(vector)


def test_the_largest_numbers_survive_every_format():
    vector = torch.tensor([LARGEST, -LARGEST])
    check_finite(vector)
    assert vector.bfloat16().isfinite().all()
    check_finite(torch.empty(0))
