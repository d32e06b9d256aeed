"""`varangian health`, for the health checks of containers: gRPC and nothing heavier."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from varangian.cli.credentials import read_choice
from varangian.cli.main import FAILED, CommandError
from varangian.cli.views.terminal import NOTE, printable
from varangian.protos import ps_pb2, ps_pb2_grpc
from varangian.protos.identity.bundle import Bundle, BundleError, Role, find_bundle
from varangian.protos.metadata_keys import CODE
from varangian.protos.network.dial import open_channel
from varangian.worker.transport.diagnosis import Diagnosis, diagnose
from varangian.worker.transport.tls import credentials

NO_CONNECTION = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
DROPPED = (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""gRPC's words for a call that it has dropped by itself."""
ENDED = ("Socket closed", "reset by peer")
"""gRPC's words for a connection that the server has ended."""
CROWDED = "CALLS"
"""The code of a server that has had too many calls from here."""
RETRY_PAUSE = 0.2
"""Seconds before another try."""
REFUSED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


def command(args: argparse.Namespace) -> int:
    """Ask the server for its status; 0 when it answers."""
    try:
        bundle = bundle_for(read_choice(args).certs)
    except BundleError as error:
        raise CommandError(str(error)) from error
    try:
        reply = status(args.server, args.timeout, bundle)
    except grpc.RpcError as error:
        print(
            f"{args.server} does not serve: {diagnose_call(error, args.server, bundle).sentence}",
            file=sys.stderr,
        )
        return FAILED
    state = "finished" if reply.finished else f"round {reply.round} of {reply.rounds}"
    print(f"{args.server} serves: {state}, {reply.present} of {reply.workers} workers are connected")
    if reply.refusals:
        print(f"refused so far: {printable(', '.join(reply.refusals.splitlines()))}")
    if reply.revoked:
        print(f"{reply.revoked} {'certificate is' if reply.revoked == 1 else 'certificates are'} revoked")
    for sentence in reply.warnings.splitlines():
        print(f"error: {printable(sentence)}", file=sys.stderr)
    return 0


def reason(error: grpc.RpcError) -> str:
    """Why a call failed, safe to print: a part of it may come from the other end."""
    if not isinstance(error, grpc.Call):
        return printable(str(error))
    trailing: Any = error.trailing_metadata()
    codes = [value for key, value in trailing or () if key == CODE]
    return printable(f"{codes[0] if codes else error.code().name}: {error.details()}", NOTE)


def diagnose_call(error: grpc.RpcError, server: str, bundle: Bundle | None) -> Diagnosis:
    """The same in a sentence: what is wrong with the connection, or else what gRPC says."""
    if isinstance(error, grpc.Call) and error.code() not in NO_CONNECTION:
        # The answer of a server, which thus can be reached; it knows better than any second attempt.
        return Diagnosis(reason(error), final=error.code() in REFUSED)
    found = diagnose(server, bundle)
    return found if found.sentence else Diagnosis(reason(error))


def bundle_for(path: Path | None) -> Bundle | None:
    """Any bundle may ask; in a directory of bundles it is the server's.

    Raises:
        BundleError: it cannot be used.
    """
    return None if path is None else Bundle.load(find_bundle(path, Role.SERVER.value))


def status(server: str, timeout: float, bundle: Bundle | None = None) -> ps_pb2.StatusReply:
    """The state of the run behind an address, over TLS when there is a bundle to show.

    Raises:
        grpc.RpcError: no answer within `timeout` seconds, or none at all.
    """
    until = time.monotonic() + timeout
    while True:
        try:
            return _ask_once(server, max(until - time.monotonic(), RETRY_PAUSE), bundle)
        except grpc.RpcError as error:
            if not _is_transient(error, server, bundle) or time.monotonic() + RETRY_PAUSE >= until:
                raise
        time.sleep(RETRY_PAUSE)


def _ask_once(server: str, timeout: float, bundle: Bundle | None) -> ps_pb2.StatusReply:
    """Once, on a connection of its own."""
    with open_channel(server, None if bundle is None else credentials(bundle)) as opened:
        stub: Any = ps_pb2_grpc.ParameterServerStub(opened)  # type: ignore[no-untyped-call]
        reply: ps_pb2.StatusReply = stub.Status(ps_pb2.StatusRequest(), timeout=timeout)
        return reply


def _is_transient(error: grpc.RpcError, server: str, bundle: Bundle | None) -> bool:
    """Whether a server that can be reached has just too much to do."""
    if not isinstance(error, grpc.Call):
        return False
    trailing: Any = error.trailing_metadata()
    if code := dict(trailing or ()).get(CODE):
        return bool(code == CROWDED)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        # Where nobody listens, a connection is refused. One that is closed may have been one too many.
        ended = any(word in str(error.details()) for word in ENDED)
        return ended and not diagnose(server, bundle).final
    return error.code() in DROPPED
