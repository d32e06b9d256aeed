"""Raw TCP, the reference: sockets with large buffers, a thread for each."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

from varangian.bench.wire.ways.base import Floats, Job, Pushing, RowServer

BUFFER = 4 << 20
ACKNOWLEDGED = b"!"


class Server(RowServer):
    """Receives into the rows and nowhere else."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._listener = socket.socket()
        # Before it listens: a connection inherits the size, and its window is scaled for it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(job.workers)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pool = ThreadPoolExecutor(job.workers)
        for _ in range(job.workers):
            self._pool.submit(self._serve_one)

    def close(self) -> None:
        self._listener.close()

    def accept(self) -> socket.socket:
        """The next connection."""
        return self._listener.accept()[0]

    def _serve_one(self) -> None:
        with self.accept() as connection:
            worker = int.from_bytes(connection.recv(4), "little")
            row = self._rows[worker].data.cast("B")
            while receive(connection, row):
                connection.sendall(ACKNOWLEDGED)


def receive(connection: socket.socket, row: memoryview) -> bool:
    """Fill the row; False at the end of the connection."""
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
        self._sockets = [self.connect(host, int(port)) for _ in range(job.workers)]
        for i, connection in enumerate(self._sockets):
            connection.sendall(i.to_bytes(4, "little"))
        self._pool = ThreadPoolExecutor(job.workers)

    def connect(self, host: str, port: int) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        connection.connect((host, port))
        return connection

    def round(self) -> None:
        for _ in self._pool.map(self._send, self._sockets, self._vectors):
            pass

    def digests(self) -> None:
        return None

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()

    def _send(self, connection: socket.socket, vector: Floats) -> None:
        connection.sendall(vector.data.cast("B"))
        if connection.recv(1) != ACKNOWLEDGED:
            raise ConnectionError("The server hung up.")


class Tcp(Pushing):
    """Raw TCP."""

    server, workers = Server, Workers
