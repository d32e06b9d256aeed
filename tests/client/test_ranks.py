"""A worker of several processes, as its page has it."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch
from tests.client.rig import model, serving
from tests.extent import patience

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import sys
import torch
from torch import nn
import varangian

rank, address, token, store = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
connect = varangian.connect
varangian.connect = lambda server, model, certs: connect(address, model, name=certs, token=token)
torch.manual_seed(rank)
module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
model, device = nn.parallel.DistributedDataParallel(module), "cpu"
batches = iter(torch.rand(9, 5, 3))
loss_of = lambda model, batch: (model(batch) - 1).square().mean()
"""


@pytest.mark.slow
@pytest.mark.exhaustive  # what a worker does with a wrapped module is in test_model.py
def test_processes_of_distributed_data_parallel_are_one_worker(tmp_path):
    page = (ROOT / "docs/how-to/own-loop.md").read_text()
    (loop,) = re.findall(
        r"test_ranks.py runs it in two processes -->\n```python\n(.*?)```", page, re.DOTALL
    )
    shown = "\nfor name, p in module.named_parameters(): print(name, p.flatten().tolist())\n"
    (tmp_path / "program.py").write_text(PROGRAM + loop + shown)
    with serving(model(), lr=0.25) as rig:
        ranks = [
            subprocess.Popen(
                [
                    sys.executable,
                    "program.py",
                    str(rank),
                    rig.address,
                    rig.token(),
                    str(tmp_path / "store"),
                ],
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        try:
            said = [rank.communicate(timeout=patience(60))[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert said[0] == said[1]
    assert sorted(rig.rows) == [0, 1, 2]
    assert all(torch.count_nonzero(row["w00"]) > 0 for row in rig.rows.values())
