"""`varangian.lightning.Robust`: a rule in the strategy ddp, on real ranks."""

import json
import os
import pathlib
import subprocess
import sys
import warnings

import pytest
import torch
from tests.extent import patience

pytest.importorskip("lightning", reason="Lightning is not installed (pip install 'varangian[lightning]')")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as lightning

from varangian.lightning import Robust
from varangian.torch import Reduction

RANKS = pathlib.Path(__file__).with_name("ranks.py")


@pytest.mark.slow
@pytest.mark.exhaustive  # tests/torch keep the promise for the hook itself
@pytest.mark.parametrize("options", ["robust", "options"])
def test_a_wrong_rank_has_no_weight_and_parameters_are_the_same_on_all(options, tmp_path):
    """Also with `per_bucket`, an audit and weights."""
    ran = subprocess.run(
        [sys.executable, RANKS, tmp_path, options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patience(200),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "weights" in line]  # the first line is about the ranks
    assert len(steps) == 4
    assert all(step["weights"][1] == 0 for step in steps)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(3)]
    assert torch.equal(ranks[0], ranks[1])
    assert torch.equal(ranks[0], ranks[2])
    assert ranks[0].abs().max() < 10


@pytest.mark.filterwarnings("ignore")
def test_another_strategy_is_an_error(tmp_path):
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, max_steps=1, callbacks=[Robust()], default_root_dir=tmp_path
    )
    module = lightning.LightningModule()
    module.net = torch.nn.Linear(3, 1)
    module.training_step = lambda batch, _: module.net(batch).sum()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.1)
    with pytest.raises(ValueError, match="should have the strategy ddp"):
        trainer.fit(module, torch.utils.data.DataLoader(torch.rand(4, 3)))


def test_the_state_is_that_of_the_reduction():
    robust = Robust()
    assert robust.state_dict() == {}
    robust.load_state_dict({"reduction": {"version": 1}})
    assert robust._state == {"version": 1}


def test_the_momentum_of_one_rank_is_not_that_of_all():
    """A checkpoint has the state of rank 0 alone."""
    robust = Robust("median", momentum=0.9)
    robust.reduction = Reduction("median", momentum=0.9)
    state = robust.reduction.state_dict() | {"rank": 0, "momentum": {"weight": torch.ones(4)}}
    robust.reduction.load_state_dict(state)
    kept = robust.state_dict()["reduction"]
    assert (kept["rank"], kept["momentum"]) == (None, {})
    Reduction("median", momentum=0.9).load_state_dict(kept)


def test_an_option_that_there_is_not_is_an_error_at_once():
    with pytest.raises(TypeError, match="lgo"):
        Robust("krum", lgo="steps.jsonl")
