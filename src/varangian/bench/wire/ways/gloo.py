"""torch.distributed over gloo: what most training moves gradients with on processors."""

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

from varangian.bench.wire.ways.base import Job, Pushing, digests

GLOO: Any = torch.distributed  # its annotations know little of what is used here
HOST = "127.0.0.1"
NEVER = timedelta(days=1)
GRADIENT, ANSWER = 0, 1
"""Tags of what is sent."""


class Server:
    """Rank 0: receives into the rows and nowhere else, a thread for each worker."""

    def __init__(self, job: Job) -> None:
        self._rows = job.rows()
        self._store = GLOO.TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=NEVER)
        self.address = f"{HOST}:{self._store.port}"
        _in_background(self._serve, job)

    def _serve(self, job: Job) -> None:
        self._group = _group(self._store, 0, job)
        for rank, row in enumerate(self._rows, start=1):
            _in_background(self._served, rank, torch.from_numpy(row))

    def _served(self, rank: int, row: Tensor) -> None:
        with suppress(RuntimeError):  # the worker has left
            while True:
                self._group.recv([row], rank, GRADIENT).wait()
                self._group.send([torch.ones(1)], rank, ANSWER).wait()

    def ready(self) -> None:
        pass

    def digests(self) -> list[str]:
        found = digests(self._rows)
        self._rows.fill(0)
        return found

    def close(self) -> None:
        pass


class Workers:
    """A rank for each, and a thread."""

    def __init__(self, address: str, job: Job) -> None:
        host, _, port = address.rpartition(":")
        self._vectors = [torch.from_numpy(vector) for vector in job.vectors()]
        self._pool = ThreadPoolExecutor(job.workers)

        def joined(rank: int) -> Any:
            return _group(GLOO.TCPStore(host, int(port), timeout=NEVER), rank, job)

        self._groups = list(self._pool.map(joined, range(1, job.workers + 1)))

    def round(self) -> None:
        for _ in self._pool.map(_sent, self._groups, self._vectors):
            pass

    def digests(self) -> None:
        return None

    def close(self) -> None:
        self._groups.clear()


class Gloo(Pushing):
    """`send` of each worker, `recv` of the server."""

    def serve(self, job: Job) -> Server:
        return Server(job)

    def connect(self, address: str, job: Job) -> Workers:
        return Workers(address, job)


def _group(store: Any, rank: int, job: Job) -> Any:
    """Everyone's connections to everyone; returns when all ranks have come."""
    options = GLOO.ProcessGroupGloo._Options()
    options._devices = [GLOO.ProcessGroupGloo.create_device(hostname=HOST)]
    options._timeout = NEVER
    return GLOO.ProcessGroupGloo(store, rank, job.workers + 1, options)


def _sent(group: Any, vector: Tensor) -> None:
    group.send([vector], 0, GRADIENT).wait()
    group.recv([torch.empty(1)], 0, ANSWER).wait()


def _in_background(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()
