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
lock                     the server that works here, and those before it
checkpoints/             states of the server, from which a run goes on
rows/                    vectors of the last rounds, if they are kept

A run that goes on after a crash appends to the records of rounds: a round that is done again has two lines,
of which the last counts. Nothing but a line that was cut off is taken from rounds.jsonl. Its lines are a
hash chain.

Lines are written by threads, so neither a full nor a slow disk holds a round up. What cannot be written
when the run ends is written elsewhere, and its place is told.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varangian import files
from varangian.aggregators.spec import parts_of
from varangian.config import RunConfig
from varangian.config.yaml_text import dump
from varangian.files import user_path, write_atomically
from varangian.launch.output.chain import Chain, Signer, as_document, beginning, head_of
from varangian.launch.output.files import Record, make_at, make_folder, mend, queued_record
from varangian.launch.output.manifest import manifest
from varangian.launch.output.queued_writer import Warn, warn_on_stderr
from varangian.launch.output.run_result import RunResult
from varangian.launch.result import RunError
from varangian.server.observability.record import RoundRecord
from varangian.server.participation import DEFAULT, PARTICIPATION
from varangian.worker.attacks import ATTACKS

BEFORE, AFTER = ("round", "time", "lr", "train_loss", "loss"), ("update_norm", "seconds")
"""Columns before and after the metrics of the run."""
SPARE = 3
"""File descriptors that are kept for saving the model, should there be no others when the run ends."""
CONFIG, MANIFEST, ROUNDS, METRICS = "config.yaml", "manifest.json", "rounds.jsonl", "metrics.csv"
RESULT, LOCK = "result.json", "lock"


@dataclass(frozen=True)
class RecordPlace:
    """A place in the record of rounds, behind all lines of the rounds before it."""

    bytes: int
    lines: int
    lost: int = 0
    """Lines before it that could not be written."""
    head: str = ""
    """The digest of the last line before it, or of the beginning of the chain."""


class RunFolder:
    """The folder of one run, and its files.

    Args:
        path: an empty folder, or that of a run that goes on.
        documents: small files that say what the run is, by name; written where they are missing.
        warn: takes a sentence when something cannot be written; called from any thread.
        metrics: the names of what held-out data is asked besides the loss.
        averaged: whether the run has an average of its model.
        following: the round that a run goes on with; None for a new one.
        elapsed: seconds that the run has taken before it goes on.
        resumed: what the first record of a run that goes on says of that, beside its round.
    """

    def __init__(
        self,
        path: Path,
        documents: Mapping[str, bytes],
        warn: Warn = warn_on_stderr,
        *,
        metrics: Sequence[str] = ("accuracy",),
        averaged: bool = False,
        following: int | None = None,
        elapsed: float = 0.0,
        resumed: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._documents, self.warn = dict(documents), warn
        average = [f"ema_{name}" for name in ("loss", *metrics)] if averaged else []
        self._columns = (*BEFORE, *metrics, *average, *AFTER)
        self._began = time.monotonic() - elapsed
        self._new = following is None
        self.mended = 0
        """Bytes of a last line that was not written to its end, and is cut off."""
        self._before: dict[str, bytes | None] = {}
        """What a run that goes on has written over or removed, until it has done a round; None: nothing."""
        if following is not None:
            new = {name: None for name in documents if not (path / name).exists()}
            self._before = {RESULT: _content(path / RESULT), METRICS: _content(path / METRICS), **new}
        for name, content in documents.items():
            if not (path / name).exists():
                write_atomically(path / name, content)
        if following is not None:
            self.mended = mend(path / ROUNDS)
            write_atomically(path / METRICS, self._metrics_before(following))
            (path / RESULT).unlink(missing_ok=True)
        again = not self._new
        self._records = {name: Record(path / name, warn, again=again) for name in (ROUNDS, METRICS)}
        before = self._records[ROUNDS].content() if again else b""
        self._size, self._lines = len(before), before.count(b"\n")
        last = before[before.rfind(b"\n", 0, -1) + 1 :]
        self._chain = Chain(head_of(last) if last else beginning(documents[CONFIG], documents[MANIFEST]))
        self._resumed = (
            None if self._new else {"round": following, **(resumed or {}), "mended": self.mended}
        )
        self._writers = [
            queued_record(record, str(path / name), warn) for name, record in self._records.items()
        ]
        self._rounds, self._metrics = self._writers
        self._spare = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(SPARE)]
        self._elsewhere = set[str]()
        """Records that are complete in another place."""
        if self._new:
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
        documents = {CONFIG: dump(config.resolved()).encode(), MANIFEST: as_document(known)}
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
                _remove_files(made, [*documents, ROUNDS, METRICS])
            place = repr(config.output) if path is None else repr(str(path.parent))
            reason = f"the run folder in {place} cannot be written: {error.strerror or error}"
            raise RunError(f"{reason}. Choose another place with output=DIR.") from error

    @classmethod
    def reopen(
        cls,
        path: Path,
        config: RunConfig,
        following: int,
        *,
        metrics: Sequence[str] = ("accuracy",),
        elapsed: float = 0.0,
        documents: Mapping[str, bytes] | None = None,
        resumed: Mapping[str, Any] | None = None,
        warn: Warn = warn_on_stderr,
    ) -> RunFolder:
        """The folder of a run that goes on; it has no result any more.

        Args:
            path: of the folder.
            config: with which the run goes on.
            following: the round that it goes on with; of the metrics the rows before it are kept.
            metrics: as above.
            elapsed: seconds that the run has taken up to there.
            documents: more of them, as other settings than those of the start.
            resumed: as above.
            warn: as above.

        Raises:
            RunError: it is no folder of a run, or cannot be written.
        """
        try:
            found = {name: (path / name).read_bytes() for name in (CONFIG, MANIFEST)}
            return cls(
                path,
                {**found, **(documents or {})},
                warn,
                metrics=metrics,
                averaged=config.ema is not None,
                following=following,
                elapsed=elapsed,
                resumed=resumed,
            )
        except FileNotFoundError as error:
            raise RunError(f"{path} should be the folder of a run. There is no {error.filename}") from error
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"the run in {path} cannot go on, as it cannot be written: {reason}") from error

    def sign_with(self, signer: Signer) -> None:
        """Sign the lines of rounds from now on."""
        self._chain.signer = signer

    def observe(self, record: RoundRecord) -> None:
        """Queue the lines of a round; returns at once, and they are on disk soon after."""
        if self._resumed is not None:
            record, self._resumed = dataclasses.replace(record, resumed=self._resumed), None
            self._before = {}
        line = self._chain.line(record.json(), self._rounds.lost) + "\n"
        self._size, self._lines = self._size + len(line), self._lines + 1
        self._rounds.write(line)
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
        for record in self._records.values():
            with contextlib.suppress(OSError):  # the result counts without them
                record.sync()
        place = self.place

        def ended(path: Path) -> bytes:
            known = {"lines": place.lines, "digest": place.head, "lost": place.lost}
            return as_document({**dataclasses.replace(result, folder=path).plain(), "record": known})

        path = self._somewhere(models, {RESULT: ended})
        return dataclasses.replace(result, folder=path)

    @property
    def place(self) -> RecordPlace:
        """The place in the record behind the rounds that were observed."""
        lost, size = self._rounds.lost, self._rounds.lost_bytes
        return RecordPlace(self._size - size, self._lines - lost, lost, self._chain.head)

    def sync(self, place: RecordPlace) -> None:
        """Wait until all lines before a place are on the disk, as one that fails keeps them.

        Raises:
            OSError: some are not, or are lost.
        """
        if not self._rounds.drain():
            error = self._rounds.error or TimeoutError(errno.ETIMEDOUT, "its disk is too slow")
            raise OSError(error.errno, error.strerror, str(self.path / ROUNDS))
        if self._rounds.lost > place.lost:
            raise OSError(errno.EIO, "lines were lost", str(self.path / ROUNDS))
        self._records[ROUNDS].sync()
        folder = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            files.fsync(folder)  # the name of the record, too
        finally:
            os.close(folder)

    def restore(self) -> None:
        """Make the folder again if it has gone, with its documents and its records.

        Raises:
            OSError: that is not possible.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in self._documents.items():
            if not (self.path / name).exists():
                write_atomically(self.path / name, content)
        for record in self._records.values():
            record.restore()

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

    def take_back(self) -> bool:
        """Whether this run goes on and has done no round since: then its folder is as it was before."""
        if self._resumed is None:
            return False
        with contextlib.suppress(OSError):  # its checkpoints are there in any case
            for name, content in self._before.items():
                if content is None:
                    (self.path / name).unlink(missing_ok=True)
                else:
                    write_atomically(self.path / name, content)
        return True

    def discard(self) -> None:
        """Remove the folder of a run that did not begin; that of one that goes on stays."""
        if self._new:
            _remove_files(self.path, [*self._documents, *self._records, "server.log", LOCK])

    def _metrics_before(self, following: int) -> bytes:
        """The metrics of the rounds before this one, in the columns of this run."""
        try:
            text = (self.path / METRICS).read_text("utf-8", "replace")
        except FileNotFoundError:
            text = ""
        whole = text[: text.rfind("\n") + 1].splitlines()
        rows = [row for row in csv.DictReader(whole) if (row.get("round") or "").isdecimal()]
        # A round that was done again has its last row at the end of the file.
        kept = {int(row["round"]): row for row in rows if int(row["round"]) < following}
        lines = [_line([kept[round].get(name) for name in self._columns]) for round in sorted(kept)]
        return "".join([_line(self._columns), *lines]).encode()

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


def _line(values: Iterable[Any]) -> str:
    """Values as a line of CSV; nothing for None."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(["" if value is None else value for value in values])
    return line.getvalue()


def _content(path: Path) -> bytes | None:
    """The content of a file; None if there is none that can be read."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return None


def _remove_files(path: Path, names: Iterable[str]) -> None:
    """Remove these files, and the folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        for name in names:
            (path / name).unlink(missing_ok=True)
        path.rmdir()
