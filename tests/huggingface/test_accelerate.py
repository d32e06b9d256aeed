"""A loop of Accelerate with `varangian.connect`, as docs/how-to/lightning.md has it."""

import pytest
import torch
from tests.client.rig import flat_gradient, model, serving

accelerate = pytest.importorskip(
    "accelerate", reason="accelerate is not installed (pip install 'varangian[huggingface]')"
)

pytestmark = pytest.mark.filterwarnings("ignore")
DATA = torch.arange(48.0).reshape(16, 3) / 48


def loss_of(module, batch):
    return (module(batch) - 1).square().mean()


def test_the_loop_of_the_page():
    net, steps = model(), []
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    with serving(net) as rig:
        net, loader = accelerator.prepare(net, torch.utils.data.DataLoader(DATA, batch_size=4))
        with rig.connect(net) as worker:
            running = worker.pull()
            while running:
                for batch in loader:
                    with accelerator.accumulate(net):
                        accelerator.backward(loss_of(net, batch))
                        if accelerator.sync_gradients:
                            steps.append(flat_gradient(net))
                            worker.push(scaler=accelerator.scaler)
                            if not (running := worker.pull()):
                                break
    assert len(steps) == 3
    for round, gradient in enumerate(steps):
        assert torch.equal(rig.rows[round]["w00"], gradient)
