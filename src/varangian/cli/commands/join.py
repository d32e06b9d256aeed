"""`varangian join`: a new worker makes its key, and asks the server for a certificate until it has one.

Nothing is shown to the server before it has proved to be of the authority that the token names: its
`ca.pem` is fetched over a connection that proves nothing, and compared with the digest in the token; then
the certificate of the server is verified with it.
"""

from __future__ import annotations

import argparse
import random
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from varangian.cli.commands.certs import command_errors, format_date
from varangian.cli.commands.health import reason
from varangian.cli.main import OK, CommandError
from varangian.cli.views.terminal import printable
from varangian.files import write_atomically
from varangian.pki.authority import PRIVATE, request_certificate
from varangian.pki.x509 import LOCAL
from varangian.protos import ps_pb2, ps_pb2_grpc
from varangian.protos.identity.bundle import CA, CERTIFICATE, REQUEST, Bundle, BundleError, Role
from varangian.protos.identity.enrolment_token import EnrolmentToken, TokenError
from varangian.protos.metadata_keys import CODE
from varangian.protos.network.address import AddressError, parse_address
from varangian.protos.network.dial import Options, open_channel
from varangian.protos.refusals import REFUSALS, Reaction
from varangian.worker.transport.diagnosis import X509_OTHER_NAME

LARGEST = 1 << 12
"""Bytes that are read of a file with a token at most."""
PATIENCE = 10.0
"""Seconds for a connection, and for an answer."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0
"""Seconds between two questions, at first and after a while."""
REMINDER = 60.0
"""Seconds between two lines about what is waited for."""


class NotYet(Exception):
    """The server has not answered, and may later; the text says why."""


def command(args: argparse.Namespace) -> int:
    """Get the certificate of a new worker."""
    token = _token(args)
    folder = Path(args.into or ".") / token.name
    try:
        parse_address(args.server)
    except AddressError as error:
        raise CommandError(f"HOST:PORT {error}") from None
    with command_errors(args):
        if _has_certificate(folder, token):
            return OK
        fresh, key = request_certificate(folder, token.name)
        what = "made" if fresh else "kept"
        print(f"{what} the key of {token.name} in {folder}; it stays on this machine")
        print(f"its public key is {key}", flush=True)
        authority, certificate = _wait(args.server, token, (folder / REQUEST).read_bytes())
        bundle = _install(folder, token.name, authority, certificate)
    print(f"{token.name} has its certificate in {folder}, valid until {format_date(bundle.ends)}")
    host = args.server.rpartition(":")[0]
    print(f"next: varangian worker --server {host}:PORT --certs {folder} [CONFIG] [key=value ...]")
    return OK


def _token(args: argparse.Namespace) -> EnrolmentToken:
    where, text = "--token", args.token
    if text is None:
        where = args.token_file
        try:
            with Path(where).open("rb") as stream:
                text = stream.read(LARGEST).decode("ascii", "replace")
        except OSError as error:
            raise CommandError(f"{where} should be readable. The system says: {error.strerror}") from None
    try:
        return EnrolmentToken.parse(text)
    except TokenError as error:
        raise CommandError(f"{where} {error}") from None


def _has_certificate(folder: Path, token: EnrolmentToken) -> bool:
    """Whether the worker has its certificate already, so that the command can be given again."""
    if not (folder / CERTIFICATE).exists():
        return False
    try:
        bundle = Bundle.load(folder, Role.WORKER)
    except BundleError as error:
        raise CommandError(f"{folder} has a certificate already. {error}") from None
    if bundle.name != token.name or not token.trusts(bundle.ca):
        raise CommandError(
            f"{folder} should have no certificate yet. Found that of the worker {bundle.name} of cluster "
            f"{bundle.cluster}. Choose another folder with --into"
        )
    print(f"kept {folder}, valid until {format_date(bundle.ends)}")
    return True


def _wait(server: str, token: EnrolmentToken, request: bytes) -> tuple[bytes, bytes]:
    """Ask until there is a certificate; returns that of the authority, and it."""
    pause, said, at = FIRST_PAUSE, "", time.monotonic()
    authority = b""
    while True:
        try:
            authority = authority or _recognise(server, token)
            reply = _ask(server, authority, token, request)
            if reply.certificate:
                return authority, reply.certificate
            waits = printable(f"waiting for {reply.waiting}")
        except NotYet as error:
            waits = f"waiting for the server {server}. {error}"
        now = time.monotonic()
        if waits != said or now - at >= REMINDER:
            print(waits, file=sys.stderr, flush=True)
            said, at = waits, now
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)


def _recognise(server: str, token: EnrolmentToken) -> bytes:
    """The `ca.pem` of the server, if it is that which the token names.

    Raises:
        CommandError: it is not.
        NotYet: the server does not answer.
    """
    leaf = _certificate(server, None)
    # An empty request is answered with it. Nothing that somebody on the way could use is sent, and nothing
    # is verified yet; every certificate of a server has this name, too.
    anybody = (("grpc.ssl_target_name_override", LOCAL[0]),)
    authority = _call(server, leaf, ps_pb2.EnrolRequest(), anybody).authority
    if not token.trusts(authority):
        raise CommandError(
            f"{server} should be of the authority that the token names. Found another one. Either the "
            "token is for another server, or somebody is on the way to this one. It was not shown the token"
        )
    return authority


def _ask(server: str, authority: bytes, token: EnrolmentToken, request: bytes) -> ps_pb2.EnrolReply:
    """Ask once, of a server that has proved who it is.

    Raises:
        CommandError: it has not, or refuses.
        NotYet: it does not answer.
    """
    _certificate(server, authority)
    return _call(server, authority, ps_pb2.EnrolRequest(token=token.text, name=token.name, request=request))


def _certificate(server: str, authority: bytes | None) -> bytes:
    """The certificate of the server in PEM; verified if there is an authority to verify it with.

    Raises:
        CommandError: it is not that of this host and authority, or this is no such port.
        NotYet: the server cannot be reached.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if authority is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=authority.decode("ascii"))
    where = parse_address(server)
    try:
        with (
            socket.create_connection(where, PATIENCE) as connection,
            context.wrap_socket(connection, server_hostname=where[0]) as secured,
        ):
            found = secured.getpeercert(binary_form=True)
            if not _takes_strangers(secured):
                raise NotYet(
                    "It ends connections of callers without a certificate: is this the port of workers? "
                    "The one to join at is its server.enrol_port."
                )
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in X509_OTHER_NAME:
            raise CommandError(
                f"the certificate of {server} should name {where[0]!r}. Join at a name that it has, or "
                f"issue it again: varangian certs issue DIR --server {where[0]} --force"
            ) from None
        raise CommandError(
            f"the certificate of {server} should be valid. OpenSSL says: {error.verify_message}"
        ) from None
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        raise NotYet("It takes connections and ends them without a word.") from None
    except ssl.SSLError as error:
        raise CommandError(
            f"{server} should speak TLS 1.3, as the port of server.enrol_port does. It does not: "
            f"{error.reason or error}"
        ) from None
    except OSError as error:
        raise NotYet(f"It cannot be reached: {error.strerror or error}.") from None
    if found is None:
        raise NotYet("It has shown no certificate.")
    return ssl.DER_cert_to_PEM_cert(found).encode()


def _takes_strangers(secured: ssl.SSLSocket) -> bool:
    """Whether a server goes on with a caller without a certificate, as shows only after the handshake."""
    try:
        return bool(secured.recv(1))
    except TimeoutError:
        return True
    except (ssl.SSLError, ConnectionError):
        return False


def _call(
    server: str, roots: bytes, request: ps_pb2.EnrolRequest, options: Options = ()
) -> ps_pb2.EnrolReply:
    """One call to a server that shows one of these certificates, or one that they have signed."""
    with open_channel(server, grpc.ssl_channel_credentials(roots), options) as opened:
        stub: Any = ps_pb2_grpc.ParameterServerStub(opened)  # type: ignore[no-untyped-call]
        try:
            reply: ps_pb2.EnrolReply = stub.Enrol(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            raise _failure(error, server) from None
    return reply


def _failure(error: grpc.RpcError, server: str) -> CommandError | NotYet:
    """A call that has failed: for good, or not."""
    trailing: Any = error.trailing_metadata() if isinstance(error, grpc.Call) else ()
    refusal = REFUSALS.get(dict(trailing or ()).get(CODE, ""))
    if refusal is not None and refusal.reaction is not Reaction.RETRY:
        return CommandError(f"{server} refuses: {reason(error)}")
    if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return CommandError(f"{server} takes no requests for certificates: is it the server.enrol_port?")
    return NotYet(f"The call has failed: {reason(error)}")


def _install(folder: Path, name: str, authority: bytes, certificate: bytes) -> Bundle:
    """Put the certificate beside its key, if it is of use there.

    Raises:
        CommandError: it is not.
    """
    write_atomically(folder / CA, authority, PRIVATE)
    write_atomically(folder / CERTIFICATE, certificate, PRIVATE)
    try:
        bundle = Bundle.load(folder, Role.WORKER)
        if bundle.name != name:
            raise BundleError(f"It is that of the worker {bundle.name}.")
    except BundleError as error:
        (folder / CERTIFICATE).unlink()
        raise CommandError(f"the certificate that was sent for {name} cannot be used. {error}") from None
    (folder / REQUEST).unlink(missing_ok=True)
    return bundle
