"""Steps on one fragment at a time."""

import pytest
import torch

from varangian.aggregators import Aggregator
from varangian.aggregators.rules.mean import Mean
from varangian.protos.layout import Fragments, Layout, LayoutError
from varangian.protos.payloads.encoding import put, take
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import OPTIMIZERS

LAYOUT = Layout((("a", (5, 4)), ("b", (4,)), ("c", (3, 5)), ("d", (2,)), ("e", (9,))))


def test_parameters_are_dealt_to_fragments_of_about_equal_size():
    split = Fragments(LAYOUT, 2)
    assert split.entries == [[0, 1, 3], [2, 4]]
    assert split.numels == [26, 24]
    vector, seen = torch.arange(50.0), torch.zeros(50)
    for slices in split.slices:
        put(seen, slices, take(vector, slices))
    assert torch.equal(seen, vector)
    assert [split.of(round) for round in range(4)] == [0, 1, 0, 1]
    assert Fragments(LAYOUT, 1).slices == [
        [slice(0, 20), slice(20, 24), slice(24, 39), slice(39, 41), slice(41, 50)]
    ]
    for count in (0, 6):
        with pytest.raises(LayoutError, match=f"should be at most 5, .* Found {count}"):
            Fragments(LAYOUT, count)


def test_the_fragments_that_have_changed_between_two_rounds():
    split = Fragments(LAYOUT, 3)
    assert split.changed(4, 4) == set()
    assert split.changed(4, 5) == {1}
    assert split.changed(4, 6) == {1, 2}
    assert split.changed(0, 100) == split.changed(7, 3) == {0, 1, 2}


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_each_fragment_has_steps_of_its_own(name):
    """As an optimizer of torch for each fragment, which knows nothing of the others."""
    spec = {"lr": 0.1} | ({"momentum": 0.9, "nesterov": True} if name == "sgd" else {})
    optimizer, split = OPTIMIZERS.build({name: spec}, ""), Fragments(LAYOUT, 2)
    start = torch.linspace(-1, 1, LAYOUT.numel)
    ours = Learner(
        start, Aggregator(Mean()), optimizer, rounds=9, seed=1, shapes=LAYOUT.shapes, fragments=split
    )
    single = [
        Learner(
            take(start, split.slices[fragment]),
            Aggregator(Mean()),
            optimizer,
            rounds=9,
            seed=1,
            shapes=[LAYOUT.shapes[entry] for entry in split.entries[fragment]],
        )
        for fragment in (0, 1)
    ]
    for round in range(6):
        fragment = split.of(round)
        row = torch.sin(torch.arange(float(split.numels[fragment])) + round)
        before = ours.parameters.clone()
        ours.step(round, {"w00": row}, {})
        single[fragment].step(round, {"w00": row}, {})
        other = split.slices[1 - fragment]
        assert torch.equal(take(ours.parameters, other), take(before, other))
        assert torch.equal(take(ours.parameters, split.slices[fragment]), single[fragment].parameters)
    assert ours.columns == 26
