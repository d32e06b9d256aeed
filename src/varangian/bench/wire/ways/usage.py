"""Processor time and memory of a process, as the kernel counts them."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RESET_PEAK = b"5"
"""For /proc/self/clear_refs: the peak begins anew at what is in memory now."""


@dataclass(frozen=True)
class Usage:
    """Usage since the process began."""

    cpu: float
    """Seconds of all threads, in user space and in the kernel."""
    faults: int
    """Minor page faults."""
    resident: int
    """Bytes now."""
    peak: int
    """Bytes at most, since the peak was last reset."""

    @classmethod
    def now(cls) -> Usage:
        taken = resource.getrusage(resource.RUSAGE_SELF)
        memory = _status()
        return cls(taken.ru_utime + taken.ru_stime, taken.ru_minflt, memory["VmRSS"], memory["VmHWM"])


def processor_time(process: int | None) -> int | None:
    """Processor time of another process in clock ticks; None where the system does not say."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(words[11]) + int(words[12])


def reset_peak() -> None:
    """Let the peak of memory begin anew.

    Freed memory is returned to the system first: memory that the allocator kept could be used again without
    raising the peak. Then plain system calls, since a file object would allocate its buffer just then.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
    try:
        os.write(descriptor, RESET_PEAK)
    finally:
        os.close(descriptor)


def _status() -> dict[str, int]:
    """Sizes in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if words[-1] == "kB"}
