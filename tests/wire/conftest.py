"""Certificates for runs over TLS."""

import pytest
from tests.wire.kit import NAMES
from tests.wire.relay import FAR, NEAR

from varangian.protos.identity.bundle import Role


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
