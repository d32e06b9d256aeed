"""What a process may use, as control groups of both versions say it."""

import os

import pytest

from varangian.resources import available_memory, cores, free_processes, resident_memory

V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
MEMINFO = "MemTotal:       100 kB\nMemAvailable:    64 kB\nSwapFree: 7 kB\n"


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, None),
        ({"/proc/meminfo": MEMINFO}, 64 << 10),
        (
            {
                "/proc/meminfo": MEMINFO,
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/b/memory.max": "max\n",
                "/sys/fs/cgroup/a/b/memory.current": "9\n",
                "/sys/fs/cgroup/a/memory.max": "50000\n",
                "/sys/fs/cgroup/a/memory.current": "20000\n",
                "/sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 700\n",
            },
            30700,
        ),
        (  # a group within a group of version 1, beside an empty hierarchy of version 2
            {
                "/proc/meminfo": MEMINFO,
                "/proc/self/mountinfo": V1,
                "/proc/self/cgroup": "5:cpu,memory:/x/y\n0::/\n",
                "/sys/fs/cgroup/memory/x/y/memory.limit_in_bytes": "9223372036854771712\n",
                "/sys/fs/cgroup/memory/x/y/memory.usage_in_bytes": "500\n",
                "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4000\n",
                "/sys/fs/cgroup/memory/x/memory.usage_in_bytes": "900\n",
                "/sys/fs/cgroup/memory/x/memory.stat": "total_inactive_file 10\n",
            },
            3110,
        ),
        (  # a container sees its group as the topmost, though its path begins above it
            {
                "/proc/meminfo": MEMINFO,
                "/proc/self/mountinfo": "36 31 0:33 /docker/a /cg rw - cgroup2 cgroup rw\n",
                "/proc/self/cgroup": "0::/docker/a/b\n",
                "/cg/b/memory.max": "max\n",
                "/cg/b/memory.high": "3000\n",
                "/cg/b/memory.current": "1000\n",
                "/cg/memory.max": "1500\n",
                "/cg/memory.current": "1000\n",
            },
            500,
        ),
        (
            {
                "/proc/meminfo": MEMINFO,
                "/proc/self/cgroup": "5:memory:/x\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
                "/sys/fs/cgroup/memory/memory.usage_in_bytes": "2000\n",
            },
            0,
        ),
    ],
)
def test_what_is_there(files: dict[str, str], room: int | None):
    assert available_memory(files.get) == room


def test_this_process():
    assert resident_memory({"/proc/self/status": "VmPeak: 9 kB\nVmRSS:\t  5 kB\n"}.get) == 5 << 10
    assert resident_memory(lambda _: None) == 0
    assert resident_memory() > 10 << 20


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ({}, 8.0),
        ({"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 8.0),
        ({"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        (  # the group above sets the limit
            {
                "/proc/self/cgroup": "0::/a\n",
                "/sys/fs/cgroup/a/cpu.max": "max 100000\n",
                "/sys/fs/cgroup/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 8.0),
        (
            {
                "/proc/self/mountinfo": "35 31 0:32 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
                "/proc/self/cgroup": "5:cpu,cpuacct:/x\n",
                "/cg/cpu/x/cpu.cfs_quota_us": "300000\n",
                "/cg/cpu/x/cpu.cfs_period_us": "100000\n",
                "/cg/cpu/cpu.cfs_quota_us": "-1\n",
                "/cg/cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
    ],
)
def test_processors(monkeypatch, files, allowed):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores(files.get) == allowed


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/pids.max": "max\n"}, None),
        (
            {
                "/proc/self/cgroup": "0::/\n",
                "/sys/fs/cgroup/pids.max": "100\n",
                "/sys/fs/cgroup/pids.current": "7\n",
            },
            93,
        ),
    ],
)
def test_processes(files, free):
    assert free_processes(files.get) == free
