"""Ranks for tests: real processes with a gloo group over this machine's loopback."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.extent import patience

# Processes are forked from one that has imported torch: each would take seconds for that by itself.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", __name__])  # DDP imports the second


def on_ranks(n: int, act: Callable[..., Any], folder: Path, *given: Any) -> list[Any]:
    """What `act(rank, *given)` returns on each of n ranks; an error there is one here."""
    store = folder / f"store-{len([*folder.iterdir()])}"
    ranks = [CONTEXT.Process(target=_rank, args=(rank, n, store, act, given)) for rank in range(n)]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(patience(60))
        assert [rank.exitcode for rank in ranks] == [0] * n
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    found = [pickle.loads(_answer(store, rank).read_bytes()) for rank in range(n)]
    errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(found) if error is not None]
    assert not errors, "\n".join(errors)
    return [answer for answer, _ in found]


def _answer(store: Path, rank: int) -> Path:
    return store.with_name(f"{store.name}-rank-{rank}")


def _rank(rank: int, n: int, store: Path, act: Callable[..., Any], given: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)
    answer, error = None, None
    try:
        answer = act(rank, *given)
    except BaseException:
        error = traceback.format_exc()
    _answer(store, rank).write_bytes(pickle.dumps((answer, error)))
    if error is None:
        dist.barrier()
        dist.destroy_process_group()
