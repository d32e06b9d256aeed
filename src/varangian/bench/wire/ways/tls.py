"""Mutual TLS 1.3 with the sockets of Python's ssl, otherwise as raw TCP: the cost of TLS by itself."""

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
    """Requires a certificate of each worker and checks nothing else."""

    def __init__(self, job: Job) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="varangian-bench-")
        authority = Authority.create(Path(self._folder.name) / "certs", days=1)
        for name, role in (("server", Role.SERVER), ("worker", Role.WORKER)):
            authority.issue(name, role, days=1)
        self._context = require_tls13(ssl_contexts(authority.path / "server")[0])
        super().__init__(job)
        self.address = f"{authority.path}@{self.address}"

    def accept(self) -> socket.socket:
        return self._context.wrap_socket(super().accept(), server_side=True)

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


class Workers(tcp.Workers):
    """Workers that check the server's certificate."""

    def __init__(self, address: str, job: Job) -> None:
        path, _, server = address.rpartition("@")
        self._context = require_tls13(ssl_contexts(Path(path) / "worker")[1])
        super().__init__(server, job)

    def connect(self, host: str, port: int) -> socket.socket:
        return self._context.wrap_socket(super().connect(host, port))


def require_tls13(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Tls(Pushing):
    """TLS sockets."""

    server, workers = Server, Workers
