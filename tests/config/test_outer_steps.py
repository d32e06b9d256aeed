"""Settings of outer steps, and what they cannot go with."""

import pytest
from tests.config.kit import problems

from varangian.config import load
from varangian.config.build import task
from varangian.server.training.optimizers import AdamW

SPLIT = ["server.fragments=2", "worker.inner=adamw"]


def test_an_inner_optimizer_goes_without_momentum_unless_asked_for():
    assert load().worker.momentum == 0.9
    inner = load(None, ["worker.inner={adamw: {lr: 0.01}}", "worker.local_steps=5"])
    assert (inner.worker.momentum, inner.worker.inner) == (0.0, AdamW(lr=0.01))
    assert task(inner).inner == AdamW(lr=0.01)
    assert load(None, ["worker.inner=adamw", "worker.momentum=0.5"]).worker.momentum == 0.5
    assert load(None, ["worker.inner=null"]).worker.momentum == 0.9
    found = problems("worker.inner=adamw", "worker.local_lr=0.1")
    assert "should be null with worker.inner" in found["worker.local_lr"]
    assert "Did you mean 'adamw'" in problems("worker.inner=adam_w")["worker.inner"]


@pytest.mark.parametrize(
    ("setting", "path", "said"),
    [
        ("participation=async", "participation", "should be sync"),
        ("worker.momentum=0.5", "worker.momentum", "should be 0"),
        ("buffers=robust", "buffers", "should be local or refuse"),
        ("aggregator.per_block=true", "aggregator.per_block", "judged by all fragments"),
        ("worker.inner=null", "worker.inner", "should be an optimizer"),
    ],
)
def test_what_fragments_cannot_go_with(setting, path, said):
    assert task(load(None, SPLIT)).fragments == 2
    found = problems(*SPLIT, setting)[path]
    assert said in found
    assert "with server.fragments=2" in found
    assert "server.fragments=1" in found
    load(None, [*SPLIT, setting, "server.fragments=1"])
