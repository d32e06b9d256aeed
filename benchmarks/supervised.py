"""Programs of one run on this machine, which are killed and started again by the same command lines.

For `kills.py` and `churn.py`. A supervisor as simple as any: it starts the same command again, and passes
no state on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from varangian.launch.checkpoints.lock import has_ended  # noqa: E402

SECRET = "a secret of a measurement"
LOOK = 0.01
"""Seconds between two looks at what a program has done."""


class Program:
    """One program, in a process group of its own.

    Args:
        name: of its log.
        command: that starts it, each time.
        folder: of its log.
        environment: besides that of this process.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, **environment: str) -> None:
        self.name, self.command = name, list(command)
        self.log = folder / f"{name}.log"
        self.starts = 0
        self._environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as log:
            log.write(f"--- start {self.starts}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        """The exit code, if it has ended."""
        return None if self._process is None else self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        if self._process is not None and self.code is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the whole group at once, and wait until it has gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self, seconds: float) -> int:
        """Wait for its end; returns the exit code.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        assert self._process is not None
        return self._process.wait(seconds)

    def tail(self, characters: int = 3000) -> str:
        """The end of what it said."""
        return self.log.read_text(errors="replace")[-characters:]


class Supervised:
    """A server and its workers, or `varangian run` with all of them.

    Args:
        folder: for everything that they write.
        settings: of the run, the same for all programs.
        names: of the workers.
        whole: whether one `varangian run` starts the workers itself.
        server: what stands in the place of `python -m varangian` before the arguments of the server.
    """

    def __init__(
        self,
        folder: Path,
        settings: Sequence[str],
        names: Sequence[str],
        *,
        whole: bool = False,
        server: Sequence[str] = (),
    ) -> None:
        self.output = folder / "runs"
        self.output.mkdir(parents=True, exist_ok=True)
        varangian = [sys.executable, "-m", "varangian"]
        paths = [f"output={self.output}"]
        ends = ["--format", "plain", "--resume"]
        self.workers: dict[str, Program] = {}
        if whole:
            self.server = Program("run", [*varangian, "run", *settings, *paths, *ends], folder)
            return
        address = f"127.0.0.1:{free_port()}"
        serve = [*(server or varangian), "server", *settings, *paths, "--bind", address, *ends]
        self.server = Program("server", serve, folder, VARANGIAN_SECRET=SECRET)
        for name in names:
            states = f"worker.state={folder / 'states'}"
            work = [*varangian, "worker", "--server", address, "--name", name, *settings, states]
            self.workers[name] = Program(name, work, folder, VARANGIAN_SECRET=SECRET)

    @property
    def programs(self) -> tuple[Program, ...]:
        return (self.server, *self.workers.values())

    def start(self) -> None:
        for program in self.programs:
            program.start()

    def close(self) -> None:
        for program in self.programs:
            program.kill()

    @property
    def run(self) -> Path | None:
        """The run folder, once there is one."""
        found = [path for path in self.output.iterdir() if (path / "rounds.jsonl").exists()]
        if len(found) > 1:
            raise RuntimeError(f"a resumed run has more than one folder: {sorted(found)}")
        return found[0] if found else None

    def lines(self) -> list[dict[str, Any]]:
        """The record so far, but for a line that is being written."""
        run = self.run
        if run is None:
            return []
        whole, _, _ = (run / "rounds.jsonl").read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()]

    def result(self) -> dict[str, Any]:
        """What `result.json` says at the end."""
        run = self.run
        assert run is not None
        found: dict[str, Any] = json.loads((run / "result.json").read_text())
        return found

    def has_ended(self) -> bool:
        """Whether the server has said that it ended: its result is written, and workers were told."""
        run = self.run
        return run is not None and (run / "result.json").exists() and has_ended(run)

    def until_lines(self, count: int, seconds: float) -> bool:
        """Wait for more lines of the record than this; False if the server ends before.

        Raises:
            TimeoutError: neither happens.
        """
        limit = time.monotonic() + seconds
        while self.count() <= count:
            if self.server.code is not None:
                return False
            if time.monotonic() > limit:
                raise TimeoutError(f"no round in {seconds:g} s:\n{self.server.tail()}")
            time.sleep(LOOK)
        return True

    def count(self) -> int:
        """Whole lines of the record."""
        run = self.run
        return 0 if run is None else (run / "rounds.jsonl").read_bytes().count(b"\n")


@contextlib.contextmanager
def started(programs: Supervised) -> Iterator[Supervised]:
    """The programs at work; none is left at the end, also of a script that is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        programs.start()
        yield programs
    finally:
        programs.close()


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
