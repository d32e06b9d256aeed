"""`varangian workers`: look at the workers of a run that goes on, and change who is one."""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import grpc

from varangian.cli.commands.health import diagnose_call
from varangian.cli.credentials import CERTS, read_choice
from varangian.cli.main import OK, CommandError
from varangian.cli.views.terminal import NOTE, align, printable
from varangian.protos import ps_pb2, ps_pb2_grpc
from varangian.protos.identity.bundle import Bundle, BundleError, Role
from varangian.protos.metadata_keys import CODE, SESSION
from varangian.protos.network.dial import open_channel
from varangian.protos.refusals import Refusal
from varangian.worker.transport.tls import credentials

AS_IT_IS = -1
"""In the place of f: it stays as it is."""
HEADINGS = ("name", "state", "connected", "open round", "last round", "missed", "certificate")
DIGITS = 12
"""Of a fingerprint, which are shown."""


def command(args: argparse.Namespace) -> int:
    """Show the workers of a run, or change who is one."""
    role = Role.WORKER if args.action == "leave" else Role.OPERATOR
    bundle = _bundle(args, role)
    if args.action == "leave":
        reply = _call(args, bundle, "Leave", ps_pb2.LeaveRequest())
        print(f"{bundle.name} leaves the run: it is gone from round {reply.round} on")
        return OK
    f = getattr(args, "f", None)
    request = ps_pb2.MembersRequest(
        action=args.action, name=getattr(args, "name", ""), f=AS_IT_IS if f is None else f
    )
    reply = _call(args, bundle, "Members", request)
    rows = [json.loads(line) for line in reply.table.splitlines()]
    if args.action != "list":
        print(printable(reply.sentence, NOTE))
    elif args.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        there = sum(bool(row["present"]) for row in rows)
        print(f"round {reply.round}: {there} of {len(rows)} workers are connected")
        for line in align([HEADINGS, *map(_cells, rows)]):
            print(line)
    return OK


def _bundle(args: argparse.Namespace, role: Role) -> Bundle:
    """The bundle of who calls.

    Raises:
        CommandError: there is none, or it is that of somebody else.
    """
    path = read_choice(args).certs
    if path is None:
        made = "DIR --operator NAME" if role is Role.OPERATOR else "DIR NAME"
        whose = f"{role.indefinite}'s certificate"
        raise CommandError(
            f"varangian workers {args.action} needs --certs with {whose}, or {CERTS}; "
            f"`varangian certs issue {made}` makes one"
        )
    try:
        return Bundle.load(path, role)
    except BundleError as error:
        raise CommandError(str(error)) from error


def _call(args: argparse.Namespace, bundle: Bundle, method: str, request: Any) -> Any:
    """The reply of the server.

    Raises:
        CommandError: it refuses, or there is no answer.
    """
    try:
        with open_channel(args.server, credentials(bundle)) as opened:
            stub: Any = ps_pb2_grpc.ParameterServerStub(opened)  # type: ignore[no-untyped-call]
            session = ((SESSION, secrets.token_hex(16)),)
            return getattr(stub, method)(request, timeout=args.timeout, metadata=session)
    except grpc.RpcError as error:
        if (said := _why_not(error)) is None:
            said = diagnose_call(error, args.server, bundle).sentence
        raise CommandError(said) from error


def _why_not(error: grpc.RpcError) -> str | None:
    """Why the server does not carry a change out, in its own words; None where that is not the matter."""
    if not isinstance(error, grpc.Call):
        return None
    trailing: Any = error.trailing_metadata()
    code = dict(trailing or ()).get(CODE)
    if code != Refusal.MEMBERSHIP.code:
        return None
    return printable(str(error.details()).removeprefix(Refusal.MEMBERSHIP.sentence).strip(), NOTE)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a worker."""
    return tuple(_texts(row))


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    yield printable(str(row["name"]))
    yield printable(str(row["state"]))
    yield "yes" if row["present"] else "no"
    yield printable(str(row.get("open_round") or "-"))
    last = row.get("last_round")
    yield "-" if last is None else str(last)
    yield str(row.get("missed", 0))
    yield printable(str(row.get("certificate", "")))[:DIGITS] or "-"
