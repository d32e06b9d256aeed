"""Volume attacks by many connections: rounds go on, and afterwards everybody honest is there.

The attacker has the certificate of a Byzantine worker, or none. Nothing depends on how fast the machine is:
rounds are counted, and so are workers, refusals and bytes.
"""

import pytest
from tests.hostile.crew import Crew
from tests.hostile.http2 import Line
from tests.hostile.raiders import Raiders
from tests.hostile.siege import MIB, RUN, Siege, settled
from tests.hostile.wire import Mark

from varangian.protos import ps_pb2

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

NUMEL = 50_000
CONNECTIONS = 64
HONEST, TRAITOR = ("w00", "w01", "w02", "w03", "w04"), "w05"
ROUNDS = 3
ATTACKS = {
    "tls": (
        "status_storm",
        "half_status",
        "half_push",
        "join_storm",
        "session_fight",
        "rapid_reset",
        "silent_connections",
        "pull_storm",
        "stalled_pushes",
        "ticket_race",
        "replays",
        "everything",
    ),
    "plain": (),
}
"""Of a worker of the run, who has what strangers have and more."""
STRANGERS = {
    "tls": ("begun_handshakes",),
    "plain": ("status_storm", "half_status", "silent_lines", "everything"),
}
CASES = [
    pytest.param(mode, name, attacker, id=f"{mode}-{'worker' if attacker else 'stranger'}-{name}")
    for mode in ATTACKS
    for attacker, names in ((TRAITOR, ATTACKS[mode]), (None, STRANGERS[mode]))
    for name in names
]


@pytest.fixture(scope="module")
def raiders():
    with Raiders() as raiders:
        yield raiders


@pytest.fixture(scope="module")
def besieged(request, tmp_path_factory):
    """A server, its honest workers, and what an attacker knows."""
    log = tmp_path_factory.mktemp("storms") / "server.log"
    certs = request.getfixturevalue("certs") if request.param == "tls" else None
    options = {"workers": len(HONEST) + 1, "quorum": len(HONEST), "rule": "median", "f": 1, "idle": 10}
    siege = Siege(log, NUMEL, certs, **options)
    worker_compute = Crew(siege, HONEST)
    try:
        worker_compute.goes_on(ROUNDS)
        yield siege, worker_compute
    finally:
        worker_compute.close()
        siege.close()
    assert siege.process.returncode == 0, log.read_text()[-3000:]
    assert "Traceback" not in log.read_text()


def status(siege):
    """As a worker of the run asks for it, on a new connection."""
    with Line(siege, HONEST[0]) as line:
        stream = line.call("Status")
        line.message(stream, b"", end=True)
        found = line.answer(stream)
        assert found.get("grpc-status") == "0", found
        events = (event for event in line.events if getattr(event, "stream_id", None) == stream)
        return ps_pb2.StatusReply.FromString(b"".join(e.data for e in events if hasattr(e, "data"))[5:])


def marked(siege, name):
    return Mark(
        host=siege.host,
        port=siege.port,
        data_port=status(siege).data_port,
        certs=siege.certs,
        name=name,
        token=siege.token(TRAITOR),
        others=HONEST,
        run=RUN,
        layout=siege.layout.text,
        size=4 * NUMEL,
    )


def whole(records):
    """Those rounds in which all honest workers have counted."""
    return [record for record in records if not {*HONEST} & {*record["missing"], *record["dropped"]}]


def withstood(name, siege, worker_compute, raiders, attacker):
    """Rounds go on under attack and after it; nobody honest is lost or convicted; memory has its bound."""
    first = len(siege.rounds)
    settled(lambda: siege.resident, lambda size: size < siege.bound)  # what is left of another attack
    siege.forget_peak()
    raiders.begin(name, marked(siege, attacker), CONNECTIONS)
    try:
        worker_compute.goes_on(ROUNDS)
    finally:
        sent = raiders.end()
    assert sent, "it was an attack"
    worker_compute.goes_on(ROUNDS)
    after = len(siege.rounds)
    assert settled(lambda: whole(siege.rounds[after:]), bool), siege.rounds[after:][-3:]
    assert not worker_compute.ended
    assert not {name for record in siege.rounds[first:] for name in record["dropped"]} & {*HONEST}
    assert siege.process.poll() is None
    assert siege.peak <= siege.bound, (siege.peak / MIB, siege.bound / MIB)
    return sent


@pytest.mark.parametrize(("besieged", "name", "attacker"), CASES, indirect=["besieged"], scope="module")
def test_rounds_go_on(besieged, name, attacker, raiders):
    siege, worker_compute = besieged
    withstood(name, siege, worker_compute, raiders, attacker)


@pytest.mark.parametrize("besieged", ["tls"], indirect=True, scope="module")
def test_what_is_refused_is_counted(besieged, raiders):
    siege, worker_compute = besieged
    before = status(siege).refusals
    withstood("session_fight", siege, worker_compute, raiders, TRAITOR)
    assert settled(lambda: status(siege).refusals, lambda found: found != before) != before
