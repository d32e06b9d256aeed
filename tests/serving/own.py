"""A program's model, its workers and their vectors, for tests of its server."""

import asyncio
import threading
from contextlib import contextmanager, suppress
from itertools import pairwise

import torch
from tests.extent import patience
from torch import nn

from varangian.worker.training.flat import layout_of
from varangian.worker.transport.client import Client, Finished


def net(seed=0, sizes=(5, 3, 2)):
    torch.manual_seed(seed)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def pull_to_zero(parameters, name, round):
    """The gradient of half the squared distance to 0, with noise of the worker's own."""
    noise = torch.Generator().manual_seed(1000 * round + int(name[1:]))
    return parameters + 0.01 * torch.randn(len(parameters), generator=noise)


async def work(address, name, proof, layout, vector, seen):
    proof = proof.partition(":")[2] if isinstance(proof, str) else proof
    async with Client(address, name, proof, layout) as client:
        await client.join()
        after = -1
        while not isinstance(pulled := await client.pull(after), Finished):
            after = pulled.round
            seen.setdefault(name, []).append(after)
            await client.push(after, vector(pulled.parameters.clone(), name, after))
        return pulled.reason


@contextmanager
def workers(address, proofs, module, vector=pull_to_zero, layout=None):
    """Workers in a thread, which end with the run; gives the rounds of each, and why they ended."""
    seen, reasons, layout = {}, {}, layout or layout_of(module)

    made = {}

    async def all_of_them():
        made.update(loop=asyncio.get_running_loop(), task=asyncio.current_task())
        ended = await asyncio.gather(
            *(work(address, name, proof, layout, vector, seen) for name, proof in proofs.items())
        )
        reasons.update(zip(proofs, ended, strict=True))

    def run():
        with suppress(asyncio.CancelledError):
            asyncio.run(all_of_them())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seen, reasons
    except BaseException:  # of a server that failed they would wait for the next one
        with suppress(KeyError, RuntimeError):
            made["loop"].call_soon_threadsafe(made["task"].cancel)
        raise
    finally:
        thread.join(patience(30))
    assert not thread.is_alive()
