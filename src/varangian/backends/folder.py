"""The folder of a run: valid at every moment, also when the run is killed.

config.yaml              every setting, also those left to their defaults
manifest.json            versions, seed, threads, command, time
rounds.jsonl             one line for each round, written as it closes
metrics.csv              the numbers that are plotted
*.log                    who was refused and why, in a run with processes
parameters.safetensors   at the end
ema.safetensors          their average, in a run that has one
result.json              at the end, after everything else
"""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

import varangian
from varangian.aggregators import Rows
from varangian.aggregators.kernels import backend_for
from varangian.backends.result import RunError, RunResult
from varangian.config import RunConfig
from varangian.config.text import dump
from varangian.protos.layout import Layout
from varangian.server.policies import Sync
from varangian.server.record import RoundRecord

COLUMNS = ("round", "loss", "accuracy", "update_norm", "seconds")
AVERAGED = ("ema_loss", "ema_accuracy")
PACKAGES = ("torch", "numpy", "grpcio", "protobuf", "pydantic", "safetensors", "scikit-learn")
GIT_SECONDS = 5


class RunFolder:
    """Writes what a run leaves behind."""

    def __init__(self, path: Path, *, averaged: bool = False) -> None:
        self.path = path
        self._columns = COLUMNS + (AVERAGED if averaged else ())
        self._rounds = (path / "rounds.jsonl").open("x", encoding="utf-8")
        self._metrics = (path / "metrics.csv").open("x", encoding="utf-8", newline="")
        self._csv = csv.writer(self._metrics, lineterminator="\n")
        self._csv.writerow(self._columns)
        self._metrics.flush()

    @classmethod
    def create(cls, config: RunConfig, command: list[str] | None = None) -> RunFolder:
        """A new folder below `config.output`, named for the time and for what the run shows.

        Raises:
            RunError: it cannot be made.
        """
        try:
            path = fresh(Path(config.output), f"{time.strftime('%Y%m%d-%H%M%S')}-{short_name(config)}")
            write_atomically(path / "config.yaml", dump(config.resolved()).encode())
            write_atomically(path / "manifest.json", _json(manifest(config, command or sys.argv)))
            return cls(path, averaged=config.ema is not None)
        except OSError as error:
            reason = f"the run folder in {config.output!r} cannot be written: {error.strerror or error}"
            raise RunError(f"{reason}. Choose another place with output=DIR.") from error

    def observe(self, record: RoundRecord) -> None:
        """Append a round; on disk when this returns, as far as the process is concerned."""
        self._rounds.write(record.json() + "\n")
        self._rounds.flush()
        seconds = f"{sum(record.seconds.values()):.6f}"
        row = [seconds if name == "seconds" else getattr(record, name) for name in self._columns]
        self._csv.writerow(["" if value is None else value for value in row])
        self._metrics.flush()

    def finish(
        self, result: RunResult, parameters: Tensor, layout: Layout, average: Tensor | None = None
    ) -> None:
        """Write the parameters and their average, then the result; a folder with a result is complete."""
        tensors = named_tensors(parameters, layout)
        write_atomically(self.path / "parameters.safetensors", save(tensors, {"digest": result.digest}))
        if average is not None:
            write_atomically(self.path / "ema.safetensors", save(named_tensors(average, layout)))
        write_atomically(self.path / "result.json", _json(result.plain()))

    def close(self) -> None:
        self._rounds.close()
        self._metrics.close()


def short_name(config: RunConfig) -> str:
    """`nnm-krum-alie`: what distinguishes this run from its neighbours, safe as a file name."""
    spec = config.resolved()
    way = [] if isinstance(config.participation, Sync) else [*spec["participation"]]
    parts = [*way, *_names(spec["aggregator"]), *_names(spec["byzantine"]["attack"])]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(parts))[:60]


def named_tensors(parameters: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The flat vector cut into the tensors of the model."""
    sizes = [torch.Size(shape).numel() for _, shape in layout.entries]
    pieces = parameters.detach().cpu().split(sizes)
    return {
        name: piece.reshape(shape).clone()
        for (name, shape), piece in zip(layout.entries, pieces, strict=True)
    }


def manifest(config: RunConfig, command: list[str]) -> dict[str, Any]:
    """What else the numbers of a run may depend on."""
    return {
        "varangian": varangian.__version__,
        "git": commit(Path(varangian.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "seed": config.seed,
        "threads": {"server": config.server.threads, "worker": config.worker.threads},
        "cpus": os.cpu_count(),
        "backend": config.backend,
        # Compiled kernels and plain torch round differently: the same bits need the same kernels.
        "kernels": backend_for(Rows((torch.zeros(1),))).NAME,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
    }


def write_atomically(path: Path, content: bytes) -> None:
    """The whole file or none of it, also when the machine stops half way."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Without this a new name may be lost although its content is safe."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fresh(parent: Path, name: str) -> Path:
    """A new folder of this name, or with a number after it where that is taken."""
    parent.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        path = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return path


def _names(spec: Mapping[str, Any] | str | None) -> list[str]:
    """The names in a group, without their fields."""
    if spec is None:
        return []
    if isinstance(spec, str):
        return [spec]
    if "rule" in spec:
        return [name for part in [*spec.get("mix", []), spec["rule"]] for name in _names(part)]
    return list(spec)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit(folder: Path) -> str | None:
    """The commit of this code, marked when it has been changed since; None outside a checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
