"""What TLS costs by itself: the sockets of Python's ssl, mutual TLS 1.3, moved as those of raw TCP are."""

from __future__ import annotations

import socket
import ssl
import tempfile
from pathlib import Path

from varangian.bench.wire.ways import tcp
from varangian.bench.wire.ways.base import Job, Pushing
from varangian.pki.authority import Authority
from varangian.protos.identity.bundle import Role, ssl_contexts


class Server(tcp.Server):
    """Knows its workers by their certificate, and looks no closer at them."""

    def __init__(self, job: Job) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="varangian-bench-")
        authority = Authority.create(Path(self._folder.name) / "certs", days=1)
        for name, role in (("server", Role.SERVER), ("worker", Role.WORKER)):
            authority.issue(name, role, days=1)
        self._context = strict(ssl_contexts(authority.path / "server")[0])
        super().__init__(job)
        self.address = f"{authority.path}@{self.address}"

    def accepted(self) -> socket.socket:
        return self._context.wrap_socket(super().accepted(), server_side=True)

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


class Workers(tcp.Workers):
    """They know their server by its certificate."""

    def __init__(self, address: str, job: Job) -> None:
        path, _, where = address.rpartition("@")
        self._context = strict(ssl_contexts(Path(path) / "worker")[1])
        super().__init__(where, job)

    def connected(self, host: str, port: int) -> socket.socket:
        return self._context.wrap_socket(super().connected(host, port))


def strict(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Tls(Pushing):
    """TLS sockets."""

    def serve(self, job: Job) -> Server:
        return Server(job)

    def connect(self, address: str, job: Job) -> Workers:
        return Workers(address, job)
