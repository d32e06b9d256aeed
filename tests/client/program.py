"""A program of a user: loaders that fork, a fork that uses the worker, and an end without close()."""

import os
import sys
import threading
import traceback

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import varangian


def in_a_fork(work):
    """What an error says that the work raises in a fork of this process, which ends as any program does."""
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        try:
            work()
        except varangian.ClientError as error:
            os.write(writes, str(error).encode())
        except BaseException:
            traceback.print_exc()
        sys.exit(3)
    os.close(writes)
    with open(reads) as said:
        text = said.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    return text


def main(address, token):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = TensorDataset(torch.rand(8, 3), torch.rand(8, 2))
    worker = varangian.connect(address, model, name="w00", token=token)
    loader = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="fork")
    for x, y in loader:
        assert worker.pull()
        (model(x) - y).square().mean().backward()
        print("pushed", worker.round, worker.push().accepted)
    print("fork:", in_a_fork(worker.pull))
    print("fork:", in_a_fork(lambda: varangian.connect(address, model, name="w00", token=token)))
    assert worker.pull()
    print("pushed", worker.round, worker.push(worker.parameters).accepted)
    print("threads:", [one.daemon for one in threading.enumerate() if one.name == "varangian-client"])


if __name__ == "__main__":
    main(*sys.argv[1:])
