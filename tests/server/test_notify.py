"""NOTIFY-ACK: each rule by itself, then networks that lose, repeat and reorder, and workers that die."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from varangian.server.choices import Rotating
from varangian.server.events import Tick
from varangian.server.graphs import Ring
from varangian.server.notices import (
    Ack,
    Consumed,
    Dead,
    Denial,
    Deny,
    Effect,
    Event,
    Go,
    Hold,
    Notify,
    NotifyPolicy,
    Pass,
    Reduce,
    Torn,
    Write,
)
from varangian.server.notify import NotifyMachine

A, B = b"a", b"b"
WORKERS = ("w00", "w01", "w02", "w03")


def everyone(round: int) -> tuple[str, ...]:
    return WORKERS


def in_turn(round: int) -> tuple[str, ...]:
    return WORKERS[round % 4], WORKERS[(round + 1) % 4]


POLICY = NotifyPolicy(WORKERS, in_turn, deadline=10.0)


def machine(**changes: object) -> NotifyMachine:
    return NotifyMachine(replace(POLICY, **changes))


def play(machine: NotifyMachine, *events: Event) -> list[Effect]:
    return [effect for event in events for effect in machine.handle(event)]


def push(
    machine: NotifyMachine, worker: str, seq: int = 0, digest: bytes = A, at: float = 0.0
) -> list[Effect]:
    return play(machine, Write(worker, seq, digest, at), Notify(worker, seq, digest, at))


def denial(machine: NotifyMachine, event: Event) -> tuple[Denial, int]:
    """Code and expected number of an event that must change nothing."""
    before = machine.state
    (effect,) = machine.handle(event)
    assert machine.state == before
    assert isinstance(effect, Deny)
    return effect.code, effect.expected


def test_the_acknowledgement_comes_after_the_vector_was_used():
    m = machine()
    assert push(m, "w00") == [Go("w00", 0), Hold("w00", 0)]
    because = "round 0: 2 of 2 members have pushed; nobody else is waited for"
    reduce = Reduce(0, {"w00": 0, "w01": 0}, (), because)
    assert push(m, "w01") == [Go("w01", 0), Hold("w01", 0), reduce]
    assert play(m, Consumed(0, 1.0)) == [Ack("w00", 0, A), Ack("w01", 0, A)]
    assert m.state.round == 1


def test_there_is_at_most_one_push_that_is_not_acknowledged():
    m = machine()
    push(m, "w00")
    assert denial(m, Write("w00", 1, B, 0.0)) == (Denial.UNACKNOWLEDGED, 1)
    push(m, "w01")
    assert denial(m, Write("w00", 1, B, 0.0)) == (Denial.UNACKNOWLEDGED, 1)  # also while it is read
    play(m, Consumed(0, 0.0))
    assert play(m, Write("w00", 1, B, 0.0)) == [Go("w00", 1)]


def test_a_retry_counts_once():
    m = machine()
    push(m, "w00")
    for again in (Write("w00", 0, A, 0.0), Notify("w00", 0, A, 0.0)):
        assert play(m, again) == [Hold("w00", 0)]
    push(m, "w01")
    assert play(m, Write("w00", 0, A, 0.0)) == [Hold("w00", 0)]
    play(m, Consumed(0, 0.0))
    for again in (Write("w00", 0, A, 0.0), Notify("w00", 0, A, 0.0)):
        assert play(m, again) == [Ack("w00", 0, A)]


def test_what_does_not_fit_is_denied_with_the_number_that_does():
    m = machine()
    assert denial(m, Notify("w00", 0, A, 0.0)) == (Denial.UNWRITTEN, 0)
    assert denial(m, Write("w00", 1, A, 0.0)) == (Denial.GAP, 0)
    assert denial(m, Write("w00", -1, b"", 0.0)) == (Denial.OLD, 0)
    assert denial(m, Write("mallory", 0, A, 0.0)) == (Denial.UNKNOWN_WORKER, 0)
    play(m, Write("w00", 0, A, 0.0))
    assert denial(m, Write("w00", 0, A, 0.0)) == (Denial.BUSY, 0)
    assert denial(m, Notify("w00", 0, B, 0.0)) == (Denial.UNWRITTEN, 0)
    play(m, Notify("w00", 0, A, 0.0))
    assert denial(m, Write("w00", 0, B, 0.0)) == (Denial.EQUIVOCATION, 1)
    push(m, "w01")
    play(m, Consumed(0, 0.0))
    assert denial(m, Write("w00", 0, B, 0.0)) == (Denial.OLD, 1)


def test_an_upload_that_broke_off_is_begun_again():
    m = machine()
    play(m, Write("w00", 0, A, 0.0), Torn("w00", 0.0))
    assert denial(m, Notify("w00", 0, A, 0.0)) == (Denial.UNWRITTEN, 0)
    assert push(m, "w00", digest=B) == [Go("w00", 0), Hold("w00", 0)]  # nothing of the first was kept
    assert play(m, Torn("w00", 0.0), Torn("w03", 0.0)) == []
    assert m.state.edges["w00"].held == (0, B)  # nor is what is there lost


def test_who_is_not_a_member_is_not_waited_for_and_may_be_ahead():
    m = machine()
    assert push(m, "w02") == [Go("w02", 0), Hold("w02", 0)]
    push(m, "w00")
    push(m, "w01")
    play(m, Consumed(0, 0.0))
    effects = push(m, "w01", seq=1, digest=B)
    assert isinstance(effects[-1], Reduce)
    assert effects[-1].pushes == {"w01": 1, "w02": 0}


def test_the_next_round_follows_at_once_if_all_of_it_is_there():
    m = machine(members=lambda t: WORKERS[:2] if t % 2 == 0 else WORKERS[2:])
    for worker in ("w02", "w03", "w01", "w00"):
        push(m, worker)
    *acks, reduce = play(m, Consumed(0, 1.0))
    assert acks == [Ack("w00", 0, A), Ack("w01", 0, A)]
    assert isinstance(reduce, Reduce)
    assert (reduce.round, reduce.pushes) == (1, {"w02": 0, "w03": 0})


def test_the_dead_are_not_waited_for_while_there_is_a_quorum():
    m = machine(members=everyone, quorum=2)
    push(m, "w00")
    push(m, "w03")
    play(m, Write("w02", 0, A, 0.0), Write("w01", 0, A, 0.0))
    assert play(m, Dead("w01", 1.0)) == []
    (reduce,) = play(m, Dead("w02", 1.0))
    assert isinstance(reduce, Reduce)
    assert (reduce.pushes, reduce.missing) == ({"w00": 0, "w03": 0}, ("w01", "w02"))


def test_a_vector_that_is_there_outlives_its_worker():
    m = machine()
    push(m, "w00")
    play(m, Dead("w00", 0.0))
    assert isinstance(push(m, "w01")[-1], Reduce)
    assert play(m, Consumed(0, 1.0))[0] == Ack("w00", 0, A)


def test_at_the_deadline_nobody_is_waited_for():
    m = machine(quorum=2)
    assert (m.wake_at, play(m, Tick(99.0))) == (None, [])  # the clock starts with the first worker
    push(m, "w00", at=100.0)
    assert (m.wake_at, play(m, Tick(109.9))) == (110.0, [])
    passed = Pass(
        0,
        "round 0: 1 of 2 members have pushed; the deadline of 10 s is over and the quorum of 2 is not met",
    )
    assert play(m, Tick(110.0)) == [passed]
    assert (m.state.round, m.wake_at, m.state.edges["w00"].held) == (1, 120.0, (0, A))  # it keeps its turn
    m = machine(quorum=1)
    push(m, "w00", at=100.0)
    (reduce,) = play(m, Tick(110.0))
    assert isinstance(reduce, Reduce)
    assert reduce.because == "round 0: 1 of 2 members have pushed; the deadline of 10 s is over"
    assert (reduce.missing, m.wake_at) == (("w01",), None)


def test_a_worker_that_is_dead_lives_again_with_what_it_says():
    m = machine()
    push(m, "w01")
    play(m, Write("w00", 0, A, 0.0))
    assert isinstance(play(m, Dead("w00", 1.0))[-1], Reduce)
    play(m, Consumed(0, 1.0), Write("w02", 0, A, 2.0), Dead("w02", 2.0), Write("w02", 0, A, 3.0))
    push(m, "w01", seq=1, digest=B)
    assert not m.state.reducing  # w02 is a member of round 1, and back
    assert play(m, Dead("w03", 3.0)) == []  # of whom nothing was ever heard


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"workers": ()}, "`workers` should be different names, at least one. Found ()."),
        ({"deadline": 0.0}, "`deadline` should be a positive number of seconds. Found 0.0."),
        ({"quorum": 5}, "`quorum` should be between 1 and n = 4. Found 5."),
    ],
)
def test_bad_policies(changes: dict[str, object], sentence: str):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        replace(POLICY, **changes)


# Histories

LENGTH = 3
"""Pieces of a vector."""


def digest(vector: int) -> bytes:
    return str(vector).encode()


@dataclass
class Stream:
    """One upload as a network carries it, step by step; a later one of the same worker may overtake it."""

    worker: str
    seq: int
    vector: int
    steps: Iterator[None] = field(init=False)
    open: bool = False
    """Whether it may write to the buffer."""


@dataclass
class Client:
    """A worker: it says the same until it is acknowledged, and forgets everything when it dies."""

    seq: int = 0
    vector: int | None = None


class Histories(RuleBasedStateMachine):
    """Uploads that break off, repeat and overtake each other; answers that get lost; death at any step."""

    @initialize(
        members=st.sampled_from(
            [everyone, in_turn, lambda t: Rotating(Ring().neighbours).names(WORKERS, t)]
        ),
        quorum=st.integers(1, 4),
    )
    def start(self, members: Callable[[int], tuple[str, ...]], quorum: int) -> None:
        self.machine = NotifyMachine(NotifyPolicy(WORKERS, members, deadline=10.0, quorum=quorum))
        self.now = 0.0
        self.made = 0
        self.clients = {worker: Client() for worker in WORKERS}
        self.streams: list[Stream] = []
        self.memory = {worker: [0] * LENGTH for worker in WORKERS}
        self.reading: dict[str, tuple[int, int]] | None = None
        """Of the round that is being aggregated: the number and the vector of each."""
        self.used: list[tuple[str, int]] = []
        """Worker and vector, in the order in which they were used."""
        self.rounds = 0

    # What the server does

    def say(self, event: Event) -> tuple[Effect, ...]:
        before = self.machine.state
        effects = self.machine.handle(event)
        if any(isinstance(effect, Deny) for effect in effects):
            assert (self.machine.state, len(effects)) == (before, 1)
        for effect in effects:
            if isinstance(effect, Reduce):
                self.read(effect)
            elif isinstance(effect, Pass):
                self.rounds += 1
        return effects

    def read(self, reduce: Reduce) -> None:
        """Aggregation begins: every buffer holds one vector, whole."""
        assert self.reading is None
        self.reading = {}
        for worker, seq in reduce.pushes.items():
            assert len(set(self.memory[worker])) == 1, "torn, or mixed"
            vector = self.memory[worker][0]
            assert (worker, vector) not in self.used, "counted twice"
            assert not any(stream.open for stream in self.streams if stream.worker == worker)
            self.reading[worker] = seq, vector

    @precondition(lambda self: self.reading is not None)
    @rule(heard=st.booleans())
    def consume(self, heard: bool) -> None:
        assert self.reading is not None
        reading, self.reading = self.reading, None
        for worker, (_, vector) in reading.items():
            assert self.memory[worker] == [vector] * LENGTH, "overwritten while it was read"
            self.used.append((worker, vector))
        self.rounds += 1
        acks = [e for e in self.say(Consumed(self.machine.state.round, self.now)) if isinstance(e, Ack)]
        assert {ack.worker: ack.seq for ack in acks} == {w: seq for w, (seq, _) in reading.items()}
        for ack in acks if heard else []:
            self.acknowledged(ack)

    # What workers do

    def acknowledged(self, ack: Ack) -> None:
        client = self.clients[ack.worker]
        if client.vector is not None and (ack.seq, ack.digest) == (client.seq, digest(client.vector)):
            assert (ack.worker, client.vector) in self.used, "acknowledged and not used"
            client.seq, client.vector = ack.seq + 1, None

    @rule(worker=st.sampled_from(WORKERS))
    def begin(self, worker: str) -> None:
        """A first upload, or a retry that may run beside the one before."""
        self.streams.append(self.stream_of(worker))

    def stream_of(self, worker: str) -> Stream:
        client = self.clients[worker]
        if client.vector is None:
            self.made += 1
            client.vector = self.made
        stream = Stream(worker, client.seq, client.vector)
        stream.steps = self.upload(stream)
        return stream

    def upload(self, stream: Stream) -> Iterator[None]:
        """Write, the pieces, notify; after each of them anything may happen."""
        worker, seq, of_vector = stream.worker, stream.seq, digest(stream.vector)
        (answer,) = self.say(Write(worker, seq, of_vector, self.now))
        self.answered(stream, answer)
        if not isinstance(answer, Go):
            return
        stream.open = True
        yield
        for i in range(LENGTH):
            self.memory[worker][i] = stream.vector
            yield
        stream.open = False
        answer, *_ = self.say(Notify(worker, seq, of_vector, self.now))
        assert answer == Hold(worker, seq)

    def answered(self, stream: Stream, answer: Effect) -> None:
        client = self.clients[stream.worker]
        if client.vector != stream.vector:
            return  # the answer to someone who has died, or to what is done
        if isinstance(answer, Ack):
            self.acknowledged(answer)
        elif isinstance(answer, Deny) and answer.code in (Denial.OLD, Denial.EQUIVOCATION, Denial.GAP):
            # It was restarted: nothing that it pushes under its number would count.
            assert (stream.worker, stream.vector) not in self.used
            client.seq = answer.expected
        elif isinstance(answer, Deny):
            assert answer.code in (Denial.BUSY, Denial.UNACKNOWLEDGED)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), steps=st.integers(1, LENGTH + 2))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        stream = data.draw(st.sampled_from(self.streams), label="stream")
        for _ in range(steps):
            if next(stream.steps, self) is self:
                self.streams.remove(stream)
                return

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The network delivers the beginning of an upload twice."""
        stream = data.draw(st.sampled_from(self.streams), label="stream")
        again = Stream(stream.worker, stream.seq, stream.vector)
        again.steps = self.upload(again)
        self.streams.append(again)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def break_off(self, data: st.DataObject) -> None:
        self.breaks_off(data.draw(st.sampled_from(self.streams), label="stream"))

    def breaks_off(self, stream: Stream) -> None:
        self.streams.remove(stream)
        if stream.open:
            self.say(Torn(stream.worker, self.now))

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: str) -> None:
        """With all its uploads and all it knew, number and vector."""
        self.streams = [stream for stream in self.streams if stream.worker != worker]
        self.clients[worker] = Client()
        self.say(Dead(worker, self.now))

    @rule(seconds=st.sampled_from([1.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.say(Tick(self.now))

    # In the end

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        for stream in [*self.streams]:
            self.breaks_off(stream)
        self.the_dead_stop_nobody()
        self.everything_pushed_is_used()
        assert len(self.used) == len(set(self.used))
        assert self.rounds == self.machine.state.round

    def pass_time(self) -> None:
        """Whatever is due happens."""
        if self.reading is not None:
            self.consume(heard=True)
        if (moment := self.machine.wake_at) is not None:
            self.now = max(self.now, moment)
            self.say(Tick(self.now))

    def the_dead_stop_nobody(self) -> None:
        """Rounds go on although nobody says anything, unless nothing was ever heard of anyone."""
        before = self.machine.state
        if before.opened_at is None:
            return
        for _ in range(4):
            self.pass_time()
        assert self.machine.state.round >= before.round + 2

    def everything_pushed_is_used(self) -> None:
        """Once the network is whole, each worker's vector is used within one turn of all members."""
        for _ in range(3 * len(WORKERS)):
            for worker in WORKERS:
                [*self.stream_of(worker).steps]
            self.pass_time()
        for worker in WORKERS:
            assert any(name == worker for name, _ in self.used)


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestHistories = Histories.TestCase
