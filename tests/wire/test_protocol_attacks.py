"""Attacks on the protocol over real sockets: what the server answers, whom it blames, and what comes out.

One of five workers attacks. Whatever it does, the others train on, nobody is proven faulty, and the
parameters are those of a run in which it is silent, or honest.
"""

import asyncio
from collections import Counter

import pytest
import torch
from tests.extent import patience
from tests.wire.kit import LAYOUT, NAMES, PATIENT, Run, gradient, worked

from varangian.aggregators import Median
from varangian.protos.identity.bundle import Bundle
from varangian.protos.layout import Layout
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.worker.attacks import (
    Churn,
    Equivocate,
    Resend,
    SizeLie,
    SlowDrip,
    StalePush,
    WrongShape,
)
from varangian.worker.loop import work
from varangian.worker.misbehaving import MisbehavingClient
from varangian.worker.transport.results import Declined

*HONEST, ATTACKER = NAMES
ROUNDS = 3
SMALL = Layout((("weight", (5, 20)),))
"""One message."""
WAYS = {"inline": (SMALL, None), "chunks": (LAYOUT, None), "lane": (LAYOUT, 0)}

SILENT = {
    "stale": (StalePush(), {"": 1, "STALE": 2}),
    "future": (StalePush(age=-7), {"FUTURE": 3}),
    "longer": (WrongShape("longer"), {"NUMEL": 3}),
    "shorter": (WrongShape("shorter"), {"NUMEL": 3}),
    "one": (WrongShape("one"), {"NUMEL": 3}),
    "layout": (WrongShape("layout"), {"LAYOUT": 3}),
    "dtype": (WrongShape("dtype"), {"DTYPE": 3}),
    "digest": (SizeLie("digest"), {"DIGEST": 3}),
    "cut": (Churn(when="during"), {"CANCELLED": 3}),
    "away": (Churn(when="before", away=0.01), {}),
}
"""Attacks whose vector never counts, but for that of round 0 under its own number, and the answers."""
HONEST_SENT = {
    "repeat": (Resend(age=0), {"": 2 * ROUNDS}),
    "replay": (Resend(age=1), {"": ROUNDS, "STALE": ROUNDS - 1}),
    "relabelled": (Resend(age=1, relabel=True), {"": ROUNDS, "COUNTED": ROUNDS - 1}),
    "after": (Equivocate(versions=3), {"": ROUNDS, "COUNTED": 2 * ROUNDS}),
    "leaves": (Churn(when="after"), {"": ROUNDS}),
}
"""Attacks that send the honest vector first, which counts. A second push may be too late for its round."""
TOO_LATE = {"STALE", "FINISHED"}
LOST = "INTERNAL"
"""In place of the answer to a call that the server has ended during a write."""
BRIEF = [
    ("stale", "inline"),
    ("longer", "lane"),
    ("cut", "chunks"),
    ("repeat", "lane"),
    ("after", "inline"),
]
"""Of all attacks and ways those that are tested each time."""


def cases(attacks):
    """Each attack on each way."""
    return [
        pytest.param(name, way, marks=[] if (name, way) in BRIEF else pytest.mark.exhaustive)
        for name in attacks
        for way in WAYS
    ]


class Attacker(MisbehavingClient):
    """An attacker whose turns in each round, from its computation to the end of its attack, show."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.begun, self.over = ([asyncio.Event() for _ in range(ROUNDS)] for _ in range(2))

    async def compute(self, round, parameters):
        self.begun[round].set()
        return await gradient(ATTACKER, round, parameters)

    async def push(self, round, vector):
        receipt = await super().push(round, vector)
        self.over[round].set()
        return receipt


async def begins(run, attacker, round):
    await attacker.begun[round].wait()


async def has_ended(run, attacker, round):
    await attacker.over[round].wait()


async def uploads(run, attacker, round):
    """Until its upload is open."""
    await begins(run, attacker, round)
    while ATTACKER not in run.coordinator.status().present:
        await asyncio.sleep(0.001)


def all_honest(pushed, faulty):
    """No round is over without the honest workers, however busy the machine is."""
    return None if {*HONEST} <= {*pushed} else "honest workers are missing"


async def attacked(attack, way="inline", *, after, deadline=0.01, **options):
    """A run in which one worker attacks, and the answers that it got; the honest ones push `after` it.

    So the attacker takes part in each round, and what it is told depends on no speed.
    """
    layout, data_port = WAYS[way]
    proofs = options.pop("proofs", None)
    run = Run(ROUNDS, layout, deadline=deadline, rule=Median(), requires=all_honest, **options)
    run.data_port = data_port
    proofs = proofs or {name: run.sessions.token(name) for name in NAMES}
    async with run.served() as address:
        client = Attacker(
            address, ATTACKER, proofs[ATTACKER], layout, attack=attack, seed=1, backoff=PATIENT
        )

        async def compute(name, round, parameters):
            await after(run, client, round)
            return await gradient(name, round, parameters)

        async with client:
            works = [worked(run, address, name, compute, proof=proofs[name]) for name in HONEST]
            await _all([*works, work(client, client.compute)])
    return run, {code: count for code, count in client.answered.items() if count}


async def unattacked(way, compute=gradient):
    """The run in which the worker that attacks computes as told, without an attack."""
    layout, data_port = WAYS[way]
    run = Run(ROUNDS, layout, rule=Median())
    run.data_port = data_port
    async with run.served() as address:
        works = [worked(run, address, name) for name in HONEST]
        await _all([*works, worked(run, address, ATTACKER, compute)])
    return run


async def _all(works):
    assert set(await asyncio.gather(*works)) == {f"all {ROUNDS} rounds are done"}


async def silent(name, round, parameters):
    raise Declined("nothing to send")


async def first_round_only(name, round, parameters):
    return await (gradient if round == 0 else silent)(name, round, parameters)


def unharmed(run):
    """What is true of every run: each round has an update of the honest workers, and no fault is proven."""
    assert [record.round for record in run.records] == [*range(ROUNDS)]
    for record in run.records:
        assert record.skipped is None
        assert record.dropped == {}
        assert not {*HONEST} & {*record.missing}


def assert_answered(found, answers):
    """These are the answers to the attacker, of which one may have been lost."""
    lost = Counter(answers) - Counter(found)
    assert lost.total() <= 1, found
    assert Counter(found) - Counter(answers) == Counter({LOST: lost.total()} if lost else {}), found


@pytest.mark.parametrize(("name", "way"), cases(SILENT))
async def test_a_vector_that_is_refused_counts_as_missing_and_spends_nothing(name, way):
    attack, answers = SILENT[name]
    run, found = await attacked(attack, way, after=has_ended)
    assert_answered(found, answers)
    unharmed(run)
    expected = await unattacked(way, first_round_only if "" in answers else silent)
    assert torch.equal(run.learner.parameters, expected.learner.parameters)


@pytest.mark.parametrize(("name", "way"), cases(HONEST_SENT))
async def test_the_first_vector_counts_once_whatever_follows(name, way):
    attack, answers = HONEST_SENT[name]
    run, found = await attacked(attack, way, after=begins, deadline=60.0)
    assert found[""] >= ROUNDS
    assert sum(found.values()) == sum(answers.values())
    assert found.keys() <= {*answers, *TOO_LATE, LOST}
    unharmed(run)
    expected = await unattacked(way)
    assert torch.equal(run.learner.parameters, expected.learner.parameters)


@pytest.mark.parametrize(
    "way", ["inline", *(pytest.param(way, marks=pytest.mark.exhaustive) for way in ("chunks", "lane"))]
)
async def test_of_vectors_at_the_same_time_at_most_one_counts(way):
    run, found = await attacked(Equivocate(when="together"), way, after=begins, deadline=60.0)
    counted = found.pop("")
    # Of a push that is replaced while its replacement is lost, none may count in that round.
    assert 1 <= counted <= ROUNDS
    assert sum(found.values()) == 2 * ROUNDS - counted
    assert found.keys() <= {"COUNTED", "REPLACED", LOST, *TOO_LATE}
    unharmed(run)


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["fewer", "more"])
async def test_a_lie_about_the_size_is_refused_or_never_read(what, way):
    # No size is sent on a data connection: the server waits for the rest until its idle time-out.
    beside = {"fewer": "IDLE", "more": ""}
    called = {"fewer": "TOO_FEW_BYTES", "more": "TOO_MANY_BYTES"}
    limits = Limits(idle=patience(0.5), status=0.0, grace=20.0)
    run, found = await attacked(SizeLie(what), way, after=has_ended, limits=limits)
    assert_answered(found, {(beside if way == "lane" else called)[what]: ROUNDS})
    unharmed(run)


async def test_rounds_go_on_while_the_server_waits_for_bytes_that_never_come():
    limits = Limits(idle=90.0, status=0.0, grace=20.0)
    run = Run(ROUNDS, LAYOUT, deadline=0.01, rule=Median(), requires=all_honest, limits=limits)
    async with run.served() as address:
        token = run.sessions.token(ATTACKER)
        client = Attacker(address, ATTACKER, token, LAYOUT, attack=SizeLie(), seed=1, backoff=PATIENT)

        async def compute(name, round, parameters):
            await uploads(run, client, 0)
            return await gradient(name, round, parameters)

        async with client:
            stuck = asyncio.ensure_future(work(client, client.compute))
            await _all([worked(run, address, name, compute) for name in HONEST])
            assert not client.answered, "its upload is still open"
            stuck.cancel()
            await asyncio.wait({stuck})
    unharmed(run)
    assert torch.equal(run.learner.parameters, (await unattacked("lane", silent)).learner.parameters)


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["chunks", "lane"])
async def test_a_drip_costs_the_deadline_and_ends_with_its_round(way):
    run, found = await attacked(SlowDrip(rate=50.0), way, after=uploads)
    assert found.keys() <= TOO_LATE
    unharmed(run)
    expected = await unattacked(way, silent)
    assert torch.equal(run.learner.parameters, expected.learner.parameters)


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["replay", "longer", "digest", "cut"])
async def test_over_tls_the_answers_are_the_same(name, way, certified):
    attack, answers = (SILENT | HONEST_SENT)[name]
    proofs = {worker: Bundle.load(certified / worker) for worker in NAMES}
    security = Security(certified / "server")
    deadline = 60.0 if name in HONEST_SENT else 0.01
    run, found = await attacked(
        attack, way, after=has_ended, deadline=deadline, security=security, proofs=proofs
    )
    assert_answered(found, answers)
    unharmed(run)
