"""A loop of a user whose batches follow from the round; it prints each round before it pushes."""

import sys

import torch
from torch import nn

import varangian


def main(address, name, token, state):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with varangian.connect(address, model, name=name, token=token, state=state) as worker:
        while worker.pull():
            batch = torch.Generator().manual_seed(100 * worker.round + int(name[1:]))
            inputs = torch.rand(8, 64, generator=batch)
            targets = torch.randint(0, 10, (8,), generator=batch)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            print(worker.round, flush=True)
            worker.push()
        print(worker.reason, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
