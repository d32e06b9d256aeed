"""The lane beside gRPC under attack: those who use it as they should go on, and nothing is left behind."""

import inspect

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.extent import examples
from tests.hostile import lane_attacks
from tests.hostile.rogue import GOOD, Rogue
from tests.hostile.siege import TRAITOR, Honest, Siege, settled

from varangian.protos.payloads.encoding import encode_vector

pytestmark = pytest.mark.slow

NUMEL = 2_000_003
"""More than fits into a line that nobody reads, and than moves in a turn."""
WORKERS, HONEST = 6, ("w00", "w01", "w05")
MODES = ("plain", "tls")
ROUNDS = examples(6, few=4)
"""As many as most attacks last; some have no end."""


@pytest.fixture(scope="session", params=MODES)
def siege(request, tmp_path_factory):
    log = tmp_path_factory.mktemp("siege") / "server.log"
    certs = request.getfixturevalue("certs") if request.param == "tls" else None
    siege = Siege(log, NUMEL, certs, workers=WORKERS, quorum=len(HONEST), rule="median", f=1)
    yield siege
    siege.close()
    assert siege.process.returncode == 0, log.read_text()[-3000:]


@pytest.fixture(scope="session")
def honest(siege):
    honest = Honest(siege, HONEST)
    for _ in range(3):
        honest.round()
    yield honest
    honest.close()


def attacked(attack, siege, honest):
    """From its beginning to its end, and those who have joined for nothing else go on meanwhile."""
    running = attack(siege)
    if inspect.isgenerator(running):
        for _ in zip(range(ROUNDS), running, strict=False):
            honest.round()
        running.close()
    honest.round()
    with Rogue(siege) as rogue:
        rogue.works()


LONG = (
    lane_attacks.strangers,
    lane_attacks.noise,
    lane_attacks.slow_loris,
    lane_attacks.chunks_all_the_same,
)
"""Attacks of several seconds."""


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(attack, marks=[pytest.mark.exhaustive] * (attack in LONG))
        for attack in lane_attacks.ATTACKS
    ],
    ids=lambda attack: attack.__name__,
)
def test_the_lane_survives(attack, siege, honest, unharmed):
    with unharmed():
        attacked(attack, siege, honest)


@pytest.mark.parametrize("attack", lane_attacks.SEALED, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("siege", ["tls"], indirect=True)
def test_nobody_gets_in_without_the_key(attack, siege, honest, unharmed):
    with unharmed():
        attacked(attack, siege, honest)


@pytest.mark.parametrize(
    ("number", "at"),
    [
        pytest.param(torch.nan, 0, marks=pytest.mark.exhaustive),
        (torch.nan, NUMEL - 1),
        pytest.param(-torch.inf, NUMEL // 2, marks=pytest.mark.exhaustive),
    ],
)
def test_what_is_no_number_proves_a_fault_on_the_lane_too(number, at, siege, honest, unharmed):
    vector = torch.full((NUMEL,), GOOD)
    vector[at] = number
    with unharmed(), Rogue(siege) as rogue:
        for push in (rogue.gives, rogue.gives_chunks):
            honest.round()
            before = len(siege.rounds)
            assert push(bytes(encode_vector(vector))) == "UNSOUND"
            honest.round()
            honest.round()
            dropped = settled(lambda before=before: [r["dropped"] for r in siege.rounds[before:]], any)
            assert {TRAITOR: "not finite"} in dropped
        honest.round()
        rogue.works()


def test_any_other_number_counts(siege, honest, unharmed):
    with unharmed(), Rogue(siege) as rogue:
        for number in (-0.0, 1e-42, 3e38):
            assert rogue.gives(rogue.payload(number)) == ""
            honest.round()
        rogue.works()


# however bytes are cut


SIZES = (37, 70_001)
"""Numbers of a vector that is here as soon as its ticket is, and of one that is looked at twice."""

PAIRS = [
    ("plain", SIZES[0]),
    pytest.param(("plain", SIZES[1]), marks=pytest.mark.exhaustive),
    pytest.param(("tls", SIZES[0]), marks=pytest.mark.exhaustive),
    ("tls", SIZES[1]),
]


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def pair(request, tmp_path_factory):
    """Two workers alone with their server: when one takes back what the other one says, nothing changes."""
    mode, size = request.param
    certs = request.getfixturevalue("certs") if mode == "tls" else None
    log = tmp_path_factory.mktemp("pair") / "server.log"
    siege = Siege(log, size, certs, workers=2, quorum=2, deadline=600, idle=20)
    try:
        with Rogue(siege, "w00") as one, Rogue(siege, "w01") as two:
            data = bytes(encode_vector(torch.randn(size, generator=torch.Generator().manual_seed(1))))
            assert [one.gives(data), two.gives_chunks(data)] == ["", ""]
            yield one, two
    finally:
        siege.close()
    assert "Traceback" not in log.read_text()


def vector(size, seed):
    """Numbers of every size, from the least there is."""
    source = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-44, 15, (size,), generator=source)
    numbers = torch.randn(size, generator=source) * scales
    numbers[::97] = -0.0
    return numbers


cuts = st.lists(st.floats(0, 1), max_size=12)
ways = st.tuples(st.booleans(), cuts, st.lists(st.integers(0, 3), min_size=1, max_size=4))


def pushed(rogue, data, way):
    lane, cuts, pauses = way
    cuts = [int(cut * len(data)) for cut in cuts]
    return rogue.gives(data, cuts, pauses) if lane else rogue.gives_chunks(data, cuts)


@settings(max_examples=examples(12), deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), first=ways, second=ways)
def test_no_cut_changes_a_bit(pair, seed, first, second):
    one, two = pair
    model, round = one.takes(), one.round()
    numbers = vector(len(model), seed)
    for rogue, sign, way in ((one, 1, first), (two, -1, second)):
        assert pushed(rogue, bytes(encode_vector(sign * numbers)), way) == ""
    assert torch.equal(two.takes(after=round), model)
