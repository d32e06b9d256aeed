"""torch.distributed over gloo, the usual transport of gradients between CPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from varangian.bench.wire.ways.base import Job, Pushing, RowServer

GLOO: Any = torch.distributed  # its annotations lack most of what is used here
HOST = "127.0.0.1"
NEVER = timedelta(days=1)
GRADIENT, ANSWER = 0, 1
"""Tags of the messages."""


class Server(RowServer):
    """Rank 0: receives into the rows and nowhere else, a thread for each worker."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._store = GLOO.TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=NEVER)
        self.address = f"{HOST}:{self._store.port}"
        _in_background(self._serve, job)

    def _serve(self, job: Job) -> None:
        self._group = _group(self._store, 0, job)
        for rank, row in enumerate(self._rows, start=1):
            _in_background(self._serve_one, rank, torch.from_numpy(row))

    def _serve_one(self, rank: int, row: Tensor) -> None:
        with suppress(RuntimeError):  # the worker has left
            while True:
                self._group.recv([row], rank, GRADIENT).wait()
                self._group.send([torch.ones(1, dtype=torch.float32)], rank, ANSWER).wait()

    def close(self) -> None:
        pass


class Workers:
    """A rank and a thread for each."""

    def __init__(self, address: str, job: Job) -> None:
        host, _, port = address.rpartition(":")
        self._vectors = [torch.from_numpy(vector) for vector in job.vectors()]
        self._pool = ThreadPoolExecutor(job.workers)

        def join(rank: int) -> Any:
            return _group(GLOO.TCPStore(host, int(port), timeout=NEVER), rank, job)

        self._groups = list(self._pool.map(join, range(1, job.workers + 1)))

    def round(self) -> None:
        for _ in self._pool.map(_send, self._groups, self._vectors):
            pass

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._groups.clear()


class Gloo(Pushing):
    """`send` of each worker, `recv` of the server."""

    server, workers = Server, Workers


def _group(store: Any, rank: int, job: Job) -> Any:
    """Connections of every rank to every other; returns when all ranks are there."""
    options = GLOO.ProcessGroupGloo._Options()
    options._devices = [GLOO.ProcessGroupGloo.create_device(hostname=HOST)]
    options._timeout = NEVER
    return GLOO.ProcessGroupGloo(store, rank, job.workers + 1, options)


def _send(group: Any, vector: Tensor) -> None:
    group.send([vector], 0, GRADIENT).wait()
    group.recv([torch.empty(1, dtype=torch.float32)], 0, ANSWER).wait()


def _in_background(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()
