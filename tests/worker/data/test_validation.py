"""The validation split."""

import pytest
import torch

from varangian.worker.data import DataError, Synthetic
from varangian.worker.data.base import Dataset
from varangian.worker.data.validation import hold_out


@pytest.fixture
def data():
    """Samples that are their own number, of three classes in turn."""
    x, y = torch.arange(60.0)[:, None], torch.arange(60) % 3
    return Dataset("numbers", 3, x, y, x[:5], y[:5])


def test_a_share_of_each_class_is_held_out_and_the_rest_is_left(data):
    split = hold_out(data, 0.25, seed=1)
    assert split.validation_y.bincount().tolist() == [5, 5, 5]
    both = torch.cat([split.train_x, split.validation_x]).flatten()
    assert both.sort().values.tolist() == [*range(60)]
    assert torch.equal(split.train_x.flatten().long() % 3, split.train_y)
    assert torch.equal(split.test_x, data.test_x)


def test_the_seed_decides_which_samples(data):
    one, again, other = (hold_out(data, 0.25, seed=seed).validation_x for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_targets_that_are_numbers_are_held_out_too():
    data = Dataset("numbers", None, torch.rand(10, 2), torch.rand(10), torch.rand(3, 2), torch.rand(3))
    assert len(hold_out(data, 0.3, seed=1).validation_x) == 3


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_no_part_may_be_empty(share):
    with pytest.raises(DataError, match=r"`evaluate\.validation` should leave samples for training and"):
        hold_out(Synthetic(train=12).load(), share, seed=1)
