"""A user's model as a vector: which models, which parameters, which gradients."""

import pytest
import torch
from tests.client.rig import flat_gradient, model
from torch import nn

from varangian import ClientError
from varangian.client.training.model import ModelVector

X = torch.arange(12.0).reshape(4, 3) / 12


def test_the_layout_has_what_trains_in_order_and_a_tied_parameter_once():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    module[1].weight = module[0].weight
    module[2].bias.requires_grad_(False)
    vector = ModelVector(module)
    assert vector.layout.entries == (
        ("0.weight", (3, 3)),
        ("0.bias", (3,)),
        ("1.bias", (3,)),
        ("2.weight", (3,)),
    )
    frozen = module[2].bias.clone()
    vector.load(torch.arange(18.0))
    assert module[1].weight.flatten().tolist() == list(range(9))
    assert module[1].bias.tolist() == [12.0, 13.0, 14.0]
    assert torch.equal(module[2].bias, frozen)
    module(X).sum().backward()
    assert torch.equal(vector.gradient()[0], flat_gradient(module)[:18])


def test_a_parameter_that_is_frozen_or_unused_later_has_zeros():
    module = nn.ModuleDict({"used": nn.Linear(3, 2), "spare": nn.Linear(3, 2)})
    vector = ModelVector(module)
    module["used"].bias.requires_grad_(False)
    module["used"](X).sum().backward()
    flat, unused = vector.gradient()
    assert unused == ("used.bias", "spare.weight", "spare.bias")
    assert torch.equal(flat[:6], module["used"].weight.grad.flatten())
    assert torch.count_nonzero(flat[6:]) == 0
    vector.clear_gradients()
    with pytest.raises(ClientError, match="Found none: call backward"):
        vector.gradient()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_parameters_are_rounded_on_their_way(dtype):
    module = nn.Linear(3, 2).to(dtype)
    vector = ModelVector(module)
    flat = torch.linspace(-1, 1, 8) / 3
    vector.load(flat)
    assert module.weight.dtype == dtype
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), flat.to(dtype))
    module(X.to(dtype)).sum().backward()
    gradient, _ = vector.gradient()
    assert gradient.dtype == torch.float32
    assert torch.equal(gradient, flat_gradient(module).float())


def test_parameters_of_several_types_are_one_vector():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2).bfloat16())
    vector = ModelVector(module)
    module[1](module[0](X).bfloat16()).sum().backward()
    expected = [p.grad.float().flatten() for p in module.parameters()]
    assert torch.equal(vector.gradient()[0], torch.cat(expected))


def test_parameters_that_were_replaced_are_found_again_with_the_next_pull():
    module = nn.Linear(3, 2)
    vector = ModelVector(module)
    module.load_state_dict(
        {name: torch.zeros_like(p) for name, p in module.named_parameters()}, assign=True
    )
    vector.take(torch.arange(8.0))
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), torch.arange(8.0))
    module(X).sum().backward()
    assert torch.equal(vector.gradient()[0], flat_gradient(module))
    module.load_state_dict(module.state_dict(), assign=True)  # between a pull and its push
    module(2 * X).sum().backward()
    assert torch.equal(vector.gradient()[0], flat_gradient(module))
    module.weight = nn.Parameter(torch.zeros(2, 4))
    with pytest.raises(
        ClientError, match=r"'weight' of shape \(2, 3\) .* Found the shape \(2, 4\): connect"
    ):
        vector.take(torch.arange(8.0))
    del module.weight
    with pytest.raises(ClientError, match="Found none: connect again"):
        vector.take(torch.arange(8.0))


def test_sparse_gradients_are_made_dense():
    module = nn.Embedding(5, 2, sparse=True)
    vector = ModelVector(module)
    (module(torch.tensor([1, 3, 3])) * 2.0).sum().backward()
    assert module.weight.grad.is_sparse
    flat, _ = vector.gradient()
    assert flat.view(5, 2)[:, 0].tolist() == [0, 2, 0, 4, 0]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)


class Compiled(nn.Module):
    """As torch.compile has the plain module in it."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module
        self.forward = module.forward


def compiled(module):
    return torch.compile(module, backend="eager")


def inner(compile):
    def wrap(module):
        module.layer = compile(module.layer)
        return module

    return wrap


WRAPPED = {
    "compiled": Compiled,
    "a part": inner(Compiled),
    "replicated": nn.DataParallel,
    "both": lambda module: Compiled(nn.DataParallel(module)),
}


def check_wrapped(wrap):
    module = Plain()
    plain = ModelVector(module).layout
    wrapped = wrap(module)
    vector = ModelVector(wrapped)
    assert vector.layout == plain
    vector.load(torch.arange(8.0))
    wrapped(X).sum().backward()
    expected = torch.cat([X.sum(0), X.sum(0), torch.full((2,), 4.0)])
    assert torch.allclose(vector.gradient()[0], expected)


@pytest.mark.parametrize("how", WRAPPED)
def test_a_wrapped_module_has_the_layout_of_the_plain_one(how):
    check_wrapped(WRAPPED[how])


@pytest.mark.exhaustive  # seconds to import; DataParallel above keeps the promise
def test_a_module_of_distributed_data_parallel_is_that_in_it():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        check_wrapped(nn.parallel.DistributedDataParallel)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.exhaustive  # seconds to import its compiler; `Compiled` above keeps the promise
@pytest.mark.parametrize("wrap", [compiled, inner(compiled)])
def test_a_module_of_torch_compile_has_the_layout_of_the_plain_one(wrap):
    check_wrapped(wrap)


def test_parameters_on_several_devices_meet_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).cuda())
    vector = ModelVector(module)
    vector.load(torch.arange(14.0))
    module[1](module[0](X).cuda()).sum().backward()
    flat, _ = vector.gradient()
    assert flat.device.type == "cpu"
    assert torch.equal(flat[8:], flat_gradient(module[1]).cpu())


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


class Expanded(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1).expand(4))


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        whole = torch.zeros(4)
        self.head, self.tail = nn.Parameter(whole[:3]), nn.Parameter(whole[2:])


class FullyShardedDataParallel(nn.Module):
    """By its name that of torch, of which a process has a part."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: None, "should be a torch.nn.Module. Found NoneType"),
        (nn.ReLU, "Found none with requires_grad"),
        (lambda: model().requires_grad_(False), "Found none with requires_grad"),
        (Complex, r"'weight' should be of real numbers. Found torch.complex64: keep torch.view_as_real"),
        (lambda: nn.LazyLinear(2), "lazy module: pass a batch"),
        (lambda: nn.Linear(2, 2, device="meta"), "device meta"),
        (lambda: nn.Linear(2, 0), "sizes >= 1"),
        (Expanded, "memory of its own"),
        (Views, "should not share memory"),
        (FullyShardedDataParallel, "whole in this process. Found FullyShardedDataParallel"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:Initializing zero-element")
def test_a_model_that_cannot_be_trained_over_a_server_is_refused(made, says):
    with pytest.raises(ClientError, match=says) as caught:
        ModelVector(made())
    assert "\n" not in str(caught.value)
