"""The state of a run as its server tells it over gRPC: to whoever may ask, and more to an operator."""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from varangian.cli.commands.health import bundle_for, diagnose_call, status
from varangian.cli.credentials import read_choice
from varangian.cli.main import CommandError
from varangian.protos import ps_pb2, ps_pb2_grpc
from varangian.protos.identity.bundle import Bundle, BundleError, Role
from varangian.protos.metadata_keys import SESSION
from varangian.protos.network.address import AddressError, parse_address
from varangian.protos.network.dial import open_channel
from varangian.protos.text import escape
from varangian.server.monitoring.overview import Overview, WorkerView
from varangian.worker.transport.tls import credentials


def server_look(args: argparse.Namespace) -> Callable[[], Mapping[str, Any]]:
    """Looks at the run of a server.

    Raises:
        CommandError: the address or the bundle cannot be used.
    """
    try:
        parse_address(args.server)
    except AddressError as error:
        raise CommandError(f"--server {error}") from None
    certs = read_choice(args).certs
    try:
        bundle = _bundle(certs)
    except BundleError as error:
        raise CommandError(str(error)) from error

    def look() -> Mapping[str, Any]:
        try:
            reply = status(args.server, args.timeout, bundle)
            workers = _workers(args, bundle) if bundle is not None and bundle.role is Role.OPERATOR else ()
        except grpc.RpcError as error:
            said = diagnose_call(error, args.server, bundle).sentence
            raise CommandError(f"{args.server} does not serve: {said}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            rule = "should tell an operator of each worker in a line of JSON"
            raise CommandError(
                f"{args.server} {rule}. Found something else: is it another release?"
            ) from error
        found: Mapping[str, Any] = json.loads(_overview(reply, workers).json())
        return found

    return look


def _bundle(certs: Any) -> Bundle | None:
    return bundle_for(certs)


def _workers(args: argparse.Namespace, bundle: Bundle) -> tuple[WorkerView, ...]:
    """What the server tells an operator about each worker."""
    with open_channel(args.server, credentials(bundle)) as opened:
        stub: Any = ps_pb2_grpc.ParameterServerStub(opened)  # type: ignore[no-untyped-call]
        request = ps_pb2.MembersRequest(action="list", f=-1)
        reply = stub.Members(request, timeout=args.timeout, metadata=((SESSION, secrets.token_hex(16)),))
    rows = [json.loads(line) for line in reply.table.splitlines()]
    return tuple(
        WorkerView(
            name=escape(str(row["name"])),
            state=("connected" if row["present"] else "absent")
            if row.get("state") == "member"
            else escape(str(row.get("state"))),
            answer=escape(str(row.get("open_round") or "")),
            outcome="" if row.get("last_round") is None else "counted",
            outcome_round=row.get("last_round"),
            counts={"missed in a row": int(row.get("missed") or 0)},
        )
        for row in rows
        if "until" not in row
    )


def _overview(reply: ps_pb2.StatusReply, workers: tuple[WorkerView, ...]) -> Overview:
    refusals = [line.split() for line in reply.refusals.splitlines()]
    return Overview(
        run=escape(reply.run_id),
        live=True,
        state="finished" if reply.finished else "running",
        sentence=escape(reply.sentence, 500),
        round=reply.round,
        rounds=reply.rounds,
        present=reply.present,
        workers_total=reply.workers,
        workers=workers,
        refusals={escape(words[0]): int(words[1]) for words in refusals if len(words) == 2},
        warnings=[escape(line, 500) for line in reply.warnings.splitlines()],
    )
