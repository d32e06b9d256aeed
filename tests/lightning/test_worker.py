"""`varangian.lightning.Worker`: a real Trainer as a worker of a real server."""

import warnings

import pytest
import torch
from tests.client.rig import flat_gradient, serving
from torch import nn

pytest.importorskip("lightning", reason="Lightning is not installed (pip install 'varangian[lightning]')")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as lightning
    from lightning.pytorch.plugins import MixedPrecision

from varangian import ClientError
from varangian.lightning import Worker

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has many
DATA = torch.arange(48.0).reshape(16, 3) / 48


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Module(lightning.LightningModule):
    def __init__(self, spoil=(), optimizers="adam", manual=False):
        super().__init__()
        self.net = net()
        self.spoil, self.kind, self.seen = spoil, optimizers, []
        self.automatic_optimization = not manual

    def loss(self, batch):
        return (self.net(batch) - 1).square().mean()

    def training_step(self, batch, batch_idx):
        self.seen.append((batch, nn.utils.parameters_to_vector(self.net.parameters()).detach().clone()))
        loss = self.loss(batch) * (float("inf") if batch_idx in self.spoil else 1)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return None
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters())
        if self.kind == "schedule":
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]
        if self.kind == "two":
            return [torch.optim.Adam(self.net[0].parameters()), torch.optim.Adam(self.net[2].parameters())]
        return None if self.kind == "none" else optimizer


def trainer(tmp_path, *callbacks, **options):
    options = {"max_epochs": 10} | options
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[*callbacks],
        **options,
    )


def loader(size=4):
    return torch.utils.data.DataLoader(DATA, batch_size=size)


def worker(rig, **options):
    return Worker(rig.address, "net", token=rig.token(), name="w00", **options)


def gradient_of(at, *batches, clip=None):
    """The mean gradient over batches at some parameters."""
    module = Module()
    nn.utils.vector_to_parameters(at, module.net.parameters())
    for batch in batches:
        (module.loss(batch) / len(batches)).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(module.net.parameters(), clip)
    return flat_gradient(module.net)


@pytest.mark.parametrize("kind", ["adam", "none", "schedule", "manual"])
def test_a_trainer_pulls_and_pushes_in_the_place_of_steps(kind, tmp_path):
    module, outcomes = Module(optimizers=kind, manual=kind == "manual"), []
    with serving(net(), rounds=6) as rig:
        fit = trainer(tmp_path, callback := worker(rig, on_outcome=outcomes.append))
        fit.fit(module, loader())
    assert len(outcomes) == 6
    assert all(outcomes)
    assert callback.outcome.round == 5
    at = torch.zeros(rig.layout.numel)
    for round in range(6):
        batch, parameters = module.seen[round]
        assert torch.equal(parameters, at)  # those of the server, and no step of Adam
        assert torch.allclose(rig.rows[round]["w00"], gradient_of(at, batch), atol=1e-7)
        at = at - rig.rows[round]["w00"]
    assert fit.should_stop
    assert len(module.seen) == 7  # one more batch, in which the end was heard of
    assert fit.callback_metrics["varangian/accepted"] == 1


@pytest.mark.parametrize("least", [{"min_epochs": 8}, {"min_steps": 30}])
def test_training_ends_with_the_run_before_the_least_that_the_trainer_was_asked_for(least, tmp_path):
    module = Module()
    with serving(net(), rounds=3) as rig:
        fit = trainer(tmp_path, callback := worker(rig), **least)
        fit.fit(module, loader())
    assert callback.reason
    assert len(module.seen) == 4  # one more batch, in which the end was heard of
    loop = fit.fit_loop
    assert (loop.min_epochs, loop.min_steps) == (least.get("min_epochs", 1), least.get("min_steps"))


def test_gradients_are_accumulated_and_clipped(tmp_path):
    module = Module()
    with serving(net(), rounds=3) as rig:
        trainer(tmp_path, worker(rig), accumulate_grad_batches=2, gradient_clip_val=0.1).fit(
            module, loader()
        )
    for round in range(3):
        batches = [batch for batch, _ in module.seen[2 * round : 2 * round + 2]]
        at = module.seen[2 * round][1]
        assert torch.equal(module.seen[2 * round + 1][1], at)
        assert torch.allclose(rig.rows[round]["w00"], gradient_of(at, *batches, clip=0.1), atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_whose_gradients_overflow_is_declined(scaled, tmp_path):
    module = Module(spoil=(1,))
    plugins = {}
    if scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        plugins = {"plugins": MixedPrecision("16-mixed", "cpu", scaler)}
    with serving(net(), rounds=3, shortfall="skip") as rig:
        trainer(tmp_path, worker(rig), **plugins).fit(module, loader())
    assert [*rig.rows] == [0, 2]
    assert [*rig.records[1].declined] == ["w00"]
    at = module.seen[2][1]
    assert torch.allclose(
        rig.rows[2]["w00"], gradient_of(at, module.seen[2][0]), atol=2e-3 if scaled else 1e-6
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "two"}, "one optimizer or none. Found 2"),
        ({"module": "nte"}, "path of a part of Module. Found 'nte'"),
    ],
)
def test_what_cannot_be_is_said(options, words, tmp_path):
    with serving(net()) as rig:
        callback = Worker(rig.address, options.get("module", "net"), token=rig.token(), name="w00")
        module = Module(optimizers=options.get("kind", "adam"), manual="kind" in options)
        with pytest.raises(ValueError, match=words):
            trainer(tmp_path, callback).fit(module, loader())


def test_another_model_than_the_servers_is_an_error_and_the_connection_ends(tmp_path):
    with serving(nn.Linear(3, 3)) as rig:
        callback = worker(rig)
        with pytest.raises(ClientError):
            trainer(tmp_path, callback).fit(Module(), loader())
        assert callback.reason == ""


@pytest.mark.parametrize("kind", ["adam", "none"])
def test_a_trainer_goes_on_from_its_checkpoint(kind, tmp_path):
    with serving(net(), rounds=5) as rig:
        first = trainer(tmp_path, worker(rig), max_steps=2)
        first.fit(Module(optimizers=kind), loader())
        first.save_checkpoint(tmp_path / "half.ckpt")
        again = trainer(tmp_path, callback := worker(rig))
        again.fit(Module(optimizers=kind), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert {*rig.rows} == {0, 1, 2, 3, 4}
    assert callback.outcome.round == 4
    assert again.global_step >= 5


def test_an_error_in_the_loop_ends_the_connection(tmp_path):
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise RuntimeError("spilt")
            return super().training_step(batch, batch_idx)

    with serving(net()) as rig:
        callback = worker(rig)
        with pytest.raises(RuntimeError, match="spilt"):
            trainer(tmp_path, callback).fit(Failing(), loader())
        assert callback._steps.worker is None
