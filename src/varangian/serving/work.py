"""One run of a program's server: from its settings to its result, on one event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from varangian.config import RunConfig
from varangian.launch.checkpoints.resumed import Resumed
from varangian.launch.monitoring.live import check_metrics
from varangian.launch.output.run_result import RunResult
from varangian.launch.processes import check_port, serve_run
from varangian.launch.result import Note, RunError
from varangian.launch.server_run import ServerRun
from varangian.plugins import InputError, guard
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.observability.record import Observe, RoundRecord
from varangian.serving.own_module import OwnModule
from varangian.serving.round_callback import RoundCallback
from varangian.structured_logs import enter
from varangian.trackers.follower import END, END_AFTER_SIGNAL
from varangian.worker.training.error_feedback import describe_deltas

GOES_ON = "varangian.Server(...).serve(..., resume='{folder}')"


@dataclass
class Work:
    """A run that is about to be served. `carry_out` is called once."""

    config: RunConfig
    model: OwnModule
    identity: bytes | Security
    """The secret that tokens are made with, or certificates."""
    on_round: Callable[[RoundRecord], object] | None
    note: Note
    path: Path | None = None
    """Of a new run folder; None for the usual place."""
    resumed: Resumed | None = None
    held: threading.Lock | None = None
    """That is released in the end."""
    observe: Observe | None = None
    """Shows rounds; None where nobody sees them."""
    folder: Path | None = None
    """The run folder, from its beginning on."""
    _ready: list[Callable[[str], object]] = field(default_factory=list[Callable[[str], object]])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _loop: asyncio.AbstractEventLoop | None = None
    _run: ServerRun | None = None
    _skipped: bool = False
    """Whether it was said that a round had no update."""
    _stop: str | None = None
    """Why the program wants the run to end."""

    def when_ready(self, function: Callable[[str], object]) -> None:
        """Call a function with `host:port` as soon as workers can connect."""
        self._ready.append(function)

    def stop(self, reason: str) -> None:
        """End the run for good after the round in hand; from any thread."""
        with self._lock:
            if self.held is None:  # it is over
                return
            self._stop = self._stop or reason
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._obey)

    def _obey(self) -> None:
        if self._run is not None and self._stop is not None:
            self._run.stop.by_program(self._stop)

    async def carry_out(self) -> RunResult:
        """Serve the run until it ends.

        Raises:
            RunError, ConfigError: it cannot be started.
        """
        try:
            return await self._carry_out()
        finally:
            self.release()

    def release(self) -> None:
        """Give back what the run has held, once; also where it did not begin."""
        with self._lock:
            self._loop = self._run = None
            held, self.held = self.held, None
        if held is not None:
            if self.resumed is not None:
                self.resumed.lock.release()
            held.release()

    async def _carry_out(self) -> RunResult:
        config = self.config
        check_port(config)
        security = self.identity if isinstance(self.identity, Security) else None
        check_metrics(config, certificates=security is not None)
        if config.participation.pushes_deltas:
            self.model.pushed = describe_deltas(config.wire.dtype)
        self.model.tell = lambda sentence: self.note(f"warning: {sentence}")
        run = ServerRun.open(config, self._observe, self.note, self.path, self.resumed, own=self.model)
        try:
            with closing(run):
                return await self._served(run, security)
        except InputError as error:
            raise RunError(str(error)) from error
        finally:
            if self._callback is not None:
                seconds = END if run.stop.signal is None else END_AFTER_SIGNAL
                await asyncio.to_thread(self._callback.close, seconds)

    async def _served(self, run: ServerRun, security: Security | None) -> RunResult:
        self.folder = run.path
        with self._lock:
            self._loop, self._run = asyncio.get_running_loop(), run
        self._obey()
        enter(run.path.name).round = run.machine.state.round
        for sentence in run.sentences:
            self.note(sentence)
        sessions = Sessions(
            run.latest.worker_names,
            None if isinstance(self.identity, Security) else self.identity,
            certificate_reader=None if security is None else security.certificate_reader,
            absent_after=run.config.server.absent_after,
        )
        how = "with TLS" if security else "without TLS"

        def ready(address: str) -> None:
            self.note(f"serving at {address}, {how}")
            for function in self._ready:
                with guard("`ready`"):
                    function(address)

        def enrolling(address: str) -> None:
            self.note(f"new workers ask for certificates at {address}, with varangian join")

        self._callback = None if self.on_round is None else RoundCallback(self.on_round, self.note)
        with run.stop.on_signals(self.note):
            try:
                ended = await serve_run(run, sessions, ready, security, returns=True, enrolling=enrolling)
                return run.result(ended, GOES_ON)
            finally:
                self.model.load(run.learner.parameters)

    _callback: RoundCallback | None = None

    def _observe(self, record: RoundRecord) -> None:
        if self.observe is not None:
            self.observe(record)
        elif record.skipped is not None and not self._skipped:
            self._skipped = True
            self.note(f"warning: no update in round {record.round}, nor perhaps later: {record.skipped}")
        if self._callback is not None:
            self._callback.observe(record)
