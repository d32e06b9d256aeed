"""A server that everyone attacks, and what must be true of it after every attack."""

import contextlib

import pytest
from tests.hostile.siege import Honest, Siege, settled

pytest.importorskip("h2")

MIB = 1 << 20
GROWTH = 64 * MIB
"""What an attack may take while it lasts: a few messages of 8 MiB on their way, and some slack."""
TALK = 10_000
"""Characters that an attack may have the server say."""
SLACK = 4
"""Files and threads that gRPC may keep for later."""


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

    @contextlib.contextmanager
    def during():
        honest.round()
        settled(lambda: siege.rounds and siege.rounds[-1]["round"], lambda last: last == honest.served)
        files, threads, resident = siege.files, siege.threads, siege.resident
        said = siege.log.stat().st_size
        siege.forget_peak()
        yield
        honest.round()
        assert siege.process.poll() is None
        assert siege.peak - resident < GROWTH
        log = siege.log.read_bytes()[said:].decode()
        assert len(log) < TALK
        assert "Traceback" not in log
        assert not [line for line in log.splitlines() if line.startswith(("ERROR", "CRITICAL"))]
        assert settled(lambda: siege.files, lambda count: count <= files + SLACK) <= files + SLACK
        assert settled(lambda: siege.threads, lambda count: count <= threads + SLACK) <= threads + SLACK

    return during
