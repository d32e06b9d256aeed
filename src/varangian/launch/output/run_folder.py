"""The folder of a run: valid at every moment, also when the run is killed.

config.yaml              every setting, also those left to their defaults
manifest.json            versions, seed, threads, command, time, memory
rounds.jsonl             one line for each round, written within a tenth of a second
metrics.csv              the numbers that are plotted: time (seconds since the folder was made), learning
                         rate, the loss on training and on held-out data, and all metrics by name
*.log                    who was refused and why, in a run with processes
parameters.safetensors   at the end, or when the run fails: the whole state of the model
ema.safetensors          the same of its average, in a run that has one
result.json              at the end, after everything else

Lines are written by threads, so neither a full nor a slow disk holds a round up. What cannot be written
when the run ends is written elsewhere, and its place is told.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import varangian
from varangian.aggregators import Rows
from varangian.aggregators.kernels import backend_for
from varangian.aggregators.spec import parts_of
from varangian.config import RunConfig
from varangian.config.yaml_text import dump
from varangian.files import user_path, write_atomically
from varangian.launch.output.files import Record, make_at, make_folder, queued_record
from varangian.launch.output.queued_writer import Warn, warn_on_stderr
from varangian.launch.output.run_result import RunResult
from varangian.launch.result import RunError
from varangian.plugins import relative_path
from varangian.registry import is_target
from varangian.server.observability.record import RoundRecord
from varangian.server.participation import DEFAULT, PARTICIPATION
from varangian.worker.attacks import ATTACKS

BEFORE, AFTER = ("round", "time", "lr", "train_loss", "loss"), ("update_norm", "seconds")
"""Columns before and after the metrics of the run."""
PACKAGES = ("torch", "numpy", "grpcio", "protobuf", "pydantic", "safetensors", "scikit-learn")
GIT_SECONDS = 5
SPARE = 3
"""File descriptors that are kept for saving the model, should there be no others when the run ends."""


class RunFolder:
    """The folder of one run, and its files.

    Args:
        path: an empty folder.
        documents: small files that say what the run is, by name.
        warn: takes a sentence when something cannot be written; called from any thread.
        metrics: the names of what held-out data is asked besides the loss.
        averaged: whether the run has an average of its model.
    """

    def __init__(
        self,
        path: Path,
        documents: Mapping[str, bytes],
        warn: Warn = warn_on_stderr,
        *,
        metrics: Sequence[str] = ("accuracy",),
        averaged: bool = False,
    ) -> None:
        self.path = path
        self._documents, self.warn = dict(documents), warn
        average = [f"ema_{name}" for name in ("loss", *metrics)] if averaged else []
        self._columns = (*BEFORE, *metrics, *average, *AFTER)
        self._began = time.monotonic()
        for name, content in documents.items():
            write_atomically(path / name, content)
        self._records = {name: Record(path / name, warn) for name in ("rounds.jsonl", "metrics.csv")}
        self._writers = [
            queued_record(record, str(path / name), warn) for name, record in self._records.items()
        ]
        self._rounds, self._metrics = self._writers
        self._spare = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(SPARE)]
        self._elsewhere = set[str]()
        """Records that are complete in another place."""
        self._metrics.write(_line(self._columns))

    @classmethod
    def create(
        cls,
        config: RunConfig,
        command: list[str] | None = None,
        *,
        metrics: Sequence[str] = ("accuracy",),
        facts: Mapping[str, Any] | None = None,
        warn: Warn = warn_on_stderr,
        path: Path | None = None,
    ) -> RunFolder:
        """A new folder below `config.output`, named for the time and for what the run shows; or another.

        Args:
            config: of the run.
            command: that started it; by default that of this process.
            metrics: as above.
            facts: more for the manifest.
            warn: as above.
            path: of the folder, made if it does not exist.

        Raises:
            RunError: it cannot be made, or it holds something already.
        """
        known = manifest(config, command or sys.argv) | dict(facts or {})
        documents = {"config.yaml": dump(config.resolved()).encode(), "manifest.json": _json(known)}
        made = None
        try:
            if path is None:
                name = f"{time.strftime('%Y%m%d-%H%M%S')}-{short_name(config)}"
                made = make_folder(user_path(config.output), name)
            else:
                made = make_at(path)
            return cls(made, documents, warn, metrics=metrics, averaged=config.ema is not None)
        except OSError as error:
            if made is not None:
                _remove_files(made, [*documents, "rounds.jsonl", "metrics.csv"])
            place = repr(config.output) if path is None else repr(str(path.parent))
            reason = f"the run folder in {place} cannot be written: {error.strerror or error}"
            raise RunError(f"{reason}. Choose another place with output=DIR.") from error

    def observe(self, record: RoundRecord) -> None:
        """Queue the lines of a round; returns at once, and they are on disk soon after."""
        self._rounds.write(record.json() + "\n")
        values = {
            **{name: getattr(record, name, None) for name in self._columns},
            **(record.metrics or {}),
            "time": f"{time.monotonic() - self._began:.3f}",
            "seconds": f"{sum(record.seconds.values()):.6f}",
        }
        self._metrics.write(_line(values[name] for name in self._columns))

    def save(self, models: Mapping[str, bytes]) -> Path:
        """Write the files of the model, in the run folder or else in another; returns which.

        Raises:
            RunError: no place takes them.
        """
        return self._somewhere(models)

    def finish(self, result: RunResult, models: Mapping[str, bytes]) -> RunResult:
        """Write the files of the model, then the result; a folder with a result is complete.

        Returns:
            The result with the folder that has these files.

        Raises:
            RunError: no place takes them.
        """
        self.flush()

        def ended(path: Path) -> bytes:
            return _json(dataclasses.replace(result, folder=path).plain())

        path = self._somewhere(models, {"result.json": ended})
        return dataclasses.replace(result, folder=path)

    def flush(self) -> None:
        """Wait until the lines are on disk; not for long."""
        for writer in self._writers:
            writer.drain()

    def close(self) -> None:
        """Write what is queued, and say what could not be."""
        self._release()
        for writer, (name, record) in zip(self._writers, self._records.items(), strict=True):
            if writer.close():
                record.close()
            if writer.lost and name not in self._elsewhere:
                self.warn(f"{writer.lost} lines of {writer.name} are lost: they could not be written")

    def discard(self) -> None:
        """Remove the folder of a run that did not begin."""
        _remove_files(self.path, [*self._documents, *self._records, "server.log"])

    def _release(self) -> None:
        """Give the spare descriptors back."""
        while self._spare:
            os.close(self._spare.pop())

    def _somewhere(
        self, models: Mapping[str, bytes], last: Mapping[str, Callable[[Path], bytes]] | None = None
    ) -> Path:
        self._release()
        failures: list[str] = []
        for place in self._places():
            path = None
            try:
                path = place()
                for name, content in models.items():
                    write_atomically(path / name, content)
                self._accompany(path)
                for name, make in (last or {}).items():
                    write_atomically(path / name, make(path))
            except OSError as error:
                failures.append(f"{error.filename or path or 'a folder'}: {error.strerror or error}")
                if path is not None and path != self.path:
                    _remove_files(path, [*models, *self._documents, *self._records, *(last or {})])
                continue
            if failures:
                self.warn(
                    f"the parameters are in {path}, as the run folder cannot be written ({failures[0]})"
                )
            return path
        raise RunError(f"the parameters cannot be saved. {'; '.join(failures)}")

    def _places(self) -> Iterator[Callable[[], Path]]:
        """The run folder, made again if it has gone; then where others may have room."""

        def itself() -> Path:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self.path

        yield itself
        for parent in (Path.cwd, lambda: Path(tempfile.gettempdir()), Path.home):
            yield lambda parent=parent: make_folder(parent(), self.path.name)  # type: ignore[misc]

    def _accompany(self, path: Path) -> None:
        """Write the configuration and the records of the run where they are missing, if there is room."""
        for name, content in self._documents.items():
            if not (path / name).exists():
                with contextlib.suppress(OSError):
                    write_atomically(path / name, content)
        for writer, (name, record) in zip(self._writers, self._records.items(), strict=True):
            if not (path / name).exists():
                with contextlib.suppress(OSError):
                    write_atomically(path / name, record.content() + writer.waiting())
                    self._elsewhere.add(name)


def short_name(config: RunConfig) -> str:
    """`nnm-krum-alie`: what distinguishes this run from its neighbours, safe as a file name."""
    names = [re.split("[.:]", path)[-1] for path in parts_of(config.aggregator)]
    if config.aggregator.per_block:
        names.append("per_block")
    if (participation := PARTICIPATION.name(config.participation)) != DEFAULT:
        names.insert(0, participation)
    if config.byzantine.attack is not None:
        names.append(re.split("[.:]", ATTACKS.name(config.byzantine.attack))[-1])
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(names))[:60]


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
        "kernels": backend_for(Rows((torch.zeros(1),))).NAME,
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


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _line(values: Iterable[Any]) -> str:
    """Values as a line of CSV; nothing for None."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(["" if value is None else value for value in values])
    return line.getvalue()


def _remove_files(path: Path, names: Iterable[str]) -> None:
    """Remove these files, and the folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        for name in names:
            (path / name).unlink(missing_ok=True)
        path.rmdir()
