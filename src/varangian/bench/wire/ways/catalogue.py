"""Every way that is measured, by name. Nothing of theirs is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal

from varangian.bench.wire.ways.base import Job

TCP, GRPC = "tcp", "grpc"
"""What the others are measured by: what the machine can do, and what gRPC can do there."""
OWN = 300_000_000
"""Bytes that a server and its workers take before they hold a vector, roughly."""


@dataclass(frozen=True)
class Way:
    """One way of moving gradients."""

    where: str
    """`module:Class` in this package."""
    title: str
    kind: Literal["measure", "ceiling", "naive", "ours", "chunks", "peer"]
    needs: str | None = None
    """A package without which there is nothing to measure."""
    holds: float = 1.2
    """All vectors so many times over, roughly, in the memory of both processes."""

    def absent(self) -> str | None:
        """Why it cannot be measured here; None when it can."""
        if self.needs is not None and find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        return None

    @property
    def version(self) -> str | None:
        return version(self.needs) if self.needs else None

    def memory(self, job: Job) -> float:
        return OWN + self.holds * job.total + 2 * job.size


WAYS = {
    TCP: Way("tcp:Tcp", "raw TCP", "measure"),
    GRPC: Way("stream:Stream", "gRPC at best: raw bytes, no checks", "ceiling"),
    "ssl": Way("tls:Tls", "Python's TLS sockets, no checks", "ceiling", needs="cryptography"),
    "protobuf": Way("unary:Protobuf", "gRPC, one protobuf message", "naive", holds=5),
    "pickle": Way("unary:Pickle", "gRPC, one pickle", "naive", holds=4),
    "ours": Way("ours:Ours", "Varangian push", "ours"),
    "tls": Way("ours:Secured", "Varangian push, mTLS", "ours", needs="cryptography"),
    "bf16": Way("ours:Halved", "Varangian push, bf16", "ours"),
    "pull": Way("ours:Pull", "Varangian pull", "ours"),
    "chunks": Way("ours:Chunks", "Varangian push, over gRPC", "chunks"),
    "chunks-tls": Way(
        "ours:SecuredChunks", "Varangian push, mTLS, over gRPC", "chunks", needs="cryptography"
    ),
    "chunks-pull": Way("ours:PullChunks", "Varangian pull, over gRPC", "chunks"),
    "gloo": Way("gloo:Gloo", "torch.distributed, gloo", "peer", needs="torch"),
    "flower": Way("flower:Flower", "Flower, its hop alone", "peer", needs="flwr", holds=8),
    "ray": Way("ray:Ray", "Ray, shared memory", "peer", needs="ray", holds=5),
}
