"""The memory budget of a server: the most bytes it can take, known before the first worker connects.

n  workers     d  parameters
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from varangian.protos.data_channel.encrypted_stream import PAYLOADS
from varangian.protos.data_channel.listener import THREADS, IdleLimits
from varangian.protos.data_channel.transfer import BLOCK
from varangian.protos.encoding import FLOAT32, WIRE, Dtype
from varangian.protos.messages import MESSAGE_LIMIT
from varangian.protos.network.descriptors import connections
from varangian.protos.network.grpc_options import inline_lookahead
from varangian.server.limits.concurrency import most_readers
from varangian.server.limits.limits import DEFAULT_LIMITS, Limits
from varangian.server.rows.latest_store import LatestPlan
from varangian.server.training.optimizer import Optimizer
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

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))

Read: TypeAlias = Callable[[str], str | None]


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
        rows: Dtype = FLOAT32,
        average: bool = False,
        columns: int | None = None,
        row_slots: int | None = None,
        extra_vectors: int = 0,
        latest: LatestPlan | None = None,
        lane: bool = True,
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
            average: whether an average of the model is kept.
            columns: of each row at a time, if not all d.
            row_slots: rows that are kept at a time, if not all n.
            extra_vectors: vectors as long as the model that the participation keeps.
            latest: how the last vectors of all workers are kept, if they are.
            lane: whether payloads may travel beside gRPC.
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
            rows=min(n, row_slots or n) * min(d, columns or d) * WIRE[rows][1].itemsize,
            vectors=own + extra_vectors + optimizer.vectors + 2 * average,
            model=4 * d,
            streams=messages * MESSAGE_LIMIT
            + _calls(n, inline_lookahead(limits.inline_bytes(d)))
            + lane * _beside(n, limits),
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


def readable(size: int) -> str:
    """A number of bytes with its unit."""
    unit, name = next((u, n) for u, n in UNITS if size >= u or u == 1e3)
    return f"{size / unit:.{1 if size < 10 * unit else 0}f} {name}"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None


def resident_memory(read: Read = _read) -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    return _field(read("/proc/self/status"), "VmRSS") or 0


def available_memory(read: Read = _read) -> int | None:
    """Bytes that this process can still have, on the machine and in its control groups; None if unknown."""
    rooms = [_field(read("/proc/meminfo"), "MemAvailable"), *_groups(read)]
    return min((room for room in rooms if room is not None), default=None)


def _groups(read: Read) -> Iterator[int | None]:
    """The bytes that each control group's limit leaves, from the innermost outwards, of both versions."""
    mounts = read("/proc/self/mountinfo") or ""
    for hierarchy, controllers, path in _memberships(read("/proc/self/cgroup") or ""):
        if hierarchy != "0" and "memory" not in controllers.split(","):
            continue
        second = hierarchy == "0"
        for root, mount in _mounts(mounts, second):
            below = _below(path, root)
            folder = Path(mount) / below
            for _ in range(len(below.parts) + 1):
                yield _left(read, str(folder), *(SECOND if second else FIRST))
                folder = folder.parent


FIRST = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
SECOND = (("memory.max", "memory.high"), "memory.current", "inactive_file")
"""Files of a group: limits, what is taken, and the part of it that files have and nobody uses."""


def _memberships(text: str) -> Iterator[tuple[str, str, str]]:
    """The fields of each line `hierarchy:controllers:path`."""
    for line in text.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield hierarchy, controllers, path


def _mounts(text: str, second: bool) -> list[tuple[str, str]]:
    """The mounts of memory control groups, and which group is the topmost that can be seen there."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, *_, options = after.split() or [""]
        wanted = kind == "cgroup2" if second else kind == "cgroup" and "memory" in options.split(",")
        if wanted:
            found.append((before.split()[3], before.split()[4]))
    return found or [("/", "/sys/fs/cgroup" if second else "/sys/fs/cgroup/memory")]


def _below(path: str, root: str) -> PurePosixPath:
    """The path of a group as it is seen below the mount of another."""
    found, top = PurePosixPath(path), PurePosixPath(root)
    if ".." in found.parts or not found.is_relative_to(top):
        return PurePosixPath()  # outside of what this process can see
    return found.relative_to(top)


def _left(read: Read, folder: str, limits: tuple[str, ...], usage: str, unused: str) -> int | None:
    texts, taken = [read(f"{folder}/{limit}") for limit in limits], read(f"{folder}/{usage}")
    most = [int(text) for text in texts if text is not None and text.strip().isdigit()]
    if not most or taken is None:
        return None
    # Pages of files that nobody has used for a while are given back when memory is short.
    found = re.search(rf"^{unused} (\d+)$", read(f"{folder}/memory.stat") or "", re.MULTILINE)
    return max(0, min(most) - int(taken) + (int(found[1]) if found else 0))


def _field(text: str | None, name: str) -> int | None:
    """Bytes in a line `name: 123 kB`."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", text or "", re.MULTILINE)
    return int(found[1]) << 10 if found else None
