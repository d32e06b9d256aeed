"""Permissions, asked of the real service over real connections."""

import contextlib
import itertools
import shutil
from dataclasses import replace
from types import SimpleNamespace

import grpc.aio
import pytest
from tests.extent import patience

from varangian.protos.contract import Contract
from varangian.protos.identity.bundle import Bundle, Role
from varangian.protos.layout import Layout
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import CertificateRenewal, Security
from varangian.server.limits.limits import Limits
from varangian.server.transport.grpc_server import CallHandlers, bind, options
from varangian.server.transport.service import Service
from varangian.worker.transport.client import Client, ClientError
from varangian.worker.transport.retry import Backoff

LAYOUT = Layout((("weight", (4,)),))


@pytest.fixture
def serving():
    """The service behind certificates; what comes after joining is not asked here."""

    @contextlib.asynccontextmanager
    async def serve(path):
        # By this clock two seconds pass whenever it is read, and every look at a file is due.
        security = Security(path, clock=itertools.count(0.0, 2.0).__next__)
        sessions = Sessions(["w00", "w01"], None, certificate_reader=security.certificate_reader)
        coordinator = SimpleNamespace(round=0, first=0, pulls=None, model=SimpleNamespace(finished=False))
        server = grpc.aio.server(options=options(3))
        handlers = CallHandlers()
        Service(coordinator, sessions, Contract("run-1", LAYOUT), Limits()).add_to(handlers)
        server.add_generic_rpc_handlers((handlers,))
        address = bind(server, "127.0.0.1", 0, security.credentials())
        await server.start()
        try:
            yield address, sessions
        finally:
            await server.stop(0)

    return serve


def client(address, name, bundle):
    return Client(address, name, Bundle.load(bundle), LAYOUT, backoff=Backoff(tries=1), idle=patience(20))


async def joined(serving, path, name, bundle):
    """Whether the server let it in, or the sentence it was refused with."""
    async with serving(path) as (address, sessions), client(address, name, bundle) as caller:
        try:
            await caller.join()
        except ClientError as error:
            assert sessions.joined == frozenset()
            return str(error)
        assert sessions.joined == {name}
        return ""


async def test_a_worker_joins_under_the_name_on_its_certificate(serving, bundles):
    assert await joined(serving, bundles / "ours", "w00", bundles / "ours/w00") == ""


async def test_a_worker_cannot_join_under_another_name(serving, bundles, caplog):
    said = await joined(serving, bundles / "ours", "w01", bundles / "ours/w00")
    assert "A worker should call itself by the name on its certificate. Found 'w01'" in said
    assert "security: MISNAMED from w00" in caplog.text


async def test_a_certificate_of_another_cluster_is_refused_where_its_authority_is_trusted(
    serving, bundles, copied, caplog
):
    """With both authorities in `ca.pem`, TLS takes the certificates of both."""
    both = b"".join((bundles / name / "server/ca.pem").read_bytes() for name in ("ours", "theirs"))
    (copied("ours/server") / "ca.pem").write_bytes(both)
    (copied("theirs/w00") / "ca.pem").write_bytes(both)
    server = copied.path / "ours"
    said = await joined(serving, server, "w00", copied.path / "theirs/w00")
    assert (
        "A certificate should be one of the cluster that the server is in. Found that of the worker" in said
    )
    assert Bundle.load(server / "server").cluster in said
    assert "security: OTHER_CLUSTER from a stranger" in caplog.text


async def test_a_server_cannot_join(serving, bundles):
    said = await joined(serving, bundles / "ours", "w00", bundles / "ours/server")
    assert "one that the role on the certificate allows" in said


async def test_an_operator_cannot_join(serving, bundles):
    said = await joined(serving, bundles / "ours", "alice", bundles / "ours/alice")
    assert "Found the certificate of the operator 'alice', where that of a worker is needed" in said


async def test_a_certificate_of_no_worker_of_the_run_cannot_join(serving, authority):
    authority.issue("server", Role.SERVER, days=1)
    authority.issue("w77", Role.WORKER, days=1)
    said = await joined(serving, authority.path, "w77", authority.path / "w77")
    assert "The name of a worker should be one that this run was started with" in said


async def test_a_revoked_worker_is_refused_without_a_restart(serving, authority):
    authority.issue("server", Role.SERVER, days=1)
    authority.issue("w00", Role.WORKER, days=1)
    path = authority.path
    async with serving(path) as (address, _), client(address, "w00", path / "w00") as caller:
        await caller.join()
        authority.revoke("w00")
        # The connection stands; the next call on it is refused all the same.
        with pytest.raises(ClientError, match="should be one that was not revoked"):
            await caller.join()


async def test_nobody_joins_without_a_certificate(serving, bundles):
    async with serving(bundles / "ours") as (address, sessions):
        stranger = Client(address, "w00", "0" * 64, LAYOUT, backoff=Backoff(tries=1), idle=patience(20))
        async with stranger:
            with pytest.raises(ClientError, match="could not join"):
                await stranger.join()
        assert sessions.joined == frozenset()


def expired(authority, name):
    """The bundle of a name as it was read before its last day had passed; the disk has a newer one."""
    path = authority.path
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=1)
    authority.issue(name, Role.WORKER, days=1)
    authority.issue("old", Role.WORKER, days=-1)
    old = [(path / "old" / file).read_bytes() for file in ("cert.pem", "key.pem")]
    return replace(Bundle.load(path / name), certificate=old[0], key=old[1])


async def at_once(seconds):
    """Instead of sleeping."""


async def test_a_worker_shows_its_renewed_certificate_after_a_few_failures(serving, authority):
    shown = expired(authority, "w00")
    async with serving(authority.path) as (address, sessions):
        caller = Client(address, "w00", shown, LAYOUT, backoff=Backoff(tries=5), sleep=at_once)
        async with caller:
            await caller.join()
        assert sessions.joined == {"w00"}


async def test_a_worker_waits_for_a_server_whose_certificate_has_expired_until_it_is_renewed(
    serving, authority, tmp_path, monkeypatch, caplog
):
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=1)
    authority.issue("w00", Role.WORKER, days=1)
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=-1, into=tmp_path)
    old = [(tmp_path / "server" / file).read_bytes() for file in ("key.pem", "cert.pem", "ca.pem")]
    renewed = CertificateRenewal.configuration

    def shown(renewal):
        return grpc.ssl_server_certificate_configuration([(old[0], old[1])], old[2])

    def changed(renewal):
        return renewed(renewal) if "has expired. Renew it" in caplog.text else None

    monkeypatch.setattr(CertificateRenewal, "configuration", shown)
    monkeypatch.setattr(CertificateRenewal, "changed", changed)
    async with serving(authority.path) as (address, sessions):
        bundle = Bundle.load(authority.path / "w00")
        async with Client(address, "w00", bundle, LAYOUT, backoff=Backoff(), sleep=at_once) as caller:
            await caller.join()
        assert sessions.joined == {"w00"}


async def test_a_worker_whose_certificate_was_not_renewed_gives_up_and_says_so(serving, authority, caplog):
    shown = expired(authority, "w00")
    for file in ("cert.pem", "key.pem"):
        shutil.copy(authority.path / "old" / file, authority.path / "w00" / file)
    naps = []

    async def nap(seconds):
        naps.append(seconds)

    async with serving(authority.path) as (address, _):
        caller = Client(address, "w00", shown, LAYOUT, backoff=Backoff(tries=10), sleep=nap)
        async with caller:
            with pytest.raises(ClientError) as caught:
                await caller.join()
        said = str(caught.value)
    assert f"does not take the certificate {authority.path / 'w00' / 'cert.pem'}" in said
    assert "It was called over TLS at 127.0.0.1, port " in said
    assert len(naps) == 2  # the third failure is looked into
    assert "security: the old certificate stays in use: " in caplog.text
