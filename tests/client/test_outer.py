"""Outer steps of a loop of the user's own, over real sockets."""

import pytest
import torch
from tests.client.rig import model, serving
from tests.ports import free_port
from torch import nn

import varangian
from varangian import ClientError
from varangian.protos.contract import Terms
from varangian.protos.payloads.encoding import put, take
from varangian.protos.refusals import Refusal

X, Y = torch.arange(12.0).reshape(4, 3) / 12, torch.arange(8.0).reshape(4, 2) / 8


def flat(module):
    return torch.cat([p.detach().reshape(-1).float() for p in module.parameters()])


def inner_step(module, optimizer):
    optimizer.zero_grad()
    (module(X.to(next(module.parameters()).dtype)) - Y).square().mean().backward()
    optimizer.step()


def adamw(module):
    return torch.optim.AdamW(module.parameters(), 0.05)


def test_every_h_steps_the_way_is_pushed_and_the_inner_optimizer_goes_on():
    """Against a plain loop of torch: the server steps by 0.5, and the moments outlive outer steps."""
    module, plain = model(), model()
    inner, other = adamw(module), adamw(plain)
    with (
        serving(module, lr=0.5) as rig,
        rig.connect(module) as worker,
        varangian.outer(module, worker, every=4) as outer,
    ):
        x, outcomes = flat(module), []
        assert torch.equal(x, torch.zeros(worker.layout.numel))
        while outer.running:
            nn.utils.vector_to_parameters(x.clone(), plain.parameters())
            for step in range(4):
                assert outer.steps == step
                inner_step(module, inner)
                inner_step(plain, other)
                outcomes.append(outer.step())
            x = x - 0.5 * (x - flat(plain))
        assert worker.reason == "all 3 rounds are done"
        assert outer.step() is None
    assert [bool(one) for one in outcomes] == [False, False, False, True] * 3
    assert [one.round for one in outcomes if one] == [0, 1, 2]
    assert torch.allclose(rig.learner.parameters, x, atol=1e-6)


def test_outer_steps_without_worker_momentum_unless_asked_for():
    for momentum, factor in ((False, 1.0), (True, 0.5)):
        module = model()
        with serving(module, terms=Terms(momentum=0.5)) as rig, rig.connect(module) as worker:
            assert worker.momentum == 0.5
            with varangian.outer(module, worker, every=1, momentum=momentum) as outer:
                before = flat(module)
                inner_step(module, adamw(module))
                after = flat(module)
                outer.step()
        assert torch.allclose(rig.rows[0]["w00"], factor * (before - after))


def test_a_model_in_bfloat16_sends_its_own_steps_and_not_what_rounding_took():
    module = model().bfloat16()
    initial = torch.linspace(0.1, 0.9, flat(module).numel())  # of which bfloat16 has few
    with serving(module, lr=1e-30) as rig:
        rig.learner.parameters.copy_(initial)
        with rig.connect(module) as worker, varangian.outer(module, worker, every=2) as outer:
            assert not torch.equal(flat(module), initial)
            assert outer.step() is None
            assert outer.step()
            before = flat(module)
            optimizer = torch.optim.SGD(module.parameters(), 0.5)
            for _ in range(2):
                inner_step(module, optimizer)
                moved = before - flat(module)
                outer.step()
    assert not rig.rows[0]["w00"].any()
    assert moved.any()
    assert torch.equal(rig.rows[1]["w00"], moved)


def test_batch_norm_and_gradients_stay_the_loops_own():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    inner = adamw(module)
    with (
        serving(module) as rig,
        rig.connect(module) as worker,
        varangian.outer(module, worker, every=2) as outer,
    ):
        for _ in range(2):
            inner_step(module, inner)
            kept = module[1].running_mean.clone()
            gradient = module[0].weight.grad.clone()
            outer.step()
        assert torch.equal(module[1].running_mean, kept)
        assert int(module[1].num_batches_tracked) == 2
        assert torch.equal(module[0].weight.grad, gradient)


def test_mixed_precision_is_the_inner_loops_own():
    module = model()
    inner, scaler = torch.optim.SGD(module.parameters(), 0.1), torch.amp.GradScaler("cpu", 8.0)
    with (
        serving(module) as rig,
        rig.connect(module) as worker,
        varangian.outer(module, worker, every=2) as outer,
    ):
        before = flat(module)
        for _ in range(2):
            inner.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = (module(X) - Y).square().mean()
            scaler.scale(loss).backward()
            scaler.step(inner)
            scaler.update()
            moved = before - flat(module)
            outer.step()
    assert torch.equal(rig.rows[0]["w00"], moved)


def test_a_model_that_has_diverged_declines_and_goes_on_from_the_servers_parameters():
    module = model()
    with (
        serving(module, "w00", "w01", quorum=1) as rig,
        rig.connect(module) as worker,
        rig.connect(model(), "w01") as other,
        varangian.outer(module, worker, every=1) as outer,
    ):
        assert other.pull()
        assert other.push(torch.zeros(other.layout.numel))
        next(module.parameters()).data.fill_(float("nan"))
        outcome = outer.step()
        assert (outcome.accepted, outcome.code) == (False, "DECLINED")
        assert "after 1 inner steps are not finite" in outcome.reason
        assert outer.running
        assert torch.equal(flat(module), rig.learner.parameters)
        assert other.pull()
        assert other.push(torch.zeros(other.layout.numel))
        assert outer.step()


def test_with_a_delay_inner_steps_go_on_while_the_vector_travels():
    """From the round on the model is a mixture: alpha of its own parameters, the rest the server's."""
    module = model()
    with (
        serving(module, lr=0.5) as rig,
        rig.connect(module) as worker,
        varangian.outer(module, worker, every=4, delay=2, alpha=0.25) as outer,
    ):
        inner, walked, outcomes = torch.optim.SGD(module.parameters(), 0.1), [flat(module)], []
        for _ in range(7):
            inner_step(module, inner)
            walked.append(flat(module))
            outcomes.append(outer.step())
        mixed = walked[6].lerp(rig.learner.parameters, 0.75)
        assert [bool(one) for one in outcomes] == [False] * 5 + [True, False]
        plain = model()
        nn.utils.vector_to_parameters(mixed, plain.parameters())
        inner_step(plain, torch.optim.SGD(plain.parameters(), 0.1))
        assert torch.allclose(walked[7], flat(plain), atol=1e-6)
        server = rig.learner.parameters.clone()
        inner_step(module, inner)
        last = flat(module)
        assert outer.step() is None
        assert outer.sync()
    assert torch.allclose(rig.rows[0]["w00"], walked[0] - walked[4])
    assert torch.allclose(rig.rows[1]["w00"], server - last, atol=1e-7)


def test_fragments_are_pushed_in_turn_and_the_loop_keeps_its_own_in_the_others():
    module = model()
    with serving(module, lr=0.5, fragments=2, rounds=5) as rig, rig.connect(module) as worker:
        with varangian.outer(module, worker, every=4) as outer:
            inner, own, server = adamw(module), flat(module), rig.learner.parameters.clone()
            for round in range(4):
                slices = rig.split.slices[round % 2]
                for step in range(2):
                    assert torch.equal(flat(module), own)
                    inner_step(module, inner)
                    own = flat(module)
                    outcome = outer.step()
                    assert bool(outcome) == (step == 1)
                sent = take(server - own, slices)
                assert torch.equal(rig.rows[round]["w00"], sent)
                put(server, slices, take(server, slices) - 0.5 * sent)
                assert torch.allclose(rig.learner.parameters, server, atol=1e-7)
                server = rig.learner.parameters.clone()
                put(own, slices, take(server, slices))
        for wrong, says in [
            ({"every": 3}, "`every` should be a multiple of the 2 fragments of the run. Found 3"),
            ({"every": 4, "delay": 2}, "`delay` should be less than the 2 steps from one fragment"),
            ({"every": 4, "momentum": True}, "cannot be over pseudo-gradients of several fragments"),
        ]:
            with pytest.raises(ClientError, match=says):
                varangian.outer(module, worker, **wrong)


@pytest.mark.parametrize("fragments", [None, 2])
def test_a_server_that_goes_back_gives_all_of_its_parameters(fragments):
    module = model()
    split = {"fragments": fragments, "rounds": 9, "port": free_port()}
    with serving(module, terms=Terms(every=2, keep=2), **split) as first:
        worker = first.connect(module, momentum=0.0)
        outer = varangian.outer(module, worker, every=2)
        outer.__enter__()
        inner = adamw(module)
        while worker.round < 3:
            inner_step(module, inner)
            outer.step()
    resumed = Terms(epoch=1, resumed_at=2, every=2, keep=2)
    with serving(module, terms=resumed, first=2, **split) as second, worker:
        outcome = None
        while outcome is None:
            inner_step(module, inner)
            outcome = outer.step()
        assert not outcome
        assert (outcome.round, worker.round) == (3, 2)
        assert torch.equal(flat(module), second.learner.parameters)
        outcome = None
        while outcome is None:
            inner_step(module, inner)
            outcome = outer.step()
        assert outcome
        assert worker.round == 3
        outer.__exit__(None, None, None)


def test_a_loop_that_ends_early_lets_the_server_not_wait():
    module = model()
    with serving(module, shortfall="skip", deadline=1000.0) as rig, rig.connect(module) as worker:
        with varangian.outer(module, worker, every=5) as outer:
            inner_step(module, adamw(module))
            outer.step()
        assert not outer.running
        assert worker.pull()
    assert rig.records[0].declined == {"w00": "The loop ended after 1 of 5 inner steps."}


def test_sync_takes_the_outer_step_after_fewer_inner_ones():
    module = model()
    with (
        serving(module) as rig,
        rig.connect(module) as worker,
        varangian.outer(module, worker, every=100) as outer,
    ):
        assert outer.sync() is None
        before = flat(module)
        inner_step(module, adamw(module))
        moved = before - flat(module)
        outer.step()
        assert outer.sync()
        assert (outer.steps, worker.round) == (0, 1)
    assert torch.equal(rig.rows[0]["w00"], moved)


def test_a_vector_that_does_not_count_is_lost_and_the_loop_goes_on():
    module, other = model(), model()
    with (
        serving(module, "w00", "w01", quorum=1, deadline=0.2, rounds=1000) as rig,
        rig.connect(module) as late,
        rig.connect(other, "w01") as worker,
        varangian.outer(module, late, every=1) as outer,
    ):
        while worker.pull() and worker.round < 2:
            worker.push(torch.zeros(worker.layout.numel))
        inner_step(module, adamw(module))
        outcome = outer.step()
        assert not outcome
        assert outcome.code == Refusal.STALE.code
        assert outer.running
        assert torch.equal(flat(module), late.parameters)


def test_steps_outside_of_the_block_are_an_error_and_not_lost_in_silence():
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        outer = varangian.outer(module, worker, every=2)
        for call in (outer.step, outer.sync):
            with pytest.raises(ClientError, match="belongs inside of `with"):
                call()
        with outer:
            assert outer.step() is None
        with pytest.raises(ClientError, match="belongs inside of `with"):
            outer.step()


def test_arguments():
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        for wrong, says in [
            ({"every": 0}, "`every` should be a number of inner steps, at least 1. Found 0"),
            (
                {"every": 4, "delay": 4},
                "`delay` should be a number of inner steps from 0 to below `every`, 4. Found 4",
            ),
            ({"every": 4, "delay": 1, "alpha": 1.0}, "`alpha` should be a number from 0 to below 1"),
            ({"every": 4, "delay": None}, "`delay` should be a number of inner steps"),
            ({"every": 4, "delay": 0.5}, "`delay` should be a number of inner steps"),
            ({"every": 4, "alpha": "half"}, "`alpha` should be a number from 0 to below 1. Found 'half'"),
            ({"every": 4, "momentum": 0.9}, "`momentum` should be True or False. Found 0.9"),
        ]:
            with pytest.raises(ClientError, match=says):
                varangian.outer(module, worker, **wrong)
        with pytest.raises(ClientError, match="the one that the worker was connected with"):
            varangian.outer(model(), worker, every=1)
        with pytest.raises(ClientError, match=r"returns. Found str"):
            varangian.outer(module, "w00", every=1)
