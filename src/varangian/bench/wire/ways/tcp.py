"""The measure: TCP sockets with large buffers, and a thread for each."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from varangian.bench.wire.ways.base import Floats, Job, Pushing, digests

BUFFER = 4 << 20
ACKNOWLEDGED = b"!"


class Server:
    """Receives into the rows and nowhere else."""

    def __init__(self, job: Job) -> None:
        self._rows = job.rows()
        self._listener = socket.socket()
        # Before it listens: a connection inherits the size, and its window is scaled for it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(job.workers)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pool = ThreadPoolExecutor(job.workers)
        for _ in range(job.workers):
            self._pool.submit(self._served)

    def ready(self) -> None:
        pass

    def digests(self) -> list[str]:
        found = digests(self._rows)
        self._rows.fill(0)
        return found

    def close(self) -> None:
        self._listener.close()

    def accepted(self) -> socket.socket:
        """The next connection."""
        return self._listener.accept()[0]

    def _served(self) -> None:
        with self.accepted() as connection:
            worker = int.from_bytes(connection.recv(4), "little")
            row = self._rows[worker].data.cast("B")
            while received(connection, row):
                connection.sendall(ACKNOWLEDGED)


def received(connection: socket.socket, row: memoryview) -> bool:
    """Fill the row; False when the other end has nothing more."""
    at = 0
    while at < len(row):
        count = connection.recv_into(row[at : at + BUFFER])
        if count == 0:
            return False
        at += count
    return True


class Workers:
    """Sends from a thread for each worker."""

    def __init__(self, address: str, job: Job) -> None:
        host, _, port = address.rpartition(":")
        self._vectors = job.vectors()
        self._lines = [self.connected(host, int(port)) for _ in range(job.workers)]
        for i, line in enumerate(self._lines):
            line.sendall(i.to_bytes(4, "little"))
        self._pool = ThreadPoolExecutor(job.workers)

    def connected(self, host: str, port: int) -> socket.socket:
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        line.connect((host, port))
        return line

    def round(self) -> None:
        for _ in self._pool.map(self._sent, self._lines, self._vectors):
            pass

    def digests(self) -> None:
        return None

    def close(self) -> None:
        for line in self._lines:
            line.close()

    def _sent(self, line: socket.socket, vector: Floats) -> None:
        line.sendall(vector.data.cast("B"))
        if line.recv(1) != ACKNOWLEDGED:
            raise ConnectionError("The server hung up.")


class Tcp(Pushing):
    """Raw TCP."""

    def serve(self, job: Job) -> Server:
        return Server(job)

    def connect(self, address: str, job: Job) -> Workers:
        return Workers(address, job)
