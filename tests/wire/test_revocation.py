"""Certificates that are revoked, renewed, or expire while a run goes on, over real connections with TLS."""

import asyncio
import socket
import ssl
import time
from collections import Counter

import pytest
import torch
from tests.extent import patience
from tests.wire.kit import NAMES, Run, far, gradient, until, worked

from varangian.aggregators import Aggregator, TrimmedMean
from varangian.cli.main import main
from varangian.protos.identity import watched_files
from varangian.protos.identity.bundle import Bundle, Role, ssl_contexts
from varangian.protos.layout import Layout
from varangian.server import app
from varangian.server.identity import revocation
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd
from varangian.server.transport import grpc_server
from varangian.worker.transport import tls
from varangian.worker.transport.client import ClientError

SMALL = Layout((("weight", (50, 100)),))
LAST = NAMES[-1]
HONEST = NAMES[:-1]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """What is looked at every second is so twenty times a second."""
    monkeypatch.setattr(watched_files, "FILE_CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(revocation, "FILE_CHECK_INTERVAL", 0.05)


@pytest.fixture
def authority(tmp_path):
    pytest.importorskip("cryptography")
    from varangian.pki.authority import Authority

    made = Authority.create(tmp_path / "authority", days=30)
    made.issue("server", Role.SERVER, hosts=["127.0.0.1", "127.0.0.2"], days=10)
    for name in NAMES:
        made.issue(name, Role.WORKER, days=10)
    return made


def proof(authority, name):
    return tls.load_worker_bundle(authority.path, name)


def works(run, address, authority, names, compute=gradient):
    return [
        asyncio.create_task(worked(run, address, name, compute, proof=proof(authority, name)))
        for name in names
    ]


def after(rows, layout, f=1):
    """The digest of the parameters after one round of these rows, with nothing else in it."""
    learner = Learner(
        torch.ones(layout.numel), Aggregator(TrimmedMean(f=f), f=f), Sgd(lr=0.5), rounds=1, seed=1
    )
    learner.step(0, rows, {})
    return learner.digest()


async def rows(names, layout):
    return {name: await gradient(name, 0, torch.ones(layout.numel)) for name in names}


@pytest.mark.parametrize("window", [False, True])
async def test_a_worker_that_is_revoked_in_the_middle_of_a_round_is_not_in_its_update(authority, window):
    run = Run(
        rounds=1, layout=SMALL, rule=TrimmedMean(f=1), security=Security(authority.path), window=window
    )
    revoked = asyncio.Event()

    async def late(name, round, parameters):
        if name == HONEST[0]:
            await revoked.wait()
        return await gradient(name, round, parameters)

    async def bad(name, round, parameters):
        return torch.full_like(parameters, 1e4)

    async with run.served() as address:
        first = works(run, address, authority, HONEST[:1], late)
        others = works(run, address, authority, HONEST[1:])
        (attacker,) = works(run, address, authority, [LAST], bad)
        # With a window nobody is counted before all are; there it is enough that the upload is open.
        await until(lambda: LAST in run.coordinator.status().present)
        if not window:
            await until(lambda: LAST in run.coordinator.status().counted)
        authority.revoke(LAST)
        with pytest.raises(ClientError, match="should be one that was not revoked"):
            await attacker
        await until(lambda: LAST not in run.coordinator.status().present)
        revoked.set()
        await asyncio.gather(*first, *others)
    (record,) = run.records
    assert (record.revoked, record.missing, record.dropped) == ((LAST,), (), {})
    assert run.learner.digest() == after(await rows(HONEST, run.layout), run.layout)


async def test_an_upload_that_is_under_way_when_it_is_revoked_ends_and_does_not_count(authority):
    run = Run(rounds=2, rule=TrimmedMean(f=1), security=Security(authority.path))
    async with run.placed() as place, far(place, rate=1.5e6) as lines:
        (slow,) = works(run, lines.address, authority, [LAST])
        await until(lambda: LAST in run.coordinator.status().present)
        lines.hole()  # the rest does not arrive before the server has looked at the list
        authority.revoke(LAST)
        await until(lambda: LAST not in run.coordinator.status().present)
        lines.heal()
        with pytest.raises(ClientError, match="should be one that was not revoked"):
            await slow
        await asyncio.gather(*works(run, place.address, authority, HONEST))
    assert [(record.revoked, record.missing) for record in run.records] == [((LAST,), ())] * 2


async def test_standing_calls_of_a_revoked_certificate_end_and_nobody_waits_for_it(authority):
    """It has pulled, and says nothing more; only the call that tells that it lives is open."""
    run = Run(rounds=1, layout=SMALL, rule=TrimmedMean(f=1), security=Security(authority.path))
    async with run.served() as address, run.client(address, LAST, proof(authority, LAST)) as silent:
        await silent.join()
        await silent.pull(-1)
        await until(lambda: LAST in run.sessions.present)
        authority.revoke(LAST)
        await until(lambda: LAST not in run.sessions.joined)
        await asyncio.gather(*works(run, address, authority, HONEST))
    assert run.records[0].revoked == (LAST,)


async def test_a_worker_goes_on_with_its_new_certificate_where_the_old_one_was_revoked(authority):
    """The others wait in each round until it has the model: so no round ends while it reconnects."""
    security, replaced = Security(authority.path), asyncio.Event()
    run = Run(rounds=8, layout=SMALL, rule=TrimmedMean(f=1), security=security, sessions_clock=lambda: 0.0)
    pulled = [asyncio.Event() for _ in range(8)]

    async def in_step(name, round, parameters):
        if name == LAST:
            pulled[round].set()
        await pulled[round].wait()
        if round == 3:
            await replaced.wait()
        return await gradient(name, round, parameters)

    async with run.served() as address:
        tasks = works(run, address, authority, NAMES, in_step)
        await pulled[3].wait()
        authority.issue(LAST, Role.WORKER, days=10, force=True, revoke_old=True)
        await until(lambda: len(security.revoked) == 1)
        replaced.set()
        await asyncio.gather(*tasks)
    # The round in hand may be lost to it, and the next one, if the others are all there before its vector.
    lost = [record.round for record in run.records if LAST in (*record.missing, *record.revoked)]
    assert {*lost} <= {3, 4}
    assert all(record.dropped == {} for record in run.records)
    assert run.records[-1].weights is None


async def test_a_worker_goes_on_with_its_renewed_certificate_when_the_old_one_expires(authority):
    """The connection stands; by the clock of the server the certificate has come to its end."""
    now = [time.time()]
    authority.issue(LAST, Role.WORKER, days=2, force=True)
    run = Run(
        rounds=2,
        layout=SMALL,
        rule=TrimmedMean(f=1),
        security=Security(authority.path, now=lambda: now[0]),
        quorum=len(NAMES),
    )
    async with run.served() as address:
        old = proof(authority, LAST)
        async with run.client(address, LAST, old) as client:
            await client.join()
            first = await client.pull(-1)
            now[0] += 3 * 86400
            with pytest.raises(ClientError, match="one that has not expired") as caught:
                await client.push(first.round, first.parameters)
            assert "[EXPIRED]" in str(caught.value)
            authority.issue(LAST, Role.WORKER, days=9, force=True)
            assert (await client.push(first.round, first.parameters)).counted
            assert client._connection._bundle == Bundle.load(authority.path / LAST)
        await asyncio.gather(*works(run, address, authority, NAMES))
    assert run.records[0].missing == ()


@pytest.mark.parametrize(
    "data_port", [0, pytest.param(None, marks=pytest.mark.exhaustive)], ids=["lane", "chunks"]
)
async def test_an_upload_that_is_under_way_when_its_certificate_expires_counts_once_it_is_renewed(
    authority, data_port
):
    now = [time.time()]
    authority.issue(LAST, Role.WORKER, days=2, force=True)
    security = Security(authority.path, now=lambda: now[0])
    run = Run(rounds=1, rule=TrimmedMean(f=1), security=security, quorum=len(NAMES))
    run.data_port = data_port
    async with run.placed() as place:
        async with far(place, rate=1.5e6, lane=None if data_port is None else ()) as lines:
            (slow,) = works(run, lines.address, authority, [LAST])
            await until(lambda: LAST in run.coordinator.status().present)
            lines.hole()  # the rest does not arrive before the server has looked at the clock
            now[0] += 3 * 86400
            await until(lambda: LAST not in run.coordinator.status().present)
            lines.heal()
            with pytest.raises(ClientError, match="one that has not expired"):
                await slow
        authority.issue(LAST, Role.WORKER, days=9, force=True)
        await asyncio.gather(*works(run, place.address, authority, NAMES))
    (record,) = run.records
    assert (record.dropped, record.missing, record.revoked) == ({}, (), ())
    assert run.learner.digest() == after(await rows(NAMES, run.layout), run.layout)


class Raw:
    """Connections by hand with the certificate of a worker, for `http2.Line`."""

    def __init__(self, address, path):
        self.address, self.path, self.known, self.session = address, path, None, None

    def dial(self, name):
        context = self.known or ssl_contexts(self.path / name)[1]
        context.set_alpn_protocols(["h2"])
        line = socket.create_connection(("127.0.0.1", int(self.address.rpartition(":")[2])), patience(10))
        self.line, self.context = context.wrap_socket(line, session=self.session), context
        return self.line


@pytest.mark.exhaustive
async def test_by_hand_a_certificate_that_expires_gets_no_answer_on_a_line_that_stands_or_a_new_one(
    authority, monkeypatch
):
    """By the clock of TLS, too, which no test can set; with the session of before, and without."""

    def lasting(*given):
        """Options of gRPC with which a line stands however long nothing is called on it."""
        changed = {"grpc.max_connection_idle_ms": 10**9}
        return tuple((key, changed.get(key, value)) for key, value in grpc_server.options(*given))

    monkeypatch.setattr(app, "options", lasting)
    http2 = pytest.importorskip("tests.hostile.http2")

    def asked(line):
        stream = line.call("Status")
        line.message(stream, b"", end=True)
        return line.answer(stream)

    def story(address, ends):
        raw = Raw(address, authority.path)
        with http2.Line(raw, LAST) as standing:
            assert asked(standing)["grpc-status"] == "0"
            session, context = raw.line.session, raw.context
            time.sleep(max(0.0, ends + 1 - time.time()))
            found = asked(standing)
            assert (found["grpc-status"], found["varangian-code"]) == ("16", "EXPIRED")
        raw.known = context
        for raw.session in (session, None):
            try:
                with http2.Line(raw, LAST) as new:
                    found = asked(new)
            except (ssl.SSLError, ConnectionError, http2.HungUp):
                continue
            assert found.get("varangian-code", "hung up") in ("EXPIRED", "hung up"), found
            assert found.get("grpc-status") != "0"

    run = Run(rounds=1, layout=SMALL, security=Security(authority.path))
    async with run.served() as address:
        made = authority.issue(LAST, Role.WORKER, days=min(60, patience(10)) / 86400, force=True)
        await asyncio.to_thread(story, address, made.ends)


@pytest.mark.exhaustive
async def test_connections_that_are_replaced_by_their_age_cost_nothing(authority, monkeypatch):
    """Each second instead of each hour, in the middle of uploads and of calls that stay open."""
    monkeypatch.setattr("varangian.server.transport.grpc_server.AGE", 1)
    run = Run(
        rounds=60,
        layout=SMALL,
        rule=TrimmedMean(f=1),
        security=Security(authority.path),
        limits=Limits(idle=20.0, grace=20.0, age=0.7),
        timeout=10.0,
        absent_after=patience(10),
    )
    run.data_port = None
    begun, gone, calling = Counter(), [], run.sessions.calling
    run.coordinator.absent = gone.append

    def noted(name, *, persistent=False):
        begun[name] += persistent
        return calling(name, persistent=persistent)

    monkeypatch.setattr(run.sessions, "calling", noted)

    async def paced(name, round, parameters):
        await asyncio.sleep(0.05)
        if round == 59:  # until all connections have come to their age, and those after them
            await until(lambda: all(begun[each] > 3 for each in NAMES))
        return await gradient(name, round, parameters)

    async with run.served() as address:
        await asyncio.gather(*works(run, address, authority, NAMES, paced))
    assert gone == []
    assert all(record.missing == () for record in run.records)


async def test_health_says_what_is_wrong_with_the_list_and_a_missing_one_ends_the_run(authority, capsys):
    clock, reasons = [0.0], []
    security = Security(authority.path, clock=lambda: clock[0])
    run = Run(layout=SMALL, security=security, end=reasons.append)
    listed = authority.path / "server/revoked"

    async def healthy():
        """What the command prints, on both streams."""
        args = ["health", "--server", address, "--certs", str(authority.path)]
        assert await asyncio.to_thread(main, args) == 0
        return capsys.readouterr()

    async with run.served() as address:
        authority.revoke(LAST)
        clock[0] += 1
        await until(lambda: len(security.revoked) == 1)
        out, errors = await healthy()
        assert "1 certificate is revoked" in out
        assert errors == ""
        listed.rename(listed.with_suffix(".gone"))
        clock[0] += 1
        await until(lambda: security.revoked.failure)
        out, errors = await healthy()
        assert "1 certificate is revoked" in out
        assert "error: The list of revoked certificates is missing since 20" in errors
        listed.with_suffix(".gone").rename(listed)
        clock[0] += 1
        await until(lambda: security.revoked.failure is None)
        assert (await healthy()).err == ""
        listed.unlink()
        clock[0] += 1
        await until(lambda: security.revoked.failure)
        clock[0] += revocation.MISSING_LIST_GRACE - 1
        await asyncio.sleep(0.2)
        assert reasons == []
        clock[0] += 1
        await until(lambda: reasons)
    assert reasons[0].startswith("the list of revoked certificates has been missing for 60 s. ")
    assert f"{listed} should be the list" in reasons[0]
