"""The memory budget of a server: the most bytes it can take, known before the first worker connects.

n  workers     d  parameters
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from varangian.protos.data_channel.encrypted_stream import PAYLOADS
from varangian.protos.data_channel.listener import THREADS, IdleLimits
from varangian.protos.data_channel.transfer import BLOCK
from varangian.protos.messages import MESSAGE_LIMIT
from varangian.protos.network.descriptors import connections
from varangian.protos.network.grpc_options import inline_lookahead
from varangian.protos.payloads.encoding import FLOAT32, TORCH, RowDtype
from varangian.resources import available_memory, readable, resident_memory
from varangian.server.limits.concurrency import most_readers
from varangian.server.limits.limits import DEFAULT_LIMITS, Limits
from varangian.server.rows.latest_store import LatestPlan
from varangian.server.training.optimizers import Optimizer
from varangian.server.transport.grpc_server import METADATA, STREAMS

VERSIONS = 2
"""The parameters, and those before or after them; what is pulled are these, not a copy."""
AGGREGATES = 2
"""The last one, from which the rows are measured, and the next."""
FRAMES = 1
"""The messages of a pull, made once for all workers."""
SELDOM = 2
"""Bytes at the end of a run, or for an update by other kernels after sums overflowed."""
IN_FLIGHT = 3
"""Messages of an upload that is received: what the transport assembles, hands over, and what lands."""
CONNECTION, CALL = 64 << 10, 16 << 10
"""A connection to the gRPC port, and a call on it that waits, beside its headers and what is sent ahead."""
BESIDE = 64 << 10
"""A connection beside gRPC: its two ends of TLS, mostly. Its payload is never there as a whole."""
RESERVE = 128 << 20
"""Bytes for libraries later on, and the kernels' blocks: no more with more workers or a larger model."""


@dataclass(frozen=True)
class MemoryBudget:
    """A memory budget: bytes by purpose."""

    rows: int
    vectors: int
    """Vectors as long as the model."""
    model: int
    streams: int
    """Bytes of the transports: messages of gRPC for all workers, as any may send chunks at any time;
    messages as large that never end, of half of them; connections of anybody; and the data channel."""
    base: int
    """Bytes that this process takes before the run, and that its libraries will."""
    latest: int = 0
    """The last vectors of all workers, where those count in later rounds too."""
    evaluation: int = 0
    """Activations of an evaluation, which goes by batches of bounded memory."""
    rest: int = 0
    """Bytes of the saved model besides its trained parameters."""
    simulated: int = 0
    """Bytes of the vectors that simulated workers compute, and of their momentum."""
    snapshot: int = 0
    """Bytes of the copy of the state from which checkpoints are written; 0 without one. Then a round waits
    until its checkpoint is written."""

    @classmethod
    def of(
        cls,
        n: int,
        d: int,
        optimizer: Optimizer,
        *,
        rows: RowDtype = FLOAT32,
        mapped: bool = False,
        average: bool = False,
        columns: int | None = None,
        row_slots: int | None = None,
        extra_vectors: int = 0,
        latest: LatestPlan | None = None,
        data_channel: bool = True,
        evaluation: int = 0,
        rest: int = 0,
        simulated: int = 0,
        snapshot: int = 0,
        limits: Limits = DEFAULT_LIMITS,
        base: int | None = None,
    ) -> MemoryBudget:
        """The account of a run.

        Args:
            n: workers.
            d: parameters.
            optimizer: of the server, which keeps vectors.
            rows: how the rows are kept.
            mapped: whether they lie in a file on a disk.
            average: whether an average of the model is kept.
            columns: of each row at a time, if not all d.
            row_slots: rows that are kept at a time, if not all n.
            extra_vectors: vectors as long as the model that the participation keeps.
            latest: how the last vectors of all workers are kept, if they are.
            data_channel: whether payloads may travel beside gRPC.
            evaluation: bytes of its activations, at most.
            rest: bytes of the state of the model that does not train.
            simulated: bytes of the vectors of workers in this process, and of their momentum.
            snapshot: bytes of the copy from which checkpoints are written.
            limits: of the service.
            base: bytes that are taken already; by default those of this process.
        """
        messages = n * limits.streams + most_readers(n) + IN_FLIGHT * limits.receiving
        own = VERSIONS + AGGREGATES + FRAMES + SELDOM
        return cls(
            rows=0 if mapped else min(n, row_slots or n) * min(d, columns or d) * TORCH[rows].itemsize,
            vectors=own + extra_vectors + optimizer.vectors + 2 * average,
            model=4 * d,
            streams=messages * MESSAGE_LIMIT
            + _calls(n, inline_lookahead(limits.inline_bytes(d)))
            + data_channel * _beside(n, limits),
            base=RESERVE + (resident_memory() if base is None else base),
            latest=0 if latest is None or latest.folder is not None else latest.bytes,
            evaluation=evaluation,
            rest=SELDOM * rest,
            simulated=simulated,
            snapshot=snapshot,
        )

    @property
    def total(self) -> int:
        parts = (
            self.rows,
            self.latest,
            self.vectors * self.model,
            self.rest,
            self.evaluation,
            self.simulated,
            self.snapshot,
            self.streams,
        )
        return sum(parts) + self.base

    @property
    def sentence(self) -> str:
        """One line for the start of a run."""
        latest = f"latest vectors {readable(self.latest)} + " if self.latest else ""
        rest = f"frozen {readable(self.rest)} + " if self.rest else ""
        rest += f"evaluation {readable(self.evaluation)} + " if self.evaluation else ""
        rest += f"simulated workers {readable(self.simulated)} + " if self.simulated else ""
        rest += f"checkpoint {readable(self.snapshot)} + " if self.snapshot else ""
        parts = (
            f"rows {readable(self.rows)} + {latest}model {self.vectors} x {readable(self.model)} + {rest}"
            f"streams {readable(self.streams)} + base {readable(self.base)}"
        )
        room = available_memory()
        has = "" if room is None else f"; {readable(room + resident_memory())} are available"
        return f"memory: {parts} = at most {readable(self.total)}{has}"

    def within(self, room: int | None) -> MemoryBudget:
        """The budget without the copy for checkpoints, where that alone has no room."""
        return replace(self, snapshot=0) if self.snapshot and self.refusal(room) else self

    def refusal(self, room: int | None) -> str | None:
        """Why a process that can have `room` more bytes should not begin; None when it may."""
        if room is None or self.total - (self.base - RESERVE) <= room:
            return None
        save = "keep the rows in half the space with server.rows=bfloat16"
        save = f"{save}, or on a disk with server.rows_folder" if self.rows else "another machine"
        if self.latest:
            save = "keep the latest vectors in a `folder` on disk, or half as large with `store: bfloat16`"
        return (
            f"the server needs up to {readable(self.total)} of memory, and this machine or its container "
            f"has {readable(room + self.base - RESERVE)} for it. Use fewer workers or a smaller model, or "
            f"{save}."
        )


def _calls(n: int, lookahead: int) -> int:
    """Connections to the gRPC port, of anybody, each with all the calls that it may have, unread."""
    return connections(n) * (CONNECTION + STREAMS * (CALL + METADATA + lookahead))


def _beside(n: int, limits: Limits) -> int:
    """Connections with a call and without one, those of strangers, and the buffers of each thread.

    Encrypted payloads pass through a segment, and some of them through another. With a call it takes the
    place of chunks.
    """
    segments = n * limits.streams * 2 * PAYLOADS.segment
    return (2 * n * limits.streams + IdleLimits.unidentified) * BESIDE + segments + THREADS * BLOCK
