"""The module of a program as the model of a run: scores, and what an evaluation may do."""

import math

import numpy as np
import pytest
import torch
from tests.serving.own import net
from torch import nn

from varangian.plugins import InputError
from varangian.serving.own_module import OwnModule


def evaluated(returned, module=None):
    """The scores where the function of a program returns this."""
    own = OwnModule(net() if module is None else module, lambda model: returned)
    own.rehearse(own.initial())
    return own.evaluate(own.initial())


@pytest.mark.parametrize(
    "value", [0.25, 1, True, torch.tensor(0.25), torch.tensor([0.25]), np.float32(0.25)]
)
def test_a_number_of_any_kind_is_the_score(value):
    assert evaluated(value) == {"score": float(value)}


def test_numbers_by_name_keep_their_order_and_may_be_infinite():
    found = evaluated({"loss": math.inf, "top5": torch.tensor(0.5), "accuracy": np.float64(0.25)})
    assert list(found.items()) == [("loss", math.inf), ("top5", 0.5), ("accuracy", 0.25)]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "should return a number, or a mapping of names to numbers .* Found NoneType"),
        ((0.1, 0.9), "Found tuple"),
        ({"accuracy": "high"}, "Found str for 'accuracy'"),
        ({"accuracy": None}, "Found NoneType for 'accuracy'"),
        ({3: 1.0}, "Found the name 3"),
        ({"round": 1.0}, "names of their own, that can be printed. Found 'round'"),
        ({"a\nb": 1.0}, r"can be printed. Found 'a\\nb'"),
        ({"x" * 9999: "y"}, "Found"),
        (torch.zeros(2), "Found Tensor"),
        (torch.tensor(1j), "Found Tensor"),
        ({f"s{i}": 0.0 for i in range(300)}, "at most 200 scores. Found 300"),
    ],
)
def test_what_is_no_score_is_named(returned, said):
    with pytest.raises(InputError, match=said) as error:
        evaluated(returned)
    assert len(str(error.value)) < 500


def test_scores_keep_their_names():
    """Columns of metrics.csv are those of the first evaluation."""
    returned = [{"a": 1.0, "b": 2.0}, {"a": 3.0, "c": 4.0}, {"a": 3.0, "c": 4.0}]
    own, told = OwnModule(net(), lambda model: returned.pop(0)), []
    own.tell = told.append
    own.rehearse(own.initial())
    assert own.score_names == ("a", "b")
    for _ in range(2):
        found = own.evaluate(own.initial())
        assert found["a"] == 3.0
        assert found.keys() == {"a", "b"}
        assert math.isnan(found["b"])
    (said,) = told
    assert "should return the same names as before the first round. Found also c" in said


def test_an_evaluation_must_leave_the_parameters_in_their_places():
    def replaces(model):
        model[0].weight = nn.Parameter(torch.zeros(3, 5))
        return 1.0

    own = OwnModule(net(), replaces)
    with pytest.raises(InputError, match="should leave the parameters of the model in their places"):
        own.rehearse(own.initial())


def test_sys_exit_in_an_evaluation_ends_no_server():
    def leaves(model):
        raise SystemExit(3)

    own = OwnModule(net(), leaves)
    with pytest.raises(InputError, match=r"it called sys.exit\(3\)"):
        own.rehearse(own.initial())


def test_names_inside_compiled_parts_are_plain_on_the_wire_and_their_own_in_the_state():
    class Compiled(nn.Module):
        """As `torch.compile` wraps a part of a module."""

        def __init__(self):
            super().__init__()
            self._orig_mod = net()

    own = OwnModule(nn.Sequential(Compiled()), None)
    assert [name for name, _ in own.layout.entries][:2] == ["0.0.weight", "0.0.bias"]
    with own.model_state(own.initial() + 1) as state:
        assert own.state_names == tuple(state)
        assert torch.equal(torch.cat([state[name].flatten() for name in state]), own.initial())
