"""Members of a run that change while it goes on, asked of the real service over real connections."""

import asyncio
import contextlib
import errno
import functools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import grpc.aio
import pytest
import torch
from tests.extent import patience

from varangian.config import load
from varangian.config.build import machine as machine_of
from varangian.launch.membership.desk import Desk
from varangian.launch.membership.members_file import MembersFile
from varangian.pki import x509
from varangian.protos import ps_pb2, ps_pb2_grpc
from varangian.protos.contract import Contract
from varangian.protos.identity.bundle import Bundle, Role
from varangian.protos.layout import Layout
from varangian.protos.metadata_keys import CODE, SESSION
from varangian.protos.network.dial import open_aio_channel
from varangian.server.identity.enrolment import Enrolment
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.limits.limits import Limits
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.training.learner import Learner
from varangian.server.transport.grpc_server import CallHandlers, bind, options
from varangian.server.transport.service import Service
from varangian.worker.transport.client import Client, ClientError, Finished
from varangian.worker.transport.retry import Backoff
from varangian.worker.transport.tls import credentials

LAYOUT = Layout((("weight", (4,)),))
WORKERS = ("w00", "w01", "w02", "w03")
SETTINGS = ["workers=[w00,w01,w02,w03]", "f=1", "aggregator=median", "rounds=50", "optimizer.lr=0.1"]
ONES = torch.ones(4)


class World:
    """A run with its service behind certificates."""

    def __init__(self, path: Path, folder: Path, settings=()):
        self.path, self.records = path, []
        config = load(None, [*SETTINGS, *settings])
        self.machine = machine_of(config)
        security = Security(path)
        self.sessions = Sessions(WORKERS, None, certificate_reader=security.certificate_reader)
        learner = Learner(torch.zeros(4), config.aggregator, config.optimizer, rounds=50, seed=1)
        self.coordinator = Coordinator(
            self.machine,
            learner,
            evaluate=lambda parameters: (0.0, 0.0),
            evaluate_every=50,
            observe=self.records.append,
        )
        self.run = SimpleNamespace(
            path=folder,
            start=config,
            latest=config,
            members=None,
            machine=self.machine,
            took_part={},
            over=False,
            fixed="",
            lacks=lambda before, after: "",
        )
        self.security, self.enrolment = security, None

    @contextlib.asynccontextmanager
    async def serving(self):
        desk = self.desk = Desk(self.run, self.coordinator, self.sessions)
        server = grpc.aio.server(options=options(5))
        service = Service(
            self.coordinator,
            self.sessions,
            Contract("run-1", LAYOUT),
            Limits(patience=5.0),
            security=self.security,
            desk=desk,
            enrolment=self.enrolment,
        )
        handlers = CallHandlers()
        service.add_to(handlers)
        server.add_generic_rpc_handlers((handlers,))
        self.address = bind(server, "127.0.0.1", 0, self.security.credentials())
        await server.start()
        stop = asyncio.Event()
        running = asyncio.create_task(self.coordinator.run(stop))
        try:
            yield self
        finally:
            stop.set()
            await running
            service.dismiss()
            await server.stop(0)

    def client(self, name):
        bundle = Bundle.load(self.path / name)
        return Client(self.address, name, bundle, LAYOUT, backoff=Backoff(tries=1), idle=patience(20))

    async def call(self, holder, method, request):
        """The reply to a call with the certificate of this holder, or its code and sentence."""
        shown = credentials(Bundle.load(self.path / holder))
        async with open_aio_channel(self.address, shown) as channel:
            stub = ps_pb2_grpc.ParameterServerStub(channel)
            try:
                return await getattr(stub, method)(request, metadata=((SESSION, "0" * 32),))
            except grpc.aio.AioRpcError as error:
                return dict(error.trailing_metadata())[CODE], error.details()

    async def ask(self, action, name="", f=-1, by="alice"):
        request = ps_pb2.MembersRequest(action=action, name=name, f=f)
        return await self.call(by, "Members", request)

    async def recorded(self, count):
        """The records of so many rounds, once they are there."""
        async with asyncio.timeout(patience(30)):
            while len(self.records) < count:
                await asyncio.sleep(0.01)
        return self.records

    async def round(self, *clients):
        """These workers do a round; returns what each of them was told of its vector."""
        receipts = []
        for client in clients:
            pulled = await client.pull(self.machine.state.round - 1)
            receipts.append(await client.push(pulled.round, ONES))
        return receipts


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("cryptography")
    from varangian.pki.authority import Authority

    authority = Authority.create(tmp_path_factory.mktemp("cluster") / "ca", days=30)
    authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=10)
    authority.issue("alice", Role.OPERATOR, days=10)
    for name in (*WORKERS, "w04"):
        authority.issue(name, Role.WORKER, days=10)
    return authority.path


@pytest.fixture
def world(cluster, tmp_path):
    return World(cluster, tmp_path)


def served(test):
    """The test, while the world of it is serving."""

    @functools.wraps(test)
    async def during(world, **given):
        async with world.serving():
            await test(world, **given)

    return during


@contextlib.asynccontextmanager
async def joined(world, *names):
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(world.client(name)) for name in names]
        for client in clients:
            await client.join()
        yield clients


@served
async def test_an_operator_sees_the_workers(world):
    async with joined(world, "w00", "w01") as (first, _):
        await world.round(first)
        reply = await world.ask("list")
    rows = [json.loads(line) for line in reply.table.splitlines()]
    assert [row["name"] for row in rows] == [*WORKERS]
    assert [row["present"] for row in rows] == [True, True, False, False]
    assert [row["open_round"] for row in rows] == ["pushed", "", "", ""]
    assert {row["state"] for row in rows} == {"member"}
    assert (reply.round, reply.sentence) == (0, "")


@pytest.mark.parametrize("holder", ["w00", "server"])
@served
async def test_a_worker_may_not_change_members(world, holder):
    for action in ("admit", "drain", "expel", "list"):
        code, said = await world.ask(action, "w03", by=holder)
        assert code == "ROLE"
        assert "where that of an operator is needed" in said
    assert world.machine.policy.following is None
    assert MembersFile.read(world.run.path) is None
    code, _ = await world.call("alice", "Leave", ps_pb2.LeaveRequest())
    assert code == "ROLE"


async def test_without_certificates_nobody_changes_members():
    sessions = Sessions(WORKERS, b"0" * 16)
    server = grpc.aio.server(options=options(4))
    coordinator = SimpleNamespace(round=0, first=0, pulls=None)
    service = Service(coordinator, sessions, Contract("run-1", LAYOUT), Limits())
    handlers = CallHandlers()
    service.add_to(handlers)
    server.add_generic_rpc_handlers((handlers,))
    address = bind(server, "127.0.0.1", 0)
    await server.start()
    identity = (
        ("varangian-worker", "w00"),
        ("varangian-token", sessions.token("w00")),
        (SESSION, "0" * 32),
    )
    async with open_aio_channel(address) as channel:
        stub = ps_pb2_grpc.ParameterServerStub(channel)
        for method, request in (("Members", ps_pb2.MembersRequest()), ("Leave", ps_pb2.LeaveRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(stub, method)(request, metadata=identity)
            assert dict(caught.value.trailing_metadata())[CODE] == "UNCERTIFIED"
    await server.stop(0)


@served
async def test_a_change_that_breaks_the_promise_is_refused(world):
    reply = await world.ask("drain", "w03")
    assert reply.sentence == "w03 is gone from round 1 on: 3 workers, quorum 3, f = 1"
    code, said = await world.ask("drain", "w02")
    assert code == "MEMBERSHIP"
    assert "w02 cannot be drained: aggregator: with 2 workers, f = 1 the rule promises nothing" in said
    assert said.endswith("With --f 0 it could: then no more may be Byzantine.")
    assert world.machine.policy.following.workers == WORKERS[:3]
    assert MembersFile.read(world.run.path).workers == WORKERS[:3]
    reply = await world.ask("drain", "w02", f=0)
    assert reply.sentence == "w02 is gone from round 1 on: 2 workers, quorum 2, f = 0"


@pytest.mark.parametrize(
    ("action", "name", "said"),
    [
        ("drain", "w09", "w09 cannot be drained: the workers of the run are w00, w01, w02, w03."),
        ("admit", "w00", "w00 cannot be admitted: it is a worker of the run already."),
        ("admit", "../x", "'../x' cannot be admitted: a name has letters, digits"),
        ("promote", "w00", "There is no action 'promote'"),
        ("expel", "", "'' cannot be expelled: a name has letters"),
    ],
)
@served
async def test_what_cannot_be_is_refused_with_the_reason(world, action, name, said):
    code, found = await world.ask(action, name)
    assert code == "MEMBERSHIP"
    assert said in found


async def test_who_was_dealt_samples_of_the_start_stays_alone(cluster, tmp_path):
    async with World(cluster, tmp_path, ["partition=iid"]).serving() as world:
        _, found = await world.ask("admit", "w04")
        assert found.endswith("partition=iid deals the samples among the workers of the start.")
        assert (await world.ask("drain", "w03")).round == 1


@served
async def test_a_worker_that_is_drained_counts_once_more_and_hears_of_it(world):
    async with joined(world, *WORKERS) as clients:
        pulled = [await client.pull(-1) for client in clients]
        await world.ask("drain", "w03")
        waiting = asyncio.create_task(clients[0].pull(0))
        for client, model in zip(clients, pulled, strict=True):
            assert (await client.push(model.round, ONES)).counted
        told = await clients[3].pull(0)
        assert told == Finished("w03 has left the run: it was drained by the operator alice")
        assert (await waiting).round == 1
        receipt = await clients[3].push(1, ONES)
        assert (receipt.counted, receipt.code) == (False, "FINISHED")
        assert all(receipt.counted for receipt in await world.round(*clients[:3]))
        async with world.client("w03") as again:
            with pytest.raises(ClientError, match="it was drained by the operator alice"):
                await again.join()
    first, second = await world.recorded(2)
    assert first.pushes.keys() == {*WORKERS}
    assert (first.membership, second.missing) == (None, ())
    assert second.membership["gone"] == {"w03": "it was drained by the operator alice"}
    assert (second.membership["workers"], second.membership["quorum"]) == ([*WORKERS[:3]], 3)


@served
async def test_the_calls_of_a_worker_that_is_expelled_end_at_once(world):
    async with joined(world, *WORKERS) as clients:
        await world.round(clients[3])
        waiting = asyncio.create_task(clients[3].pull(0))
        await asyncio.sleep(0.1)
        await world.ask("expel", "w03")
        with pytest.raises(ClientError, match="none any more"):
            await waiting
        with pytest.raises(ClientError, match="expelled by the operator alice"):
            await clients[3].join()
        await world.round(*clients[:3])
        await world.round(*clients[:3])
    first, second = await world.recorded(2)
    assert first.pushes.keys() == {*WORKERS[:3]}
    assert (first.dropped, first.revoked, second.revoked) == ({}, ("w03",), ())


@served
async def test_a_pull_that_waits_is_refused_before_its_call_is_ended(world):
    """Between a change and the end of the calls that it concerns, nobody hears that the worker has left."""
    async with joined(world, *WORKERS) as clients:
        waiting = asyncio.create_task(clients[3].pull(0))
        await asyncio.sleep(0.1)
        await world.desk.change("expel", "w03", None, "the operator alice")
        await world.round(*clients[:3])
        with pytest.raises(ClientError, match="expelled by the operator alice"):
            await waiting


@served
async def test_an_admitted_worker_waits_for_the_first_round_that_is_its_own(world):
    async with joined(world, *WORKERS) as clients:
        async with world.client("w04") as stranger:
            with pytest.raises(ClientError, match="or has admitted"):
                await stranger.join()
        await world.ask("admit", "w04")
        async with world.client("w04") as fifth:
            await fifth.join()
            first = asyncio.create_task(fifth.pull(-1))
            await world.round(*clients)
            assert (await first).round == 1
            await world.round(*clients, fifth)
    _, second = await world.recorded(2)
    assert second.pushes.keys() == {*WORKERS, "w04"}
    assert second.membership["admitted"] == ["w04"]


@served
async def test_a_worker_may_leave_and_only_itself(world):
    reply = await world.call("w03", "Leave", ps_pb2.LeaveRequest())
    assert reply.round == 1
    assert world.machine.policy.leaving == {"w03"}
    table = (await world.ask("list")).table
    assert [json.loads(line)["state"] for line in table.splitlines()][3] == "leaving"
    again = await world.call("w03", "Leave", ps_pb2.LeaveRequest())
    assert again.round == 1


async def test_a_new_worker_enrols_is_admitted_and_joins(world, cluster, tmp_path):
    world.enrolment = enrolment = Enrolment(tmp_path, world.security, lambda: world.sessions.names)
    async with world.serving():
        token = (await world.ask("invite", "w09")).token
        key = x509.make_key()
        request = x509.make_request(key, "w09")
        assert enrolment.ask(token, "w09", request) == b""
        reply = await world.ask("list", "w09")
        assert reply.request == request
        row = json.loads(reply.table.splitlines()[-1])
        assert (row["name"], row["state"], row["fingerprint"]) == (
            *("w09", "waiting"),
            x509.key_fingerprint(request),
        )
        certificate = signed(cluster, request)
        reply = await admit(world, certificate)
        assert reply.sentence.startswith("w09 is a member from round ")
        assert enrolment.ask(token, "w09", request) == certificate
        (cluster / "w09/key.pem").write_bytes(key)
        async with world.client("w09") as caller:
            await caller.join()
        # Once it is there, nobody waits.
        reply = await world.ask("list", "w09")
        assert reply.request == b""
        assert "until" not in reply.table


def signed(cluster, request):
    from varangian.pki.authority import Authority

    Authority(cluster).issue("w09", Role.WORKER, days=1, request=request, force=True)
    return (cluster / "w09/cert.pem").read_bytes()


async def admit(world, certificate, f=-1):
    request = ps_pb2.MembersRequest(action="admit", name="w09", f=f, certificate=certificate)
    return await world.call("alice", "Members", request)


async def test_a_change_that_is_refused_hands_out_no_certificate(world, cluster, tmp_path):
    world.enrolment = enrolment = Enrolment(tmp_path, world.security, lambda: world.sessions.names)
    async with world.serving():
        token, request = (await world.ask("invite", "w09")).token, x509.make_request(x509.make_key(), "w09")
        enrolment.ask(token, "w09", request)
        code, said = await admit(world, signed(cluster, request), f=3)
        assert code == "MEMBERSHIP", said
        assert enrolment.ask(token, "w09", request) == b""
        code, _ = await admit(world, signed(cluster, x509.make_request(x509.make_key(), "w09")))
        assert code == "ENROLMENT"
        assert "w09" not in world.sessions.names


async def test_a_worker_that_was_admitted_before_its_certificate_came_gets_it(world, cluster, tmp_path):
    """As after a crash, or a lost answer, between the two."""
    world.enrolment = enrolment = Enrolment(tmp_path, world.security, lambda: world.sessions.names)
    async with world.serving():
        token, request = (await world.ask("invite", "w09")).token, x509.make_request(x509.make_key(), "w09")
        enrolment.ask(token, "w09", request)
        await world.ask("admit", "w09")
        assert enrolment.ask(token, "w09", request) == b""
        certificate = signed(cluster, request)
        assert (await admit(world, certificate)).sentence.startswith("w09 is a member already")
        assert enrolment.ask(token, "w09", request) == certificate


@served
async def test_without_a_port_for_it_nobody_is_invited(world):
    for action in ("invite", "list"):
        code, said = await world.ask(action, "w09")
        assert (code, "it has no server.enrol_port" in said) == ("ENROLMENT", True)
    assert (await admit(world, b"-----BEGIN CERTIFICATE-----\n"))[0] == "ENROLMENT"


async def test_only_operators_invite(world, tmp_path):
    world.enrolment = Enrolment(tmp_path, world.security, lambda: world.sessions.names)
    async with world.serving():
        for holder in ("w00", "server"):
            assert (await world.ask("invite", "w09", by=holder))[0] == "ROLE"
        code, said = await world.ask("invite", "w00")
        assert (code, "w00 is a worker of this run already" in said) == ("ENROLMENT", True)
    assert not (tmp_path / "enrolment.json").exists()


@served
async def test_a_change_is_carried_out_also_if_who_asked_for_it_hangs_up(world, monkeypatch):
    write, loop = MembersFile.write, asyncio.get_running_loop()

    def slowly(kept, run):
        loop.call_soon_threadsafe(asking.cancel)
        time.sleep(0.1)
        write(kept, run)

    monkeypatch.setattr(MembersFile, "write", lambda kept, run: slowly(kept, run))
    asking = asyncio.create_task(world.ask("drain", "w03"))
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(patience(30)):
        while world.machine.policy.leaving != {"w03"}:
            await asyncio.sleep(0.01)
    assert MembersFile.read(world.run.path).workers == WORKERS[:3]


@served
async def test_a_disk_that_is_full_changes_nothing(world, monkeypatch):
    def full(kept, run):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(MembersFile, "write", full)
        code, said = await world.ask("drain", "w03")
    assert (code, said.endswith(f"written to {world.run.path}: No space left on device.")) == (
        "MEMBERSHIP",
        True,
    )
    assert world.machine.policy.following is None
    assert (await world.ask("drain", "w03")).round == 1


@served
async def test_who_was_to_be_admitted_may_be_drained_before(world):
    await world.ask("admit", "w04")
    async with joined(world, "w04") as (fifth,):
        waiting = asyncio.create_task(fifth.pull(-1))
        await asyncio.sleep(0.1)
        assert (await world.ask("drain", "w04")).sentence.startswith(
            "w04 is gone from round 1 on: 4 workers"
        )
        assert isinstance(await waiting, Finished)
    assert world.sessions.names == WORKERS
