"""The cost of a message on the event loop: bounded in operations and in bytes, whatever the message says.

Operations are calls of Python and C functions; bytes are what Python allocates at most at one time. Nothing
here measures seconds, so a busy machine changes nothing.
"""

import asyncio
import sys
import tracemalloc

import grpc.aio
import pytest
import torch

from varangian.aggregators import Aggregator, Krum
from varangian.config import load
from varangian.config.build import machine
from varangian.protos import ps_pb2
from varangian.protos.contract import Contract
from varangian.protos.errors import Refused
from varangian.protos.layout import TEXT_LIMIT, Layout
from varangian.protos.messages import (
    JOIN_LIMIT,
    MANIFEST_LIMIT,
    MESSAGE_LIMIT,
    PROTOCOL,
    SMALL_MESSAGE,
    decode_message,
)
from varangian.protos.shared_settings import SharedSettings
from varangian.server.identity.sessions import Sessions
from varangian.server.limits.limits import Limits
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.events import Absent, Decline, Gone, Offer, Push, Ready, Tick
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy
from varangian.server.rounds.coordinator import Coordinator
from varangian.server.training.learner import Learner
from varangian.server.training.optimizers import Sgd
from varangian.server.transport.service import Service

NAMES = ("w00", "w01", "w02")
LINES = 12_000
LARGE = Layout(tuple((f"block.{i}.{'x' * 64}", (1,)) for i in range(LINES)))
"""Almost the largest text that a layout may have."""
COMMON = SharedSettings({**{f"entry {i}": "value" for i in range(12)}, "data": str([0.5] * 24)})
OPERATIONS = 3_000
"""Calls of functions for one message. Reading a layout line by line takes a hundred times as many."""
BYTES = 1 << 20
"""Bytes that a message may cost beside five times its own: a copy as text may have four for each."""


class AbortError(Exception):
    pass


class Call:
    """A call whose messages are there, as a handler sees it."""

    def __init__(self, metadata, *messages):
        self.metadata, self.messages, self.said = metadata, list(messages), []

    def invocation_metadata(self):
        return self.metadata

    def auth_context(self):
        return {}

    def peer(self):
        return "ipv4:127.0.0.1:1"

    def cancelled(self):
        return False

    def add_done_callback(self, _):
        pass

    async def read(self):
        return self.messages.pop(0) if self.messages else grpc.aio.EOF

    async def send_initial_metadata(self, _):
        pass

    async def write(self, message):
        self.said.append(message)

    async def abort(self, _, sentence, trailing):
        self.said.append(sentence)
        raise AbortError(dict(trailing)["varangian-code"])


class World:
    def __init__(self, layout=LARGE):
        torch.set_num_threads(1)
        self.coordinator = Coordinator(
            Machine(
                RunPolicy(NAMES, 9, quorum=3, deadline=60.0, shortfall="wait", f=0, selection=Everyone())
            ),
            Learner(torch.zeros(layout.numel), Aggregator(Krum(f=0)), Sgd(lr=1.0), rounds=9, seed=1),
            evaluate=lambda _: (0.0, 0.0),
            evaluate_every=100,
            observe=lambda _: None,
        )
        self.contract = Contract("run-1", layout, common=COMMON)
        self.sessions = Sessions(NAMES, b"0123456789abcdef")
        many = Limits(joins=10**6, uploads=10**6, downloads=10**6, calls=1e9, patience=0.0)
        self.service = Service(self.coordinator, self.sessions, self.contract, many)

    def metadata(self, **changes):
        own = {"worker": "w00", "token": self.sessions.token("w00"), "session": "0" * 32} | changes
        return tuple((f"varangian-{key}", value) for key, value in own.items())

    async def call(self, method, *messages, **identity):
        """What becomes of a call: its code, or nothing when it was not refused; and what was said."""
        call = Call(self.metadata(**identity), *messages)
        try:
            await getattr(self.service, method)(None, call)
        except AbortError as refused:
            return str(refused), call.said
        return "", call.said

    def join(self, **changes):
        said = {"protocol": PROTOCOL, "layout": self.contract.layout.text, "software": "x", "common": ""}
        return ps_pb2.JoinRequest(**said | changes).SerializeToString()

    def push(self, **changes):
        manifest = self.contract.manifest(0, b"0" * 16)
        for field, value in changes.items():
            setattr(manifest, field, value)
        return ps_pb2.PushRequest(manifest=manifest).SerializeToString()


def fields(tag, size):
    """A message of as many fields as fit: empty ones of this tag."""
    return (tag + b"\x00") * (size // 2)


RUN, UNKNOWN = b"\x0a", b"\x50"
SHORT = "".join(f"1 {i:x}\n" for i in range(150_000))[: TEXT_LIMIT - 1].rpartition("\n")[0] + "\n"
WIDE = "\U0010ffff"
TALL = WIDE * (60_000 // 4)
JOINS = {
    "the same": (lambda w: w.join(), ""),
    "the last line is another": (lambda w: w.join(layout=w.contract.layout.text[:-2] + "y\n"), "LAYOUT"),
    "short lines": (lambda w: w.join(layout=SHORT), "LAYOUT"),
    "line feeds": (lambda w: w.join(layout="\n" * (TEXT_LIMIT - 1)), "LAYOUT"),
    "one line": (lambda w: w.join(layout="1 " + WIDE * (TEXT_LIMIT // 4 - 9) + "\n"), "LAYOUT"),
    "lines of common": (lambda w: w.join(layout="", common="1\n" * (TEXT_LIMIT // 2)), ""),
    "numbers": (lambda w: w.join(layout="", common=f'["data", "[{"1, " * 300_000}1]"]\n'), ""),
    "nesting": (lambda w: w.join(layout="", common="[" * TEXT_LIMIT), ""),
    "software": (lambda w: w.join(layout="", software=WIDE * (TEXT_LIMIT // 4 - 9)), ""),
    "fields": (lambda w: fields(UNKNOWN, JOIN_LIMIT), "MALFORMED"),
    "strings": (lambda w: fields(b"\x1a", JOIN_LIMIT), "MALFORMED"),
}
OTHERS = {
    "run of a pull": ("pull", (lambda w: ps_pb2.PullRequest(run_id=TALL).SerializeToString(),), "RUN"),
    "fields of a pull": ("pull", (lambda w: fields(RUN, MANIFEST_LIMIT),), "MALFORMED"),
    "run of an attendance": (
        "attend",
        (lambda w: ps_pb2.AttendRequest(run_id=TALL).SerializeToString(),),
        "RUN",
    ),
    "reason": (
        "decline",
        (lambda w: ps_pb2.DeclineRequest(run_id="run-1", reason=TALL).SerializeToString(),),
        "",
    ),
    "round of a decline": (
        "decline",
        (lambda w: ps_pb2.DeclineRequest(run_id="run-1", round=2**64 - 1).SerializeToString(),),
        "FUTURE",
    ),
    "status": ("status", (lambda w: fields(UNKNOWN, MANIFEST_LIMIT),), ""),
    "digest of a layout": ("push", (lambda w: w.push(layout_digest=b"x" * 60_000),), "LAYOUT"),
    "run of a push": ("push", (lambda w: w.push(run_id=TALL),), "RUN"),
    "digest": ("push", (lambda w: w.push(content_digest=b"x" * 60_000),), "DIGEST_SIZE"),
    "empty chunks": ("push", (World.push, lambda w: fields(b"\x12", MESSAGE_LIMIT)), "MALFORMED"),
    "alternating": ("push", (World.push, lambda w: b"\x12\x00\x0a\x00" * (1 << 20)), "MALFORMED"),
    "fields of a chunk": (
        "push",
        (World.push, lambda w: b"\x12\x80\x80\x80\x02" + fields(b"\x08", 4 << 20)),
        "MALFORMED",
    ),
}


async def measured(call):
    """Operations and bytes of a coroutine, and what it returned."""
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    sys.setprofile(counted)
    try:
        found = await call
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return count, peak - before, found


def cost(method, messages, small=False):
    """Operations and bytes of a call after a first one like it; its code."""
    world = World(Layout((("weight", (8,)),)) if small else LARGE)

    async def story():
        for text in ("", world.contract.layout.text):
            await world.call("join", world.join(layout=text))
        parts = [make(world) for make in messages]
        await world.call(method, *parts)
        return await measured(world.call(method, *parts)), sum(map(len, parts))

    (count, peak, (code, said)), size = asyncio.run(story())
    assert all(len(sentence) <= 1000 for sentence in said if isinstance(sentence, str))
    return count, peak, size, code


@pytest.mark.parametrize("case", JOINS)
def test_no_join_costs_more_than_looking_at_its_bytes(case):
    message, wanted = JOINS[case]
    count, peak, size, code = cost("join", (message,))
    assert code in (wanted, "LAYOUT")
    assert count < OPERATIONS
    assert peak < 5 * size + BYTES


@pytest.mark.parametrize("case", OTHERS)
def test_no_other_message_costs_more_either(case):
    method, messages, wanted = OTHERS[case]
    count, peak, size, code = cost(method, messages, small=True)
    assert code == wanted
    assert count < OPERATIONS
    assert peak < 5 * size + BYTES


def test_nothing_grows_with_the_number_of_messages(caplog):
    """What is remembered and logged is so once for each worker, entry and code, not for each message."""
    world = World(Layout((("weight", (8,)),)))

    async def story(numbers):
        for i in numbers:
            text = f"{i:032x}"
            for message in (
                world.join(software=text, common=SharedSettings({"data": text}).text),
                world.join(layout=f"{i + 9} {text}\n"),
                world.join(protocol=i),
            ):
                await world.call("join", message)
                await world.call("join", message, session=text)
            await world.call("join", world.join(), worker=text)
            await world.call("join", world.join(), token=text)
            await world.call("pull", ps_pb2.PullRequest(run_id=text).SerializeToString())
            pull = ps_pb2.PullRequest(run_id="run-1", after=i).SerializeToString()
            await world.call("pull", pull)
            decline = ps_pb2.DeclineRequest(run_id="run-1", round=i, reason=text).SerializeToString()
            await world.call("decline", decline)
            await world.call("push", world.push(round=i, content_digest=text[:16].encode()))
            await world.call("push", world.push(run_id=text))

    caplog.set_level("INFO", "varangian")
    asyncio.run(story(range(20)))
    caplog.clear()
    before = held(world.service)
    asyncio.run(story(range(20, 60)))
    assert held(world.service) == before
    assert not caplog.records


def held(root):
    """How many things are in the containers that can be reached from an object of ours."""
    found, ahead, total = set(), [root], 0
    while ahead:
        thing = ahead.pop()
        if id(thing) in found or isinstance(thing, torch.Tensor | type):
            continue
        found.add(id(thing))
        if isinstance(thing, dict):
            total += len(thing)
            ahead += thing.values()
        elif isinstance(thing, list | tuple | set | frozenset):
            total += len(thing)
            ahead += thing
        elif type(thing).__module__.startswith("varangian") and hasattr(thing, "__dict__"):
            ahead += vars(thing).values()
    return total


@pytest.mark.parametrize("size", [SMALL_MESSAGE + 2, MANIFEST_LIMIT, JOIN_LIMIT])
def test_a_message_of_many_fields_is_not_parsed(size):
    with pytest.raises(Refused, match="at most 64 fields"):
        decode_message(ps_pb2.JoinRequest, fields(UNKNOWN, size), JOIN_LIMIT)


class Name(str):
    """A name that counts how often it is compared with another one."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)


@pytest.mark.parametrize("way", ["sync", "async", "fedavg"])
def test_an_event_compares_names_as_often_as_there_are_workers(way):
    """And not as often as there are pairs of workers, whoever is absent, has declined or has pushed."""
    config = load(None, ["workers=150", f"participation={way}", "aggregator=krum", "rounds=3", "f=0"])
    made = machine(config)
    workers = tuple(Name(name) for name in made.policy.workers)
    object.__setattr__(made.policy, "workers", workers)
    third = len(workers) // 3
    events = [Ready(w, 0, 0.0) for w in workers if made.by_invitation]
    events += [Tick(5.0), *(Offer(w, 0, b"x" * 16, 5.0) for w in workers)]
    events += [Gone(w, 0, 5.0) for w in workers[: 2 * third]]
    events += [Decline(w, 0, "no", 5.0) for w in workers[:third]]
    events += [Absent(w, 5.0) for w in workers[third : 2 * third]]
    events += [Push(w, 0, b"x" * 16, 5.0) for w in workers[2 * third :]]
    most = 0
    for event in events:
        Name.compared = 0
        made.handle(event)
        made.decision(5.0)
        most = max(most, Name.compared)
    assert most < 30 * len(workers)
