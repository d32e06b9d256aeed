"""`varangian workers`: look at the workers of a run that goes on, and change who is one."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from varangian.cli.commands.certs import command_errors, format_date
from varangian.cli.commands.health import diagnose_call
from varangian.cli.credentials import read_choice
from varangian.cli.main import OK, CommandError
from varangian.cli.views.terminal import NOTE, align, printable
from varangian.pki.authority import PREFIX, Authority
from varangian.pki.x509 import RequestError, key_fingerprint, name_of_request
from varangian.protos import ps_pb2, ps_pb2_grpc
from varangian.protos.identity.bundle import CERTIFICATE, KEY, Bundle, BundleError, Role
from varangian.protos.identity.credentials import CERTS
from varangian.protos.metadata_keys import CODE, SESSION
from varangian.protos.network.dial import open_channel
from varangian.protos.refusals import Refusal
from varangian.worker.transport.tls import credentials

AS_IT_IS = -1
"""In the place of f: it stays as it is."""
HEADINGS = ("name", "state", "connected", "open round", "last round", "missed", "certificate")
DAYS = 30.0
"""For which a new certificate is valid."""
DIGITS = 12
"""Of a fingerprint, which are shown."""


def command(args: argparse.Namespace) -> int:
    """Show the workers of a run, or change who is one."""
    signs = getattr(args, "authority", None) is not None
    if not signs and getattr(args, "days", None) is not None:
        raise CommandError("--days should be with --authority, which signs a certificate for so long")
    if not signs and getattr(args, "fingerprint", None) is not None:
        raise CommandError(
            "--fingerprint should be with --authority, which signs a certificate for the key it names"
        )
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
    if signs:
        request.certificate = _sign(args, bundle)
    reply = _call(args, bundle, "Members", request)
    rows = [json.loads(line) for line in reply.table.splitlines()]
    if args.action == "invite":
        print(printable(reply.token), flush=True)  # alone on standard output, for a file
        print(
            f"for {args.name}, one key and one day. At the worker, with the port of server.enrol_port: "
            "varangian join HOST:PORT --token-file FILE",
            file=sys.stderr,
        )
    elif args.action != "list":
        print(printable(reply.sentence, NOTE))
    elif args.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        _show(rows, reply.round)
    return OK


def _show(rows: Sequence[Mapping[str, Any]], round: int) -> None:
    """Print the workers of a run, and those who are invited."""
    members = [row for row in rows if "until" not in row]
    there = sum(bool(row["present"]) for row in members)
    print(f"round {round}: {there} of {len(members)} workers are connected")
    for line in align([HEADINGS, *map(_cells, members)]):
        print(line)
    for row in rows[len(members) :]:
        name, key = printable(str(row["name"])), printable(str(row["fingerprint"]))
        until = format_date(float(row["until"]))
        waits = f"waits for a certificate for the public key {key}" if key else f"is invited until {until}"
        print(f"{name} {waits}")


def _sign(args: argparse.Namespace, bundle: Bundle) -> bytes:
    """Sign the request of a worker that waits, where the authority is; returns the certificate.

    Raises:
        CommandError: there is none, or it is for another key than it should be.
    """
    asked = ps_pb2.MembersRequest(action="list", name=args.name, f=AS_IT_IS)
    request = _call(args, bundle, "Members", asked).request
    if not request:
        raise CommandError(
            f"{args.name} should wait for its certificate. It does not; `varangian workers list` shows who "
            "does. A worker that has a certificate is admitted without --authority"
        )
    with command_errors(args):
        try:
            key, name = key_fingerprint(request), name_of_request(request)
        except RequestError as error:
            raise CommandError(f"the request of {args.name} {error}") from None
        authority = Authority(Path(args.authority))
        print(f"{args.name} asks for a certificate for the public key {key}", flush=True)
        _confirm(args.fingerprint, key)
        if name != args.name:
            raise CommandError(f"the request should be that of {args.name}. Found one of {printable(name)}")
        folder = authority.path / args.name
        # What was signed before and has no key is of no use to anybody here.
        again = folder.is_dir() and not (folder / KEY).exists()
        issued = authority.issue(
            args.name,
            Role.WORKER,
            days=DAYS if args.days is None else args.days,
            request=request,
            force=again,
        )
        print(f"signed it; the certificate is valid until {format_date(issued.ends)}", flush=True)
        certificate: bytes = (folder / CERTIFICATE).read_bytes()
    return certificate


def _confirm(digits: str | None, key: str) -> None:
    """See that the key is that of the worker, by its first digits or by asking at the terminal."""
    if digits is not None:
        wanted = digits.replace(":", "").lower()
        if len(wanted) < PREFIX or not key.startswith(wanted):
            raise CommandError(
                f"--fingerprint should be the first {PREFIX} digits, or more, of that of the key. "
                f"Found {digits:.100}. Nothing was signed"
            )
    elif sys.stdin.isatty():
        answer = input("does `varangian join` print the same at the worker? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was signed")


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
    for refusal in (Refusal.MEMBERSHIP, Refusal.ENROLMENT):
        if code == refusal.code:
            return printable(str(error.details()).removeprefix(refusal.sentence).strip(), NOTE)
    return None


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
