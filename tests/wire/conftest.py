"""Certificates for runs over TLS, and data connections that outlast a pause of the machine."""

from functools import partial

import pytest
from tests.wire.kit import ALWAYS, NAMES
from tests.wire.relay import FAR, NEAR

from varangian.protos.data_channel.listener import DataListener, IdleLimits
from varangian.protos.identity.bundle import Role
from varangian.server import app
from varangian.worker.transport.payloads import data_channel, data_connection


@pytest.fixture
def lasting(monkeypatch):
    """No data connection is closed because it carries nothing for a while, for tests that count them."""
    limits = IdleLimits(first_ticket=ALWAYS, next_ticket=ALWAYS, age=ALWAYS)
    monkeypatch.setattr(app, "DataListener", partial(DataListener, limits=limits))
    for seconds in ("NEW", "USED"):
        monkeypatch.setattr(data_connection, seconds, ALWAYS)
    monkeypatch.setattr(data_connection, "PATIENCE", ALWAYS)
    monkeypatch.setattr(data_channel, "RETRY_INTERVAL", ALWAYS)


@pytest.fixture(scope="session")
def certified(tmp_path_factory):
    """A server that is called FAR too, and the workers."""
    pytest.importorskip("cryptography")
    from varangian.pki.authority import Authority

    authority = Authority.create(tmp_path_factory.mktemp("wire") / "authority", days=30)
    authority.issue("server", Role.SERVER, hosts=[FAR, NEAR], days=10)
    for name in NAMES:
        authority.issue(name, Role.WORKER, days=10)
    return authority.path
