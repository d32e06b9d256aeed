import asyncio
import itertools
import shutil
import socket
import ssl
import time
from typing import NamedTuple

import grpc
import pytest
from tests.exhausted import no_descriptors
from tests.extent import patience
from tests.refused import refused

from varangian.protos.identity.bundle import Bundle, BundleError, Role, identity_uri, ssl_contexts
from varangian.protos.identity.certificate import validity
from varangian.protos.identity.revocation import RevocationList, der, fingerprint, parse_fingerprints
from varangian.protos.network.dial import open_aio_channel
from varangian.protos.refusals import Refusal
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import CertificateRenewal, Certificates, Security
from varangian.worker.transport import tls

SESSION = "0" * 32


def peer(bundles, name, **changes):
    bundle = Bundle.load(bundles / name)
    proved = {
        "peer_uri": [identity_uri(bundle.cluster, bundle.role, bundle.name).encode()],
        "x509_pem_cert": [bundle.certificate],
        "ssl_tls_version": [b"TLSv1.3"],
    }
    return proved | changes


@pytest.fixture
def sessions(bundles):
    return Sessions(["w00", "w01"], None, certificate_reader=Security(bundles / "ours").certificate_reader)


def impatient():
    """A clock by which every look is due: two seconds pass whenever it is read."""
    return itertools.count(0.0, 2.0).__next__


def metadata(name=None, session=SESSION):
    return [("varangian-session", session), *([("varangian-worker", name)] if name else [])]


def test_the_name_is_that_of_the_certificate(sessions, bundles):
    assert sessions.claim(metadata(), peer(bundles, "ours/w00")) == "w00"
    assert sessions.identify(metadata("w00"), peer(bundles, "ours/w00")) == "w00"
    assert sessions.claimed_name(metadata(), peer(bundles, "ours/w00")) == "w00"


def test_another_name_in_the_call_is_refused_and_logged_once(sessions, bundles, caplog):
    for _ in range(3):
        call = sessions.claim, metadata("w01"), peer(bundles, "ours/w00")
        assert refused(*call) is Refusal.MISNAMED
    (record,) = caplog.records
    assert record.getMessage().startswith("security: MISNAMED from w00: ")
    assert sessions.joined == frozenset()


def test_with_tls_a_token_counts_for_nothing(bundles):
    sessions = Sessions(
        ["w00"], b"sixteen bytes ok", certificate_reader=Security(bundles / "ours").certificate_reader
    )
    shown = [*metadata("w00"), ("varangian-token", sessions.token("w00"))]
    assert refused(sessions.claim, shown) is Refusal.UNCERTIFIED
    assert refused(sessions.claim, shown, peer(bundles, "ours/server")) is Refusal.ROLE


def test_a_certified_name_that_the_run_does_not_have_is_refused(bundles):
    sessions = Sessions(["w00"], None, certificate_reader=Security(bundles / "ours").certificate_reader)
    assert refused(sessions.claim, metadata(), peer(bundles, "ours/w01")) is Refusal.UNKNOWN_WORKER


def test_a_session_is_still_needed(sessions, bundles):
    assert refused(sessions.claim, [], peer(bundles, "ours/w00")) is Refusal.UNIDENTIFIED


def test_one_certificate_on_two_machines_is_one_vote(sessions, bundles):
    sessions.claim(metadata(), peer(bundles, "ours/w00"))
    second = metadata(session="f" * 32)
    assert refused(sessions.claim, second, peer(bundles, "ours/w00")) is Refusal.SESSION_TAKEN


@pytest.mark.parametrize(
    "changes",
    [
        {"ssl_tls_version": [b"TLSv1.2"]},
        {"ssl_tls_version": []},
        {"peer_uri": [b"w00"]},
        {"peer_uri": [b"varangian:worker:w00"]},
        {"peer_uri": [f"varangian:{'0' * 32}:worker:{name}".encode() for name in ("w00", "w01")]},
        {"peer_uri": [], "x509_subject_alternative_name": [f"varangian:{'0' * 32}:worker:w00".encode()]},
        {"x509_subject_alternative_name": [b"a.test\0.b.test"]},
        {"x509_pem_cert": []},
    ],
)
def test_a_channel_that_proves_too_little_is_refused(sessions, bundles, changes):
    found = peer(bundles, "ours/w00", **changes)
    assert refused(sessions.claim, metadata(), found) is Refusal.UNCERTIFIED
    assert refused(sessions.admit, found) is Refusal.UNCERTIFIED


def test_a_server_may_ask_how_the_run_is_going_and_nothing_else(sessions, bundles):
    sessions.admit(peer(bundles, "ours/server"))
    assert refused(sessions.claim, metadata(), peer(bundles, "ours/server")) is Refusal.ROLE
    assert sessions.claimed_name([], peer(bundles, "ours/server")) == "a stranger"


def test_an_operator_may_look_at_the_run_and_its_members_and_nothing_else(sessions, bundles):
    proved = peer(bundles, "ours/alice")
    sessions.admit(proved)
    assert sessions.admit_operator([], proved) == "alice"
    assert sessions.proven_name([], proved) == "the operator alice"
    for call in (sessions.claim, sessions.identify, sessions.authenticate):
        assert refused(call, metadata(), proved) is Refusal.ROLE
    assert sessions.joined == frozenset()


@pytest.mark.parametrize("name", ["ours/w00", "ours/server"])
def test_the_members_of_a_run_are_for_operators_alone(sessions, bundles, name, caplog):
    assert refused(sessions.admit_operator, [], peer(bundles, name)) is Refusal.ROLE
    assert "security: ROLE from " in caplog.text


def test_an_operator_of_another_cluster_or_without_tls_is_refused(sessions, bundles, authority):
    authority.issue("bob", Role.OPERATOR, days=1)
    assert refused(sessions.admit_operator, [], peer(authority.path, "bob")) is Refusal.OTHER_CLUSTER
    assert refused(sessions.admit_operator, []) is Refusal.UNCERTIFIED
    without = Sessions(["w00"], b"sixteen bytes ok")
    shown = [*metadata("w00"), ("varangian-token", without.token("w00"))]
    assert refused(without.admit_operator, shown, peer(bundles, "ours/alice")) is Refusal.UNCERTIFIED


def test_a_revoked_operator_is_refused(authority):
    authority.issue("server", Role.SERVER, days=1)
    authority.issue("alice", Role.OPERATOR, days=1)
    reader = Security(authority.path, clock=impatient()).certificate_reader
    sessions = Sessions(["w00"], None, certificate_reader=reader)
    proved = peer(authority.path, "alice")
    assert sessions.admit_operator([], proved) == "alice"
    authority.revoke("alice")
    assert refused(sessions.admit_operator, [], proved) is Refusal.REVOKED


def test_a_revoked_certificate_is_refused_at_its_next_call(authority, caplog):
    authority.issue("server", Role.SERVER, days=1)
    authority.issue("w00", Role.WORKER, days=1)
    sessions = Sessions(
        ["w00"], None, certificate_reader=Security(authority.path, clock=impatient()).certificate_reader
    )
    proved = peer(authority.path, "w00")
    assert sessions.claim(metadata(), proved) == "w00"
    authority.revoke("w00")
    assert refused(sessions.identify, metadata(), proved) is Refusal.REVOKED
    assert refused(sessions.admit, proved) is Refusal.REVOKED
    assert "security: REVOKED from w00" in caplog.text
    authority.issue("w00", Role.WORKER, days=1, force=True)
    assert sessions.identify(metadata(), peer(authority.path, "w00")) == "w00"


def test_a_damaged_list_brings_no_certificate_back(bundles, tmp_path, caplog):
    pem = (bundles / "ours/w00/cert.pem").read_bytes()
    path = tmp_path / "revoked"
    path.write_text(f"{fingerprint(pem)}  w00  # left in May\n\n")
    revoked = RevocationList(path, clock=impatient())
    for change in (lambda: path.write_text("hello\n"), path.unlink):
        change()
        assert fingerprint(pem) in revoked
    assert "stays in force" in caplog.text
    path.write_text("")
    assert fingerprint(pem) not in revoked


@pytest.mark.parametrize("text", ["w00", "0" * 63, "0" * 63 + "G", "0" * 65])
def test_a_list_has_fingerprints(text, tmp_path):
    with pytest.raises(ValueError, match="line 1 should begin with 64 hexadecimal digits"):
        parse_fingerprints(text)
    (tmp_path / "revoked").write_text(text)
    with pytest.raises(ValueError, match="revoked: line 1"):
        RevocationList(tmp_path / "revoked")


def test_a_server_does_not_start_on_a_damaged_list(copied):
    (copied("ours/server") / "revoked").write_text("hello")
    with pytest.raises(BundleError, match="line 1 should begin"):
        Security(copied("ours/w00").parent / "server")


def test_revocation_and_renewal_come_through_where_files_have_run_out(authority):
    path = authority.path
    authority.issue("server", Role.SERVER, days=9)
    mark = authority.issue("w00", Role.WORKER, days=9).fingerprint
    security = Security(path, clock=impatient())
    old = security.bundle.certificate
    (path / "server").rename(path / "old")
    authority.issue("server", Role.SERVER, days=9)
    authority.revoke("w00")
    (path / "server").rename(path / "new")
    (path / "old").rename(path / "server")
    security.look()
    with no_descriptors():
        (path / "server").rename(path / "old")
        (path / "new").rename(path / "server")
        security.look()
    assert security.warnings() == ()
    assert mark in security.revoked
    assert security.renewal.bundle.certificate != old


def test_a_server_does_not_start_without_its_list(copied):
    path = copied("ours/server")
    (path / "revoked").unlink()
    with pytest.raises(
        BundleError, match="revoked should be the list of revoked certificates, which every"
    ):
        Security(path)


def test_a_certificate_is_refused_from_the_moment_it_expires(authority):
    authority.issue("server", Role.SERVER, days=3)
    ends = authority.issue("w00", Role.WORKER, days=2).ends
    now = [time.time()]
    sessions = Sessions(
        ["w00"], None, certificate_reader=Security(authority.path, now=lambda: now[0]).certificate_reader
    )
    proved = peer(authority.path, "w00")
    assert sessions.claim(metadata(), proved) == "w00"
    assert sessions.certificate(proved).ends == int(ends)
    now[0] = ends - 1
    assert sessions.identify(metadata(), proved) == "w00"
    now[0] = ends + 1
    for call in (sessions.identify, sessions.claim):
        assert refused(call, metadata(), proved) is Refusal.EXPIRED
    assert refused(sessions.admit, proved) is Refusal.EXPIRED
    assert (sessions.drop_revoked(), sessions.joined) == ([], {"w00"})  # nobody has revoked it


@pytest.mark.parametrize("days", [1, 9000, 40000])
def test_the_end_of_a_certificate_is_read_as_openssl_reads_it(authority, days):
    """In both forms: two digits of a year until 2049, four after it."""
    issued = authority.issue("w00", Role.WORKER, days=days)
    pem = (authority.path / "w00/cert.pem").read_bytes()
    assert validity(der(pem)) == (int(issued.begins), int(issued.ends))
    for length in range(len(der(pem))):
        with pytest.raises(ValueError, match="A certificate should"):
            validity(der(pem)[:length])


def test_certificates_need_no_secret_and_the_token_does(bundles):
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Sessions(["w00"], None)


async def test_a_renewed_certificate_is_shown_without_a_restart(authority, listening):
    authority.issue("server", Role.SERVER, days=1)
    authority.issue("w00", Role.WORKER, days=1)
    worker = tls.credentials(tls.load_worker_bundle(authority.path, "w00"))
    shown = []

    async def call(port):
        async with open_aio_channel(f"127.0.0.1:{port}", worker) as channel:
            await channel.unary_unary("/x/y")(b"", timeout=patience(10))
        certificate = await asyncio.to_thread(_shown_at, port, authority.path / "w00")
        shown.append(fingerprint(certificate.encode()))

    async with listening(Security(authority.path, clock=impatient()).credentials()) as (port, _):
        await call(port)
        authority.issue("server", Role.SERVER, days=1, force=True)
        await call(port)
    assert shown == [one.fingerprint for one in authority.issued() if one.role == "server"]


def _shown_at(port, client):
    context = ssl_contexts(client)[1]
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), 10) as line, context.wrap_socket(line) as secured:
        return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True))


def test_a_bad_renewal_leaves_the_old_certificate_in_use(copied, caplog):
    path = copied("ours/server")
    before = Bundle.load(path)
    renewal = CertificateRenewal(before, clock=impatient())
    shutil.copy(path / "key.pem", path / "moved")
    shutil.copy(copied("ours/w00") / "key.pem", path / "key.pem")
    for _ in range(3):
        renewal.look()
    assert caplog.text.count("stays in use") == 1
    assert (renewal.bundle, renewal.failure.missing) == (before, False)
    (path / "key.pem").unlink()
    renewal.look()
    assert (renewal.bundle, renewal.failure.missing) == (before, True)
    (path / "moved").replace(path / "key.pem")
    renewal.look()
    assert (renewal.bundle, renewal.failure) == (before, None)


async def test_what_grpc_proves_is_what_the_server_reads(bundles, listening):
    security = Security(bundles / "ours")
    async with listening(security.credentials()) as (port, seen):
        credentials = tls.credentials(tls.load_worker_bundle(bundles / "ours", "w00"))
        async with open_aio_channel(f"127.0.0.1:{port}", credentials) as channel:
            await channel.unary_unary("/x/y")(b"", timeout=patience(10))
        proved = seen[0]
    cluster = Bundle.load(bundles / "ours/w00").cluster
    revoked = RevocationList(bundles / "ours/server/revoked")
    assert Certificates(cluster, revoked).worker(proved) == "w00"
    other = Certificates(Bundle.load(bundles / "theirs/w00").cluster, revoked)
    assert refused(other.worker, proved) is Refusal.OTHER_CLUSTER
    assert other.worker_name(proved) is None


@pytest.mark.parametrize(
    ("kind", "ending"), [("DNSName", ""), ("RFC822Name", ""), ("UniformResourceIdentifier", "\0.test")]
)
async def test_a_name_of_another_type_or_with_a_nul_names_nobody(
    authority, listening, monkeypatch, kind, ending
):
    from cryptography import x509

    authority.issue("server", Role.SERVER, days=1)
    with monkeypatch.context() as patch:
        named = getattr(x509, kind)
        patch.setattr(x509, "UniformResourceIdentifier", lambda uri: named(uri + ending))
        authority.issue("w00", Role.WORKER, days=1)
    path = authority.path / "w00"
    with pytest.raises(BundleError, match="should have one URI varangian:CLUSTER:ROLE:NAME"):
        Bundle.load(path)
    security, files = Security(authority.path), [path / name for name in ("ca.pem", "key.pem", "cert.pem")]
    async with listening(security.credentials()) as (port, seen):
        credentials = grpc.ssl_channel_credentials(*[file.read_bytes() for file in files])
        async with open_aio_channel(f"127.0.0.1:{port}", credentials) as channel:
            await channel.unary_unary("/x/y")(b"", timeout=patience(10))
        proved = seen[0]
    assert refused(security.certificate_reader.worker, proved) is Refusal.UNCERTIFIED
    assert security.certificate_reader.worker_name(proved) is None


def test_a_renewal_for_another_cluster_leaves_the_old_certificate_in_use(copied, bundles, caplog):
    path = copied("ours/server")
    renewal = CertificateRenewal(Bundle.load(path), clock=impatient())
    for name in ("ca.pem", "cert.pem", "key.pem"):
        shutil.copy(bundles / "theirs/server" / name, path / name)
    renewal.look()
    assert f"should be of the cluster {Bundle.load(bundles / 'ours/server').cluster}. Found" in caplog.text


def handshake(bundles, port, session=None, call=b"", seen=(True,)):
    """Connect with the certificate of a worker; the session, and whether it is one of before.

    Then call, and stay until the call was seen.
    """
    context = ssl_contexts(bundles / "ours/w00")[1]
    context.set_alpn_protocols(["h2"])
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if session is not None:
        context = session.context
    with (
        socket.create_connection(("127.0.0.1", port), patience(10)) as line,
        context.wrap_socket(line, session=session and session.of) as secured,
    ):
        secured.sendall(call)
        assert secured.recv(1)  # tickets come before the first byte
        while not seen:
            assert secured.recv(1 << 16)
        return Session(context, secured.session), secured.session_reused


class Session(NamedTuple):
    """A session of TLS, which can only be resumed in its own context."""

    context: ssl.SSLContext
    of: ssl.SSLSession


def one_call():
    """A call of `/x/y` in HTTP/2."""
    http2 = pytest.importorskip("h2.connection")
    connection = http2.H2Connection()
    connection.initiate_connection()
    fields = {":method": "POST", ":scheme": "https", ":path": "/x/y", ":authority": "localhost"}
    connection.send_headers(1, [*fields.items(), ("te", "trailers"), ("content-type", "application/grpc")])
    connection.send_data(1, bytes(5), end_stream=True)
    return connection.data_to_send()


async def test_a_call_on_a_resumed_session_shows_the_certificate_that_it_began_with(bundles, listening):
    """So dates and revocation are looked at there, too."""
    async with listening(Security(bundles / "ours").credentials()) as (port, seen):
        session, _ = await asyncio.to_thread(handshake, bundles, port)
        _, resumed = await asyncio.to_thread(handshake, bundles, port, session, one_call(), seen)
        (proved,) = seen
    assert resumed
    assert Security(bundles / "ours").certificate_reader.worker(proved) == "w00"


def test_handshakes_are_told_of_a_certificate_only_when_there_is_another_one(authority):
    """gRPC swaps them without a lock: two for two handshakes at once end the server."""
    authority.issue("server", Role.SERVER, days=1)
    renewal = CertificateRenewal(Bundle.load(authority.path / "server"), clock=impatient())
    renewal.configuration()
    assert [renewal.changed() for _ in range(3)] == [None] * 3
    authority.issue("server", Role.SERVER, days=1, force=True)
    told = [renewal.changed() for _ in range(3)]
    assert [configuration is None for configuration in told] == [False, True, True]
