"""File descriptors of a run: how many it needs, and the limit of this process."""

from __future__ import annotations

import contextlib
import resource

BASE = 32
"""What a process with gRPC has open besides connections: libraries, logs, pipes, a file now and then."""
BESIDE = 3
"""For each worker, at either end: its calls, and payloads up and down beside them."""
CALLS = 1
"""For each worker where payloads travel with the calls."""


def raised(needed: int) -> int:
    """Raise the soft limit of this process as far as is needed and allowed; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return needed if soft == resource.RLIM_INFINITY else soft
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(ValueError, OSError):  # a system may allow less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def needed(workers: int, lane: bool) -> int:
    """For a process that serves, or hosts, this many workers."""
    return BASE + workers * (BESIDE if lane else CALLS)


def refusal(what: str, workers: int, lane: bool) -> str | None:
    """Why a process should not begin, after its limit was raised as far as it goes; None when it may."""
    least = needed(workers, lane)
    limit = raised(least)
    if limit >= least:
        return None
    save = " or set server.data_port=null, which needs fewer," if lane else ""
    return (
        f"{what} needs up to {least} open files for {workers} workers, and this process may have {limit}. "
        f"Raise the limit with `ulimit -n {least}` in the shell that starts it,{save} or use fewer workers."
    )
