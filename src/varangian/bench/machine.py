"""Hardware, versions and load of the machine that a benchmark runs on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

import varangian
from varangian.launch.output.manifest import describe_commit


def machine() -> dict[str, Any]:
    """The hardware and the versions, before anything is timed."""
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "varangian": varangian.__version__,
        "commit": describe_commit(Path(varangian.__file__).parent),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "load_at_start": load(),
    }


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load() -> float | None:
    """Processes that were running or waiting over the last minute; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None
