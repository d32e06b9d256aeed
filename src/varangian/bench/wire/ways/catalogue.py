"""The transports that are measured, by name. None of their libraries is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal

from varangian.bench.wire.ways.base import Job

TCP, GRPC = "tcp", "grpc"
"""The references: raw TCP, and raw bytes over gRPC. Every other transport is a ratio to these."""
OWN = 300_000_000
"""Bytes of a server and its workers before they hold a vector, roughly."""


@dataclass(frozen=True)
class Entry:
    """One transport."""

    target: str
    """`module:Class` in this package."""
    title: str
    kind: Literal["measure", "ceiling", "naive", "ours", "chunks", "peer"]
    needs: str | None = None
    """The package that has to be installed."""
    holds: float = 1.2
    """Copies of all vectors in the memory of both processes together, roughly."""

    def absent(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        if self.needs is not None and find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None

    @property
    def version(self) -> str | None:
        return version(self.needs) if self.needs else None

    def memory(self, job: Job) -> float:
        return OWN + self.holds * job.total + 2 * job.size


WAYS = {
    TCP: Entry("tcp:Tcp", "raw TCP", "measure"),
    GRPC: Entry("stream:Stream", "gRPC at best: raw bytes, no checks", "ceiling"),
    "ssl": Entry("tls:Tls", "Python's TLS sockets, no checks", "ceiling", needs="cryptography"),
    "protobuf": Entry("unary:Protobuf", "gRPC, one protobuf message", "naive", holds=5),
    "pickle": Entry("unary:Pickle", "gRPC, one pickle", "naive", holds=4),
    "ours": Entry("ours:Push", "Varangian push", "ours"),
    "tls": Entry("ours:PushTls", "Varangian push, mTLS", "ours", needs="cryptography"),
    "bf16": Entry("ours:PushBf16", "Varangian push, bf16", "ours"),
    "int8": Entry("ours:PushInt8", "Varangian push, int8", "ours"),
    "pull": Entry("ours:Pull", "Varangian pull", "ours"),
    "chunks": Entry("ours:Chunks", "Varangian push, over gRPC", "chunks"),
    "chunks-tls": Entry(
        "ours:ChunksTls", "Varangian push, mTLS, over gRPC", "chunks", needs="cryptography"
    ),
    "chunks-pull": Entry("ours:PullChunks", "Varangian pull, over gRPC", "chunks"),
    "gloo": Entry("gloo:Gloo", "torch.distributed, gloo", "peer", needs="torch"),
    "flower": Entry("flower:Flower", "Flower, its objects over gRPC", "peer", needs="flwr", holds=8),
    "ray": Entry("ray:Ray", "Ray, shared memory", "peer", needs="ray", holds=5),
}
