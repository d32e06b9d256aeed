"""`varangian.huggingface.Worker`: a real Trainer, with a tiny model, as a worker of a real server."""

import warnings

import pytest
import torch
from tests.client.rig import flat_gradient, serving
from torch import nn

pytest.importorskip(
    "transformers", reason="transformers is not installed (pip install 'varangian[huggingface]')"
)
pytest.importorskip(
    "accelerate", reason="accelerate is not installed (pip install 'varangian[huggingface]')"
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from varangian.huggingface import Worker

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers has many
TEXT = torch.randint(0, 20, (12, 6), generator=torch.Generator().manual_seed(0))


def tiny():
    """A language model with random weights; its embedding is tied to its output."""
    torch.manual_seed(0)
    size = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**size, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0))


def arguments(tmp_path, **options):
    options = {"per_device_train_batch_size": 2, "num_train_epochs": 10, "max_grad_norm": 0.0} | options
    return TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=1,
        **options,
    )


def examples():
    return [{"input_ids": row, "labels": row} for row in TEXT]


class Seeing(Trainer):
    """Keeps the batches that it was given, and the parameters with which it computed."""

    def __init__(self, *args, spoil=(), **options):
        super().__init__(*args, **options)
        self.seen, self.spoil = [], spoil

    def compute_loss(self, model, inputs, *args, **options):
        self.seen.append(
            (inputs["input_ids"], nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        )
        loss = super().compute_loss(model, inputs, *args, **options)
        return loss * float("nan") if len(self.seen) - 1 in self.spoil else loss


def trained(rig, tmp_path, spoil=(), **options):
    model, outcomes = tiny(), []
    with Worker(rig.address, model, token=rig.token(), name="w00", on_outcome=outcomes.append) as worker:
        trainer = Seeing(
            model,
            arguments(tmp_path, **options),
            train_dataset=examples(),
            callbacks=[worker],
            optimizers=worker.optimizers,
            spoil=spoil,
        )
        trainer.train()
    return trainer, outcomes


def gradient_of(at, *batches, clip=None):
    model = tiny()
    nn.utils.vector_to_parameters(at, model.parameters())
    for batch in batches:
        (model(batch, labels=batch).loss / len(batches)).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    return flat_gradient(model)


def test_a_trainer_pulls_and_pushes_in_the_place_of_steps(tmp_path):
    with serving(tiny(), rounds=8, lr=0.1) as rig:
        trainer, outcomes = trained(rig, tmp_path)
    assert len(outcomes) == 8
    assert all(outcomes)
    at = torch.zeros(rig.layout.numel)
    for round in range(8):
        batch, parameters = trainer.seen[round]
        assert torch.allclose(parameters, at, atol=1e-7)
        assert torch.allclose(rig.rows[round]["w00"], gradient_of(parameters, batch), atol=1e-6)
        at = parameters - 0.1 * rig.rows[round]["w00"]
    assert len(trainer.seen) <= 9


def test_gradients_are_accumulated_and_clipped(tmp_path):
    with serving(tiny(), rounds=2) as rig:
        trainer, _ = trained(rig, tmp_path, gradient_accumulation_steps=3, max_grad_norm=0.05)
    for round in range(2):
        batches = [batch for batch, _ in trainer.seen[3 * round : 3 * round + 3]]
        at = trainer.seen[3 * round][1]
        assert torch.equal(trainer.seen[3 * round + 2][1], at)
        assert torch.allclose(rig.rows[round]["w00"], gradient_of(at, *batches, clip=0.05), atol=1e-6)


def test_gradients_that_are_not_finite_are_declined(tmp_path):
    with serving(tiny(), rounds=3, shortfall="skip") as rig:
        _, outcomes = trained(rig, tmp_path, spoil=(1,))
    assert [outcome.code for outcome in outcomes] == ["", "DECLINED", ""]
    assert [*rig.rows] == [0, 2]


def test_a_trainer_with_another_optimizer_is_an_error(tmp_path):
    model = tiny()
    with serving(model) as rig, Worker(rig.address, model, token=rig.token(), name="w00") as worker:
        trainer = Trainer(model, arguments(tmp_path), train_dataset=examples(), callbacks=[worker])
        with pytest.raises(ValueError, match=r"optimizers=worker\.optimizers"):
            trainer.train()
