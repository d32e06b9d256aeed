"""The metrics port of a run that goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varangian.config import RunConfig
from varangian.files import user_path
from varangian.launch.result import RunError
from varangian.protos.network.address import is_loopback
from varangian.protos.network.listen import ListenError
from varangian.registry import ConfigError, Problem
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.protocol.state import Phase
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.transport.grpc_server import probe

if TYPE_CHECKING:
    from varangian.launch.server_run import ServerRun
    from varangian.server.monitoring.monitoring import Monitoring


def check_metrics(config: RunConfig, *, certificates: bool) -> None:
    """See that there can be a metrics port where one is asked for, before data is loaded.

    Args:
        config: of the run.
        certificates: whether the server has some of an authority that others know.

    Raises:
        ConfigError: others than this machine could look, or the token cannot be used.
        RunError: the port is not to be had.
    """
    server = config.server
    if server.metrics_port is None:
        return
    if not (is_loopback(server.metrics_host) or certificates or server.metrics_token):
        rule = "is reached from elsewhere: it needs `server.metrics_token`, or `varangian server --certs`"
        hint = "Set server.metrics_host=127.0.0.1 for this machine alone."
        raise ConfigError([Problem("server.metrics_host", rule, server.metrics_host, hint)])
    _token(config)
    try:
        probe(server.metrics_host, server.metrics_port, "server.metrics_port")
    except ListenError as error:
        raise RunError(str(error)) from error


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
    from varangian.server.monitoring.http import Answer
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
    if (metrics := server_run.metrics) is not None:
        from varangian.server.observability.metrics import CONTENT_TYPE

        monitoring.add("/metrics", lambda: Answer(metrics.exposition(), CONTENT_TYPE))
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
