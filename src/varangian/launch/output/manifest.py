"""The manifest of a run: versions, machine and code on which its numbers may depend."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import varangian
from varangian.aggregators.kernels import kernels_in_use
from varangian.config import RunConfig
from varangian.plugins import relative_path
from varangian.registry import is_target

PACKAGES = ("torch", "numpy", "grpcio", "protobuf", "pydantic", "safetensors", "scikit-learn")
GIT_SECONDS = 5


def manifest(config: RunConfig, command: list[str]) -> dict[str, Any]:
    """The manifest: what else the numbers of a run may depend on."""
    return {
        "varangian": varangian.__version__,
        "git": describe_commit(Path(varangian.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "seed": config.seed,
        "threads": {"server": config.server.threads, "worker": config.worker.threads},
        "cpus": os.cpu_count(),
        "backend": config.backend,
        # Compiled kernels and plain torch round differently: the same bits need the same kernels.
        "kernels": kernels_in_use(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "own_code": own_code(config.resolved()),
    }


def own_code(settings: Any) -> dict[str, str]:
    """The files of the user's code that settings name as `module:name`, with a digest of each.

    A configuration holds names alone, so that it is the same after the code has changed.
    """
    if isinstance(settings, dict):
        return {k: v for pair in settings.items() for part in pair for k, v in own_code(part).items()}
    if isinstance(settings, list):
        return {k: v for part in settings for k, v in own_code(part).items()}
    name = settings.partition(":")[0] if isinstance(settings, str) and is_target(settings) else ""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return {}
    with contextlib.suppress(OSError):
        return {relative_path(file): hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()}
    return {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_commit(folder: Path) -> str | None:
    """The commit of this code, marked when it has been changed since; None outside a checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
