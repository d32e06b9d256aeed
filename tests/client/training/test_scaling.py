"""Mixed precision and clipping: unscaled gradients are sent, an overflow is declined."""

import pytest
import torch
from tests.client.rig import flat_gradient, model, serving
from torch import nn
from torch.amp import GradScaler

from varangian import ClientError

X, Y = torch.arange(12.0).reshape(4, 3) / 12, torch.arange(8.0).reshape(4, 2) / 8


def loss_of(module):
    return (module(X) - Y).square().mean()


def scaler(**options):
    return GradScaler("cpu", **{"init_scale": 1024.0, "growth_interval": 1} | options)


def gradient_of(module):
    """Of the same parameters without a scale."""
    other = model()
    other.load_state_dict(module.state_dict())
    loss_of(other).backward()
    return flat_gradient(other)


def test_gradients_are_sent_without_their_scale_and_the_scale_grows_after_an_update():
    module, scale, sent = model(), scaler(), []
    with serving(module) as rig, rig.connect(module) as worker:
        while worker.pull():
            scale.scale(loss_of(module)).backward()
            sent.append(gradient_of(module))
            assert worker.push(scaler=scale)
            scale.update()
    assert scale.get_scale() == 1024.0 * 8
    for round, gradient in enumerate(sent):
        assert torch.allclose(rig.rows[round]["w00"], gradient)


def test_an_overflow_is_declined_and_lowers_the_scale():
    module, scale, others = model(), scaler(), model()
    with (
        serving(module, "w00", "w01", quorum=1, rounds=2) as rig,
        rig.connect(module) as worker,
        rig.connect(others, "w01") as other,
    ):
        worker.pull()
        scale.scale(loss_of(module) * 3e38).backward()
        outcome = worker.push(scaler=scale)
        scale.update()
        assert (outcome.accepted, outcome.code) == (False, "DECLINED")
        assert outcome.reason.startswith("The gradients have NaN or infinity: they overflowed")
        assert scale.get_scale() == 512.0
        pulled_and_pushed(other, others)
        worker.pull()
        scale.scale(loss_of(module)).backward()
        assert worker.push(scaler=scale)
        scale.update()
        assert scale.get_scale() == 1024.0
        pulled_and_pushed(other, others)
        assert not worker.pull()
    assert rig.records[0].declined == {"w00": outcome.reason}
    assert [[*rows] for rows in rig.rows.values()] == [["w01"], ["w00", "w01"]]


def pulled_and_pushed(worker, module):
    assert worker.pull()
    loss_of(module).backward()
    assert worker.push()


@pytest.mark.parametrize(
    "whose",
    ["worker", pytest.param("optimizer", marks=pytest.mark.exhaustive)],  # the first is an optimizer's too
)
def test_gradients_that_were_unscaled_to_clip_them_are_sent_as_they_are(whose):
    module, scale = model(), scaler()
    with serving(module) as rig, rig.connect(module) as worker:
        for _ in range(3):
            worker.pull()
            scale.scale(loss_of(module)).backward()
            if whose == "worker":
                worker.unscale_(scale)
            else:
                scale.unscale_(torch.optim.SGD(module.parameters()))
            length = nn.utils.clip_grad_norm_(module.parameters(), 1e-3)
            assert worker.push(scaler=scale)
            scale.update()
            assert length > 1e-3
        worker.pull()
    assert all(abs(float(row["w00"].norm()) - 1e-3) < 1e-6 for row in rig.rows.values())
    assert scale.get_scale() == 1024.0 * 8


def test_parameters_in_float16_are_unscaled_in_float32():
    module, scale = model().half(), scaler()
    with serving(module) as rig, rig.connect(module) as worker:
        worker.pull()
        scale.scale((module(X.half()).float() - Y).square().mean()).backward()
        scaled = flat_gradient(module).float()
        assert worker.push(scaler=scale)
        with pytest.raises(ClientError, match="Torch says: Attempting to unscale FP16 gradients"):
            worker.unscale_(scaler_with_a_scale(scale))
        worker.pull()
    assert torch.equal(rig.rows[0]["w00"], scaled / 1024.0)


def scaler_with_a_scale(used):
    used.update()
    return used


def test_a_scaler_that_is_used_otherwise_is_an_error():
    module, scale = model(), scaler()
    with serving(module) as rig, rig.connect(module) as worker:
        worker.pull()
        loss_of(module).backward()
        with pytest.raises(ClientError, match=r"call scaler.scale\(loss\).backward\(\) before"):
            worker.push(scaler=scale)
        module.zero_grad()
        scale.scale(loss_of(module)).backward()
        assert worker.push(scaler=scale)
        worker.pull()
        scale.scale(loss_of(module)).backward()
        with pytest.raises(ClientError, match=r"updated after each push: call scaler.update\(\)"):
            worker.push(scaler=scale)


def test_what_is_no_scaler_is_an_error():
    module = model()
    with serving(module) as rig, rig.connect(module) as worker:
        worker.pull()
        loss_of(module).backward()
        for act in (worker.push, worker.push_async):
            with pytest.raises(ClientError, match=r"`scaler` should be a torch.amp.GradScaler. Found int"):
                act(scaler=3)
        with pytest.raises(ClientError, match=r"torch.amp.GradScaler. Found NoneType"):
            worker.unscale_(None)
        assert worker.push()  # the round is still to be answered


def test_a_scaler_that_is_disabled_changes_nothing():
    module, scale = model(), scaler(enabled=False)
    with serving(module) as rig, rig.connect(module) as worker:
        worker.pull()
        scale.scale(loss_of(module)).backward()
        expected = flat_gradient(module)
        worker.unscale_(scale)
        assert worker.push(scaler=scale)
        scale.update()
        worker.pull()
    assert torch.equal(rig.rows[0]["w00"], expected)
