"""A simulation whose workers compute together."""

import json

import pytest
from torch import nn

BATCHED = "simulate.gradients=batched"
ATTACKED = ("byzantine.attack=alie", "byzantine.count=1", "byzantine.knows=all")
WAYS = {
    "sync": ["participation=sync", *ATTACKED],
    "async": ["participation=async", *ATTACKED, "worker.momentum=0"],
    "fedavg": ["participation={fedavg: {participants: 4}}"],
    "fedlaavg": ["participation={fedlaavg: {participants: 3}}"],
    "asap": ["participation={asap: {graph: complete}}"],
}
STRAGGLER = "delays={steps: {step: 1, factor: 10, workers: [0]}}"


class Branch(nn.Linear):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


def branch(features, classes):
    return Branch(features[0], classes)


@pytest.mark.whole
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_run_but_for_rounding(carried_out, way):
    settings = [*WAYS[way], STRAGGLER, "rounds=8", "evaluate.every=1"]
    exact, records, _ = carried_out(*settings)
    (batched, found, notes), (again, *_) = (carried_out(*settings, BATCHED) for _ in range(2))
    assert not any("one by one" in note for note in notes)
    assert batched.outcome == exact.outcome == "finished"
    assert batched.digest == again.digest
    assert [record.loss for record in found] == pytest.approx([record.loss for record in records], rel=1e-4)
    assert [(record.missing, record.ages) for record in found] == [
        (record.missing, record.ages) for record in records
    ]


def test_a_model_that_cannot_is_computed_exactly_and_a_note_says_so(carried_out):
    model = f"model={__name__}:branch"
    exact, _, _ = carried_out(model)
    batched, _, (note,) = carried_out(model, BATCHED)
    assert batched.digest == exact.digest
    assert note.startswith("workers compute one by one, as with simulate.gradients=exact: ")
    assert json.loads((batched.folder / "manifest.json").read_text())["gradients"] == note


def test_who_diverges_declines_and_convicts_nobody(carried_out):
    result, records, _ = carried_out("optimizer.lr=3e38", "rounds=20", "worker.momentum=0", BATCHED)
    assert all(record.dropped == {} and record.missing == () for record in records)
    assert "the model has diverged" in result.reason
