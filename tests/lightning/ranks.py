"""Three ranks of a Trainer with the strategy ddp, one of which is wrong: `python ranks.py FOLDER WAY`."""

import os
import pathlib
import sys

import lightning.pytorch as lightning
import torch
from torch import nn

from varangian.lightning import Robust


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def training_step(self, batch, batch_idx):
        return (self.net(batch) - 1).square().mean() * (-1000.0 if self.global_rank == 1 else 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_end(self):
        flat = nn.utils.parameters_to_vector(self.parameters()).detach()
        torch.save(flat, pathlib.Path(sys.argv[1]) / f"rank-{self.global_rank}.pt")


def main(folder, rule):
    options = {"per_bucket": True, "audit": 0.5, "weights": [1.0, 1.0, 1.5]} if rule == "options" else {}
    robust = Robust("krum", f=0, log=pathlib.Path(folder) / "steps.jsonl", **options)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=3,
        strategy="ddp",
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[] if rule == "average" else [robust],
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.rand(48, 3), batch_size=4))


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    main(*sys.argv[1:])
