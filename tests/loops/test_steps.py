"""Rounds of a server as steps of a loop that knows only an optimizer, over real sockets."""

import pytest
import torch
from tests.client.rig import flat_gradient, model, serving

from varangian import ClientError
from varangian.loops.steps import Connection, RemoteOptimizer, RemoteSteps

X = torch.arange(12.0).reshape(4, 3) / 12


def loss_of(module):
    return (module(X) - 1).square().mean()


def connected(rig, module, steps):
    steps.connect(Connection(rig.address, name="w00", token=rig.token()), module)
    return RemoteOptimizer(module, steps)


def test_a_step_pushes_what_two_batches_add_up_and_ends_with_the_run():
    module, steps, outcomes = model(), None, []
    steps = RemoteSteps(outcomes.append)
    with serving(module) as rig:
        optimizer, sent = connected(rig, module, steps), []
        for _ in range(5):
            for _ in range(2):
                running = steps.before()
                loss_of(module).backward()
            sent.append(flat_gradient(module))
            optimizer.step()
            steps.skipped()  # nothing was
        assert not running
        assert steps.over
        steps.close()
        steps.close()
        assert steps.reason == "all 3 rounds are done"
    assert len(outcomes) == 3
    assert all(torch.equal(rig.rows[round]["w00"], sent[round]) for round in range(3))


def test_a_closure_computes_and_a_step_that_is_not_taken_is_declined():
    module, steps = model(), RemoteSteps()
    with serving(module, shortfall="skip") as rig:
        optimizer = connected(rig, module, steps)
        for round in range(3):
            assert steps.before()
            if round == 1:
                steps.skipped()
                continue

            def closure():
                loss = loss_of(module)
                loss.backward()
                return loss

            assert optimizer.step(closure) is not None
        steps.close()
    assert [*rig.rows] == [0, 2]
    assert "took no step" in rig.records[1].declined["w00"]


def test_a_step_without_a_batch_is_an_error():
    module, steps = model(), RemoteSteps()
    with serving(module) as rig:
        optimizer = connected(rig, module, steps)
        with pytest.raises(ClientError, match="should follow a batch"):
            optimizer.step()
        steps.close()
        optimizer.step()  # of no run
