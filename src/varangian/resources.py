"""Resources of this process: memory, processors and processes, of the machine and its control groups."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeAlias

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))

Read: TypeAlias = Callable[[str], str | None]


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


def peak_memory(read: Read = _read) -> int:
    """The most bytes of this process that have been in memory; 0 where the system does not say."""
    return _field(read("/proc/self/status"), "VmHWM") or 0


def available_memory(read: Read = _read) -> int | None:
    """Bytes that this process can still have, on the machine and in its control groups; None if unknown."""
    rooms = [_field(read("/proc/meminfo"), "MemAvailable"), *_rooms(read)]
    return min((room for room in rooms if room is not None), default=None)


def cores(read: Read = _read) -> float:
    """Processors that this process may use at a time; a control group may allow a part of one."""
    whole = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([float(whole), *_shares(read)])


def free_processes(read: Read = _read) -> int | None:
    """Processes and threads that the control groups still allow; None where they set no limit."""
    found = list[int]()
    for folder, _ in _folders(read, "pids"):
        most, taken = read(f"{folder}/pids.max"), read(f"{folder}/pids.current")
        if most is not None and taken is not None and most.strip().isdigit():
            found.append(max(0, int(most) - int(taken)))
    return min(found, default=None)


def _rooms(read: Read) -> Iterator[int | None]:
    """The bytes that each control group's limit leaves."""
    for folder, second in _folders(read, "memory"):
        yield _left(read, folder, *(SECOND if second else FIRST))


def _shares(read: Read) -> Iterator[float]:
    """The processors that each control group allows, where it sets a limit."""
    for folder, second in _folders(read, "cpu"):
        if second:
            quota, _, period = (read(f"{folder}/cpu.max") or "").strip().partition(" ")
        else:
            quota, period = (
                (read(f"{folder}/cpu.cfs_{name}_us") or "").strip() for name in ("quota", "period")
            )
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            yield int(quota) / int(period)


def _folders(read: Read, controller: str) -> Iterator[tuple[str, bool]]:
    """The folder of each control group, from the innermost outwards, and whether it is of version 2."""
    mounts = read("/proc/self/mountinfo") or ""
    for hierarchy, controllers, path in _memberships(read("/proc/self/cgroup") or ""):
        if hierarchy != "0" and controller not in controllers.split(","):
            continue
        second = hierarchy == "0"
        for root, mount in _mounts(mounts, controller, second):
            below = _below(path, root)
            folder = Path(mount) / below
            for _ in range(len(below.parts) + 1):
                yield str(folder), second
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


def _mounts(text: str, controller: str, second: bool) -> list[tuple[str, str]]:
    """The mounts of control groups of a kind, and which group is the topmost that can be seen there."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, *_, options = after.split() or [""]
        wanted = kind == "cgroup2" if second else kind == "cgroup" and controller in options.split(",")
        if wanted:
            found.append((before.split()[3], before.split()[4]))
    return found or [("/", "/sys/fs/cgroup" if second else f"/sys/fs/cgroup/{controller}")]


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
