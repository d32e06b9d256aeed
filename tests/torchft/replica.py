"""One replica of torchft that trains a small model: the program of `test_ddp`, which starts several."""

import json
import sys
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torchft.manager import Manager
from torchft.process_group import ProcessGroupGloo

from varangian.torchft import DistributedDataParallel


def main(place, replicas, lighthouse, steps, spec, fault):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(20, 300), nn.Tanh(), nn.Linear(300, 3))
    learn = torch.optim.SGD(model.parameters(), lr=0.1)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=60)),
        load_state_dict=model.load_state_dict,
        state_dict=model.state_dict,
        min_replica_size=replicas,
        use_async_quorum=False,
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=lighthouse,
        replica_id=f"replica{place}",
        hostname="127.0.0.1",
        timeout=timedelta(seconds=60),
        quorum_timeout=timedelta(seconds=120),
    )
    records = []
    spec, _, f = spec.partition(":")
    wrapped = DistributedDataParallel(
        manager,
        model,
        spec,
        int(f or 1),
        on_step=records.append,
        audit=0.5 if fault in ("scaled", "lies") else 0.0,
        on_suspect=print,
        weight={"weights": 2 - (place == 0), "heavy": 9 if place == 0 else 2}.get(fault),
        bucket_cap_mb=0.005,
    )
    if fault == "lies" and place == 0:
        own = wrapped.reduction._update

        def twice(group, settled, decision):
            bent = SimpleNamespace(
                distances=decision.distances,
                certain=decision.certain,
                apply=lambda rows, reference: decision.apply(rows, reference) * 2,
            )
            own(group, settled, bent)

        wrapped.reduction._update = twice
    kept, tries = 0, 0
    while kept < steps and tries < 3 * steps:
        tries += 1
        rng = torch.Generator().manual_seed(100 * manager.current_step() + place)
        manager.start_quorum()
        learn.zero_grad()
        loss = wrapped(torch.randn(16, 20, generator=rng)).square().mean()
        bad = fault if place == 0 or (fault == "two" and place == 1) else ""
        factor = {"nan": float("nan"), "two": float("nan"), "scaled": -1000.0}.get(bad, 1.0)
        (loss * factor).backward()
        if manager.should_commit():
            learn.step()
            kept += 1
    digest = float(torch.cat([p.detach().flatten() for p in model.parameters()]).double().sum())
    print(
        json.dumps(
            {
                "kept": kept,
                "tries": tries,
                "sum": digest,
                "dropped": [record.dropped for record in records],
                "weights": [record.weights for record in records],
                "accused": [record.accused for record in records],
                "far": [sorted(record.far) for record in records],
            }
        ),
        flush=True,
    )
    manager.shutdown(wait=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5], sys.argv[6])
