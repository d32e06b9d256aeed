"""Errors of a user whose connection cannot be made, over real sockets."""

import asyncio
import socket
import struct
import threading
from datetime import timedelta

import grpc
import pytest
from tests.exhausted import no_descriptors
from tests.ports import free_port

from varangian.pki import x509
from varangian.protos.identity.bundle import Bundle, Role
from varangian.server.identity.tls import Security
from varangian.worker.transport.diagnosis import diagnose


def bundle(bundles, name):
    """A bundle as it is, checked or not: this is about what the other end finds."""
    path = bundles / name
    texts = [(path / file).read_bytes() for file in ("ca.pem", "cert.pem", "key.pem")]
    return Bundle(path, None, "w00", "", (), 0, 0, *texts)


async def at(listening, credentials, shown, host="127.0.0.1"):
    """The diagnosis of a server, from a client that shows this bundle."""
    async with listening(credentials, host=host) as (port, _):
        return await asyncio.to_thread(diagnose, f"{host}:{port}", shown)


def showing(bundle):
    """A server that shows a certificate whatever its dates are."""
    return grpc.ssl_server_credentials([(bundle.key, bundle.certificate)], bundle.ca, True)


@pytest.fixture
def secured(bundles):
    return Security(bundles / "ours").credentials()


async def test_a_good_connection_has_no_diagnosis(listening, secured, bundles):
    found = await at(listening, secured, bundle(bundles, "ours/w00"))
    assert (found.sentence, found.final) == ("", False)


async def test_without_tls_at_both_ends_there_is_nothing_to_say(listening):
    assert (await at(listening, None, None)).sentence == ""


async def test_a_client_without_tls_at_a_server_with_it(listening, secured):
    found = await at(listening, secured, None)
    assert "speaks TLS, and this end does not. Add --certs DIR." in found.sentence
    assert found.final


async def test_a_client_with_tls_at_a_server_without_it(listening, bundles):
    found = await at(listening, None, bundle(bundles, "ours/w00"))
    assert "does not speak TLS. Start the server with --certs DIR too" in found.sentence
    assert found.final


async def test_a_server_that_does_not_know_the_authority(listening, secured, bundles, tmp_path):
    import shutil

    mixed = tmp_path / "mixed"
    shutil.copytree(bundles / "theirs/w00", mixed)
    shutil.copy(bundles / "ours/w00/ca.pem", mixed / "ca.pem")
    found = await at(listening, secured, bundle(tmp_path, "mixed"))
    assert f"does not take the certificate {mixed / 'cert.pem'}" in found.sentence
    assert found.final


async def test_an_expired_certificate(listening, secured, bundles):
    found = await at(listening, secured, bundle(bundles, "ours/expired"))
    assert "does not take the certificate" in found.sentence
    assert "not have expired" in found.sentence


async def test_a_server_of_another_authority(listening, bundles):
    theirs = Security(bundles / "theirs").credentials()
    found = await at(listening, theirs, bundle(bundles, "ours/w00"))
    assert f"should be signed by {bundles / 'ours/w00/ca.pem'}" in found.sentence
    assert "bundles of the same authority?" in found.sentence


async def test_a_server_whose_certificate_has_expired(listening, bundles):
    credentials = showing(bundle(bundles, "expired/server"))
    found = await at(listening, credentials, bundle(bundles, "ours/w00"))
    assert "has expired. Renew it" in found.sentence
    assert not found.final, "the server may have another one soon"


async def test_a_certificate_that_is_not_valid_yet(listening, authority, tmp_path, monkeypatch):
    """Or a clock that is behind by more than the five minutes for which certificates allow."""
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=1)
    authority.issue("w00", Role.WORKER, days=1)
    monkeypatch.setattr(x509, "LEEWAY", -timedelta(minutes=1))
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=1, into=tmp_path)
    early = bundle(tmp_path, "server")
    found = await at(listening, showing(early), bundle(authority.path, "w00"))
    assert "is not valid yet. Are the clocks of both machines right?" in found.sentence
    assert not found.final
    # Shown by a worker, as to a server whose clock is behind.
    found = await at(listening, Security(authority.path).credentials(), early)
    assert "be valid by the clock of the server" in found.sentence


async def test_a_server_under_a_name_that_is_not_on_its_certificate(listening, secured, bundles):
    found = await at(listening, secured, bundle(bundles, "ours/w00"), "127.0.0.2")
    assert "should name '127.0.0.2'" in found.sentence
    assert "varangian certs issue DIR --server 127.0.0.2" in found.sentence


def test_a_port_where_nothing_listens(bundles):
    address = f"127.0.0.1:{free_port()}"
    for shown in (None, bundle(bundles, "ours/w00")):
        found = diagnose(address, shown)
        assert found.sentence.startswith(f"Nothing listens at {address}. ")
        assert not found.final


def test_a_process_that_can_open_nothing(bundles):
    shown = bundle(bundles, "ours/w00")
    with no_descriptors():
        found = diagnose("127.0.0.1:1", shown)
    assert found.sentence.startswith("This process can open no more files")
    assert not found.final


def test_a_server_that_says_nothing(bundles):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = diagnose(f"127.0.0.1:{silent.getsockname()[1]}", bundle(bundles, "ours/w00"), 0.05)
    assert "cannot be reached" in found.sentence
    assert not found.final


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("tls", [True, False])
def test_a_forwarded_port_with_no_server_behind_it_may_pass(bundles, reset, tls):
    """As a published port of a container that is being restarted: whoever connects is hung up on."""
    with socket.create_server(("127.0.0.1", 0)) as forwarder:

        def hang_up():
            line, _ = forwarder.accept()
            line.recv(1 << 16)
            if reset:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        address = f"127.0.0.1:{forwarder.getsockname()[1]}"
        found = diagnose(address, bundle(bundles, "ours/w00") if tls else None)
        thread.join()
    assert not found.final
    assert found.sentence


def test_a_name_that_nobody_knows():
    found = diagnose("no-such-host.invalid:1", None)
    assert "'no-such-host.invalid' should be known here" in found.sentence
    assert not found.final


@pytest.mark.parametrize("address", ["", "host", "host:", ":50051", "host:port"])
def test_what_is_no_address(address):
    found = diagnose(address, None)
    assert "HOST:PORT" in found.sentence
    assert found.final
