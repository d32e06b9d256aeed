"""The metrics port of a run that goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from varangian.config import RunConfig
from varangian.files import user_path
from varangian.launch.monitoring.certificates import certificate_warnings
from varangian.launch.monitoring.facts import facts_of, title_of
from varangian.launch.result import RunError
from varangian.protos.network.address import is_loopback
from varangian.protos.network.listen import ListenError
from varangian.protos.text import escape
from varangian.registry import ConfigError, Problem
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.monitoring.history import History
from varangian.server.monitoring.overview import Overview, curves_of, rounded, views
from varangian.server.protocol.state import Phase
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.transport.grpc_server import probe

if TYPE_CHECKING:
    from varangian.launch.server_run import ServerRun
    from varangian.server.monitoring.monitoring import Monitoring
    from varangian.server.observability.record import RoundRecord

FRESH = 0.5
"""Seconds for which an overview is used again, however many ask for it."""
LATELY = 20
"""Rounds over which their rate is taken."""


def check_metrics(config: RunConfig, *, certificates: bool) -> None:
    """See that there can be a metrics port where one is asked for, before data is loaded.

    Args:
        config: of the run.
        certificates: whether the server has some of an authority that others know.

    Raises:
        ConfigError: others than this machine could look, or the token cannot be used.
        RunError: the port is not to be had.
    """
    check_access(config, certificates=certificates)
    server = config.server
    if server.metrics_port is None:
        return
    try:
        probe(server.metrics_host, server.metrics_port, "server.metrics_port")
    except ListenError as error:
        raise RunError(str(error)) from error


def check_access(config: RunConfig, *, certificates: bool) -> None:
    """See that a metrics port is for those alone who may look.

    Args:
        config: of the run.
        certificates: whether the server has some of an authority that others know.

    Raises:
        ConfigError: others than this machine could look, or the token cannot be used.
    """
    server = config.server
    if server.metrics_port is None:
        return
    if not (is_loopback(server.metrics_host) or certificates or server.metrics_token):
        rule = "is reached from elsewhere: it needs `server.metrics_token`, or `varangian server --certs`"
        hint = "Set server.metrics_host=127.0.0.1 for this machine alone."
        raise ConfigError([Problem("server.metrics_host", rule, server.metrics_host, hint)])
    _token(config)


@dataclass
class LiveView:
    """What the page shows of a run that this process serves. For its event loop."""

    run: ServerRun
    coordinator: Coordinator
    sessions: Sessions
    security: Security | None = None
    """The server's certificates; None without TLS."""
    _ended: deque[float] = field(default_factory=lambda: deque[float](maxlen=LATELY))
    """When the last rounds were done, in seconds from any start."""
    _made: tuple[float, bytes] | None = None

    def __post_init__(self) -> None:
        from varangian.launch.monitoring.folder import FolderView

        self._facts = facts_of(self.run.config.resolved())
        self._title = title_of(self.run.config.resolved())
        config = self.run.config
        self._attackers = frozenset(config.byzantine_names if config.byzantine.count else ())
        # What a run did before it went on stands in its folder.
        self._history = FolderView(self.run.path).history() if self.run.resumed is not None else History()
        if self.run.resumed is not None:
            self._history.cut(self.run.resumed.round)

    def observe(self, record: RoundRecord) -> None:
        """Take the record of a round."""
        self._ended.append(time.monotonic())
        self._history.add(vars(record))

    def state(self) -> bytes:
        """The overview as JSON, at most a moment old."""
        now = time.monotonic()
        if self._made is None or now - self._made[0] >= FRESH:
            self._made = now, self.overview().json()
        return self._made[1]

    def overview(self) -> Overview:
        """The run at this moment."""
        run, history, status = self.run, self._history, self.coordinator.status()
        policy, connected = run.machine.policy, self.sessions.connected
        answers = (
            *((name, "asked") for name in status.missing),
            *((name, "declined") for name in status.declined),
            *((name, "pushed") for name in status.counted),
            *((name, "faulty") for name in status.faulty),
        )
        answer = {} if status.finished else dict(answers)
        silences, ends = self.sessions.silences(), self.sessions.certificate_ends()
        known = {
            name: {
                "state": "leaving"
                if name in policy.leaving
                else "connected"
                if name in connected
                else "absent",
                "answer": answer.get(name, "") if name in connected else "",
                "seen_seconds": round(silences[name]) if name in silences else None,
                "certificate_expires": ends.get(name),
                "byzantine": name in self._attackers,
            }
            for name in policy.workers
        }
        received, sent = (sum(counts.values()) for counts in (run.traffic.received, run.traffic.sent))
        kept = None if run.keeper is None else run.keeper.latest
        return Overview(
            run=run.path.name,
            title=self._title,
            live=True,
            state=self._state(status.finished),
            sentence=escape(run.stop.reason or status.sentence, 500),
            round=status.round,
            rounds=status.rounds,
            present=len(connected.intersection(policy.workers)),
            workers_total=len(policy.workers),
            quorum=policy.quorum,
            f=run.config.f,
            elapsed=round(time.monotonic() - run.began),
            rate=self._rate(),
            scores={name: rounded(value) for name, value in history.latest.items()},
            curves=curves_of(history),
            window=[one.round for one in history.window],
            skipped=[one.round for one in history.window if one.skipped],
            seconds={name: rounded(value) for name, value in history.seconds.items()},
            workers=views(policy.workers, history, known),
            refusals=dict(sorted(run.refused.items())),
            received=received,
            sent=sent,
            checkpoint=None if kept is None else kept[0],
            warnings=self._warnings(ends),
            facts={**self._facts, "quorum": str(policy.quorum), **self._revoked()},
        )

    def _state(self, finished: bool) -> str:
        if self.run.stop.event.is_set():
            asked = self.run.stop.signal is not None or self.run.stop.for_good
            return "interrupted" if asked else "failed"
        return "finished" if finished and self.run.rounds else "failed" if finished else "running"

    def _rate(self) -> float | None:
        """Rounds in a second, of the last rounds and of the one that is open."""
        ended = self._ended
        lasted = time.monotonic() - ended[0] if len(ended) > 1 else 0.0
        return rounded((len(ended) - 1) / lasted) if lasted > 0 else None

    def _warnings(self, ends: Mapping[str, float]) -> list[str]:
        sentence = self.run.failures.sentence(self.run.rounds)
        found = [] if sentence is None else [sentence]
        if self.security is not None:
            found += self.security.warnings()
        found += certificate_warnings(ends, self.run.machine.state.revoked)
        return [escape(text, 500) for text in found]

    def _revoked(self) -> dict[str, str]:
        """How many certificates are revoked, where there are some at all."""
        return {} if self.security is None else {"revoked certificates": str(len(self.security.revoked))}


def open_monitoring(
    server_run: ServerRun, coordinator: Coordinator, sessions: Sessions, security: Security | None
) -> Monitoring | None:
    """The metrics port of a run; None where it has none.

    Args:
        server_run: the run.
        coordinator: of it.
        sessions: of its workers.
        security: the server's certificates, where others know their authority.
    """
    server = server_run.config.server
    if server.metrics_port is None:
        return None
    from varangian.server.monitoring.monitoring import Monitoring

    def not_ready() -> str:
        if server_run.machine.state.phase is Phase.FINISHED:
            return "the run has ended"
        return "the run is about to end" if server_run.over else ""

    monitoring = Monitoring(
        server.metrics_host,
        server.metrics_port,
        token=_token(server_run.config),
        # On this machine alone nobody else can read what is sent.
        security=None if is_loopback(server.metrics_host) else security,
        announce=lambda url: server_run.note(f"the page of the run is {url}"),
    )
    monitoring.ready_when(not_ready)
    view = LiveView(server_run, coordinator, sessions, security)
    server_run.watch = view.observe
    monitoring.show(view.state)
    if (metrics := server_run.metrics) is not None:
        from varangian.server.observability.metrics import CONTENT_TYPE

        monitoring.expose(metrics.exposition, CONTENT_TYPE)
    return monitoring


def _token(config: RunConfig) -> bytes | None:
    """The token of the metrics port.

    Raises:
        ConfigError: it cannot be used.
    """
    path = config.server.metrics_token
    if path is None:
        return None
    from varangian.server.monitoring.access import TokenError, read_token

    try:
        return read_token(user_path(path))
    except TokenError as error:
        raise ConfigError([Problem("server.metrics_token", str(error).rstrip("."))]) from None
