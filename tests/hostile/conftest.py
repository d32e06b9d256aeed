"""A server that everyone attacks, and what must be true of it after every attack."""

import functools

import pytest
from tests.hostile.siege import Honest, Siege
from tests.hostile.siege import unharmed as left_unharmed

pytest.importorskip("h2")

WORKERS = 6
"""Of whom there are certificates."""


@pytest.fixture(scope="session")
def siege(tmp_path_factory):
    siege = Siege(tmp_path_factory.mktemp("siege") / "server.log")
    yield siege
    siege.close()
    assert siege.process.returncode == 0, siege.log.read_text()[-3000:]


@pytest.fixture(scope="session")
def honest(siege):
    honest = Honest(siege)
    for _ in range(3):
        honest.round()  # what a server takes for a round, it has taken now
    yield honest
    honest.close()


@pytest.fixture
def unharmed(siege, honest):
    """A context in which the server may be attacked, and after which it has to be as before."""
    return functools.partial(left_unharmed, siege, honest)


@pytest.fixture(scope="session")
def certs(tmp_path_factory):
    """Bundles of a server and its workers."""
    pytest.importorskip("cryptography")
    from varangian.pki.authority import Authority
    from varangian.protos.identity.bundle import Role

    path = tmp_path_factory.mktemp("certs") / "ours"
    ours = Authority.create(path, days=2)
    for i in range(WORKERS):
        ours.issue(f"w{i:02d}", Role.WORKER, days=1)
    ours.issue("server", Role.SERVER, days=1)
    return path
