"""`varangian server`: the server of a run whose workers are programs of their own."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from contextlib import closing
from pathlib import Path

from varangian.cli.commands.run import GoingOn, configuration, exit_code, with_shortcuts
from varangian.cli.credentials import check, read_choice
from varangian.cli.main import OK, CommandError, ignore_sigterm
from varangian.cli.tokens import secret
from varangian.cli.views.progress import Progress, progress, view_for
from varangian.config import RunConfig
from varangian.launch.checkpoints.resume import RunOver, failure
from varangian.launch.checkpoints.resumed import Resumed
from varangian.launch.identities import with_identity
from varangian.launch.monitoring.live import check_metrics
from varangian.launch.output.logs import log_to_stderr
from varangian.launch.output.run_result import RunResult
from varangian.launch.processes import check_port, serve_run
from varangian.launch.result import RunError
from varangian.launch.server_run import ServerRun
from varangian.protos.identity.bundle import BundleError
from varangian.protos.identity.credentials import warn_without_tls
from varangian.protos.network import descriptors
from varangian.protos.network.address import EVERYWHERE, AddressError, parse_address
from varangian.protos.network.descriptors import check_free
from varangian.registry import ConfigError, Problem
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.structured_logs import enter, log_format


def command(args: argparse.Namespace) -> int:
    """Serve one run to workers elsewhere."""
    form = log_format(args.log_format)
    settings = [*with_shortcuts(args), *_bind_settings(args.bind)]
    config, going_on = configuration(args, settings, whole=False)
    if going_on is not None and not args.resume:
        _check_not_failed(going_on)
    chosen = read_choice(args)
    check(chosen, config.server.host)
    config = with_identity(config, chosen.certs is not None, "--certs DIR")
    identity = secret() if chosen.certs is None else _load_security(chosen.certs)
    log_to_stderr(logging.WARNING, form)
    warn_without_tls(chosen, config.server.host)
    try:
        view = view_for(args.format, form)
        with progress(view, config.rounds, (), declared=config.f) as shown:
            check_free()
            config, resumed = (
                (config, None) if going_on is None else going_on.resume(config, shown.note, at_end=True)
            )
            try:
                result, code = asyncio.run(_serve(config, identity, shown, resumed, args.until_done))
            finally:
                if resumed is not None:  # also if it could not be opened
                    resumed.lock.release()
        shown.finish(result)
    except RunOver as over:
        print(over)
        return OK
    except RunError as error:
        raise CommandError(str(error)) from error
    return code


def _check_not_failed(going_on: GoingOn) -> None:
    """A supervisor that starts a server again does not repeat a failure.

    Raises:
        CommandError: the run that would go on has ended by itself.
    """
    folder = going_on.folder
    if folder is not None and (reason := failure(folder)) is not None:
        raise CommandError(
            f"{folder} has failed: {reason}. To go on with it all the same: --resume {folder}"
        )


async def _serve(
    config: RunConfig,
    identity: bytes | Security,
    shown: Progress,
    resumed: Resumed | None,
    until_done: bool,
) -> tuple[RunResult, int]:
    """The result of the run and the exit code.

    After SIGTERM it is 0, if nothing of the run is lost by it; with `until_done` only if the run is over.
    """
    check_port(config)
    check_metrics(config, certificates=isinstance(identity, Security))
    server_run = ServerRun.open(config, shown.round, shown.note, resume=resumed)
    enter(server_run.folder.path.name).round = server_run.machine.state.round
    for sentence in server_run.sentences:
        shown.note(sentence)
    workers = server_run.latest.worker_names
    security, key = (identity, None) if isinstance(identity, Security) else (None, identity)
    sessions = Sessions(
        workers,
        key,
        certificate_reader=None if security is None else security.certificate_reader,
        absent_after=config.server.absent_after,
    )
    how = "with TLS" if security else "without TLS"
    files = descriptors.describe_limit(len(workers), config.server.data_port is not None)
    with server_run.stop.on_signals(shown.note):
        with closing(server_run):

            def ready(address: str) -> None:
                shown.note(f"serving at {address}, {how}; {files}")

            def enrolling(address: str) -> None:
                shown.note(f"new workers ask for certificates at {address}, with varangian join")

            ended = await serve_run(
                server_run, sessions, ready, security, returns=True, enrolling=enrolling
            )
            result = server_run.result(ended, "varangian server --resume {folder}")
            complete = result.outcome == "finished" or (server_run.can_go_on and not until_done)
        ignore_sigterm()  # everything is written
    return result, OK if complete and server_run.stop.signal == signal.SIGTERM else exit_code(result)


def _load_security(path: Path) -> Security:
    try:
        return Security(path)
    except BundleError as error:
        raise CommandError(str(error)) from error


def _bind_settings(address: str | None) -> list[str]:
    """`--bind HOST:PORT` as settings; `*` is every address of this machine."""
    if address is None:
        return []
    anywhere = address.removeprefix(f"{EVERYWHERE}:")
    try:
        host, port = parse_address(address if anywhere == address else f"localhost:{anywhere}")
    except AddressError as error:
        raise ConfigError([Problem("--bind", error.rule, address, error.hint)]) from None
    return [f"server.host='{host if anywhere == address else EVERYWHERE}'", f"server.port={port}"]
