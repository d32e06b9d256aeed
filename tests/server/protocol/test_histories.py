"""Networks that lose, repeat and reorder, and workers that die anywhere.

No deadlock, no torn row, nothing counted twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.extent import examples
from tests.history import Recorder, Rules, check

from varangian.aggregators.graphs import OnePeer, Ring
from varangian.protos.refusals import Refusal
from varangian.server.participation.asap import NeighbourhoodSelection
from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.selection import LongestAbsent
from varangian.server.participation.staleness import Polynomial
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.deadlines import AutoDeadline
from varangian.server.protocol.events import (
    Absent,
    Accept,
    Close,
    Committed,
    Decline,
    Drain,
    Duplicate,
    Effect,
    Event,
    Fault,
    Finish,
    Gone,
    Invite,
    Left,
    Members,
    Offer,
    Open,
    Present,
    Push,
    Ready,
    Reject,
    Skip,
    Skipped,
    Tick,
    Withdraw,
)
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.membership import effect_of, with_members
from varangian.server.protocol.state import Phase, RunPolicy, Selection, dump_state, restore_state

FIRST = ("w00", "w01", "w02", "w03")
"""The workers of the start."""
WORKERS = (*FIRST, "w04")
"""All that may ever be one."""
FEWEST = 3
NAMES = st.sampled_from(WORKERS)
PIECES = 3
"""Of a vector."""
DEADLINE = 5.0
F = 1
CHOICES = (
    Everyone(),
    LongestAbsent(k=1),
    LongestAbsent(k=2),
    LongestAbsent(k=3, gather=2.0),
    NeighbourhoodSelection(Ring()),
    NeighbourhoodSelection(Ring(), tau=1),
    NeighbourhoodSelection(OnePeer()),
    BufferSelection(size=2, tau=0),
    BufferSelection(size=3, tau=2, staleness=Polynomial()),
)


@dataclass(frozen=True)
class Vector:
    """What a worker makes of a model. A worker that was restarted may make another one of the same."""

    worker: str
    round: int
    """Of the model."""
    life: int

    @property
    def digest(self) -> bytes:
        return f"{self.life}".encode()


@dataclass(eq=False)
class Stream:
    """One upload as a network carries it, step by step; it may outlive its worker."""

    vector: Vector
    steps: Iterator[None] = field(init=False)
    open: bool = False
    """Whether it may write to the row of its worker."""


@dataclass
class Client:
    """A worker: it asks, computes, and pushes the same until it is answered. Dying, it forgets all."""

    served: int = -1
    asks: bool = False
    vector: Vector | None = None
    life: int = 0


@dataclass(frozen=True)
class Kept:
    """A checkpoint, and what the test knows of that moment."""

    state: dict[str, Any]
    held: dict[str, Vector]
    rows: dict[str, list[Vector | None]]
    used: set[tuple[str, int]]
    guilty: dict[str, int]
    policy: RunPolicy


class Histories(RuleBasedStateMachine):
    """Any choice and policy; each of the rules is something that happens to a server."""

    @initialize(
        choice=st.sampled_from(CHOICES),
        quorum=st.integers(1, 4),
        shortfall=st.sampled_from(["wait", "skip", "fail"]),
        auto=st.sampled_from([None, None, AutoDeadline(floor=0.7)]),
    )
    def start(self, choice: Selection, quorum: int, shortfall: str, auto: AutoDeadline | None) -> None:
        policy = RunPolicy(FIRST, 10**6, quorum, DEADLINE, shortfall, F, max_skips=12, selection=choice)
        self.machine = Machine(replace(policy, auto=auto))
        self.now, self.quorum = 0.0, quorum
        self.origin = self.border = self.machine.state
        """The states that this process of the server and the open round began with."""
        self.first_policy = self.machine.policy
        """That this process of the server began with."""
        self.latest = self.machine.policy
        """With the last change of members, whether it has taken effect or not."""
        self.members = set(FIRST)
        self.history: list[tuple[Event | RunPolicy, tuple[Effect, ...]]] = []
        """Since this process of the server began."""
        self.kept: Kept | None = None
        self.log = Recorder()
        """Of all processes of the server."""
        self.clients = {worker: Client() for worker in WORKERS}
        self.streams: list[Stream] = []
        self.rows: dict[str, list[Vector | None]] = {worker: [None] * PIECES for worker in WORKERS}
        self.phase, self.round = Phase.OPEN, 0
        self.held: dict[str, Vector] = {}
        """Those that were accepted, and may still be used."""
        self.reading: dict[str, Vector] = {}
        self.used = set[tuple[str, int]]()
        """Worker and round of the model of each vector that was used."""
        self.told = set[tuple[str, int, bytes]]()
        """The same and the digest of each push that was accepted."""
        self.guilty: dict[str, int] = {}
        """In which round a fault counts, at the latest."""

    # What the server does

    def say(self, event: Event) -> tuple[Effect, ...]:
        before = self.machine.state
        effects = self.machine.handle(event)
        self.history.append((event, effects))
        self.log.note(event, effects, self.machine.state)
        if effects and isinstance(effects[0], Reject | Duplicate):
            self.refused(event, effects)
            learned = self.machine.state.arrivals if self.machine.policy.auto else before.arrivals
            assert (self.machine.state, len(effects)) == (before.replace(arrivals=learned), 1)
        for effect in effects:
            self.see(effect)
        if self.machine.state.round > self.border.round:
            self.border = self.machine.state
        return effects

    def refused(self, event: Event, effects: tuple[Effect, ...]) -> None:
        if isinstance(effects[0], Duplicate):
            assert isinstance(event, Offer)
            assert (event.worker, event.round, event.digest) in self.told
        elif effects[0].refusal is Refusal.COUNTED:
            assert (event.worker, event.round) in {(worker, round) for worker, round, _ in self.told}

    def convict(self, worker: str) -> None:
        self.held.pop(worker, None)
        self.guilty[worker] = self.round + (self.phase is Phase.CLOSED)

    def see(self, effect: Effect) -> None:
        match effect:
            case Invite(worker, round):
                assert (round, Phase.OPEN) == (self.round, self.phase)
                assert worker not in self.held, "the next model before the vector was used"
                assert self.guilty.get(worker, -1) < round, "faulty in this round"
                self.deliver(effect)
            case Close():
                self.closed(effect)
            case Skip():
                assert self.phase is not Phase.FINISHED
                self.reading = {}
            case Members():
                self.changed(effect)
            case Open(round):
                assert round == self.round + 1
                self.round, self.phase = round, Phase.OPEN
                tau = self.machine.policy.selection.tau
                self.held = {w: v for w, v in self.held.items() if tau is None or round - v.round <= tau}
            case Finish():
                self.phase = Phase.FINISHED
            case _:
                pass

    @rule(
        worker=NAMES,
        how=st.sampled_from(["admit", "admit", "drain", "expel", "leave"]),
        quorum=st.integers(1, 4),
    )
    def change(self, worker: str, how: str, quorum: int) -> None:
        """An operator admits a worker, drains one or expels one; or a worker leaves by itself."""
        after = {*self.latest.workers}
        if self.phase is Phase.FINISHED or (how == "admit") == (worker in after):
            return
        after = after | {worker} if how == "admit" else after - {worker}
        if len(after) < FEWEST or (how == "admit" and worker in self.machine.policy.leaving):
            return
        quorum = min(quorum, len(after))
        self.latest = replace(self.latest, workers=tuple(after), quorum=quorum)
        self.machine.follow(self.latest)
        self.history.append((self.latest, ()))
        there = worker in self.members
        if how == "expel" and there:
            self.revoke(worker)
        if how != "admit" and there:
            self.say(Drain(worker, self.now))
        self.say(Tick(self.now))

    def changed(self, members: Members) -> None:
        """Others are the workers from the next round on; what is left of those that are gone is lost."""
        for worker in members.admitted:
            self.clients[worker].asks = False
        assert {*members.workers} == (self.members - {*members.gone}) | {*members.admitted}
        self.members = {*members.workers}
        for worker in members.gone:
            self.held.pop(worker, None)
            self.guilty.pop(worker, None)
            self.clients[worker].asks = False
        for stream in self.streams:
            stream.open = stream.open and stream.vector.worker in self.members

    def closed(self, close: Close) -> None:
        """Aggregation begins: every row of it is whole, and has never been used."""
        choice = self.machine.policy.selection
        assert (close.round, Phase.OPEN) == (self.round, self.phase)
        assert f"round {close.round}: " in close.because
        members = choice.members(tuple(sorted(self.members)), close.round)
        assert close.workers == tuple(w for w in members if w in self.held)
        if choice.by_invitation:
            assert close.ages == {w: close.round - self.held[w].round for w in close.workers}
        else:
            assert len(close.workers) + len(close.faults) >= self.machine.policy.quorum
            assert close.waited >= (close.deadline or DEADLINE) or self.machine.state.absent.issuperset(
                close.missing
            )
            named = {*close.workers, *close.faults, *close.missing, *close.declined, *close.revoked}
            assert (close.ages, named) == ({}, self.members)
        assert close.factors == {w: choice.factor(age) for w, age in close.ages.items()}
        assert choice.tau is None or all(age <= choice.tau for age in close.ages.values())
        assert set(close.faults) == {w for w, round in self.guilty.items() if round == close.round}
        assert len(close.faults) <= F
        self.phase = Phase.CLOSED
        for worker in close.workers:
            vector = self.held.pop(worker)
            assert self.rows[worker] == [vector] * PIECES, "torn, or mixed"
            assert (worker, vector.round) not in self.used, "counted twice"
            self.used.add((worker, vector.round))
            self.reading[worker] = vector

    @rule(shift=st.sampled_from([-1, 1]), worker=st.sampled_from([*WORKERS, "stranger"]))
    def confuse(self, shift: int, worker: str) -> None:
        """What belongs to another round, or comes from nobody of this run: refused, and nothing changes."""
        round = self.round + shift
        self.say(Committed(round, self.now))
        self.say(Skipped(round, "x", self.now))
        if shift > 0 or worker == "stranger":
            self.say(Decline(worker, round, "x", self.now))
            self.say(Fault(worker, round, "x", self.now))
            self.say(Offer(worker, round, b"x", self.now))

    @rule()
    def resume(self) -> None:
        """The state is kept in a checkpoint, and read from it."""
        kept = json.loads(json.dumps(dump_state(self.machine.state)))
        restored = restore_state(kept)
        assert restored == self.machine.state
        self.machine.state = restored

    @precondition(lambda self: self.phase is not Phase.FINISHED)
    @rule()
    def keep(self) -> None:
        """The server writes a checkpoint."""
        fresh = self.machine.policy.selection.fresh_only
        state = self.border if fresh else self.machine.state
        self.kept = Kept(
            state=json.loads(json.dumps(dump_state(state))),
            held={} if fresh else self.held | self.reading,
            rows={worker: [*row] for worker, row in self.rows.items()},
            policy=replace(self.machine.policy, following=None),
            used=self.used - {(worker, vector.round) for worker, vector in self.reading.items()},
            guilty=dict(self.guilty),
        )

    @precondition(lambda self: self.phase is not Phase.FINISHED)
    @rule(lost=st.booleans())
    def kill_server(self, lost: bool) -> None:
        """Another process goes on from what was kept; workers take back what they did after that.

        It is the state of now, as after a stop, or an older one, if the newest is lost.
        """
        if not lost or self.kept is None:
            self.keep()
        kept = self.kept
        assert kept is not None
        self.machine = Machine(kept.policy)
        self.machine.restore(kept.state, connected=False)
        self.held, self.guilty = dict(kept.held), dict(kept.guilty)
        self.members = {*kept.policy.workers}
        if kept.policy.workers != self.latest.workers:
            # Whoever has asked for other workers was told that the change is kept.
            self.machine.policy = replace(self.latest, first=self.machine.state.round)
            state = with_members(self.machine.state, kept.policy, self.latest)
            self.machine.state = state.replace(absent=frozenset())
            self.changed(effect_of(kept.policy, self.latest, self.machine.state.round))
        self.first_policy = self.machine.policy
        state = self.origin = self.border = self.machine.state
        self.history, self.now = [], 0.0
        self.log.resume(state)
        self.log.events.append({"event": "members", "quorum": self.latest.quorum, "f": F})
        self.rows = {worker: [*row] for worker, row in kept.rows.items()}
        self.reading, self.used = {}, set(kept.used)
        self.phase, self.round, self.streams = Phase.OPEN, state.round, []
        guilty = state.faults.keys() | state.accused.keys()
        self.guilty = {w: at for w, at in self.guilty.items() if at < state.round or w in guilty}
        for client in self.clients.values():
            client.asks, client.vector, client.served = False, None, min(client.served, state.round - 1)

    @precondition(lambda self: self.phase is Phase.CLOSED)
    @rule(sound=st.sampled_from([True, True, True, False]))
    def aggregated(self, sound: bool) -> None:
        for worker, vector in self.reading.items():
            assert self.rows[worker] == [vector] * PIECES, "overwritten while it was read"
        self.reading = {}
        self.say(
            Committed(self.round, self.now) if sound else Skipped(self.round, "no guarantee", self.now)
        )

    # What workers do

    def deliver(self, invite: Invite) -> None:
        client = self.clients[invite.worker]
        if client.asks and not self.losing:
            client.asks = False
            client.vector = Vector(invite.worker, invite.round, client.life)

    losing = False
    """Whether the answers to pulls get lost."""

    @rule(worker=NAMES, losing=st.sampled_from([False, False, True]))
    def ask(self, worker: str, losing: bool) -> None:
        """A pull; also one more, when the worker thinks that the one before is dead."""
        client = self.clients[worker]
        if client.vector is not None:
            return
        if self.machine.by_invitation:
            client.asks, self.losing = True, losing
            self.say(Ready(worker, client.served + 1, self.now))
            self.losing = False
        elif self.phase is Phase.OPEN and client.served < self.round and not losing:
            client.vector = Vector(worker, self.round, client.life)

    @rule(worker=NAMES, shift=st.integers(-1, 1))
    def ask_again(self, worker: str, shift: int) -> None:
        """A pull that the network delivers late: nobody waits for its answer."""
        self.losing = True
        self.say(Ready(worker, max(0, self.round + shift), self.now))
        self.losing = False

    @rule(worker=NAMES)
    def leave(self, worker: str) -> None:
        """The server gives a pull up, of a worker that may ask again or not."""
        self.clients[worker].asks = False
        self.say(Left(worker, self.now))

    @precondition(lambda self: any(client.vector for client in self.clients.values()))
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """A first upload, or a retry that may run beside the one before."""
        busy = [client.vector for client in self.clients.values() if client.vector]
        self.stream(data.draw(st.sampled_from(busy)))

    def stream(self, vector: Vector) -> Stream:
        stream = Stream(vector)
        stream.steps = self.upload(stream)
        self.streams.append(stream)
        return stream

    def upload(self, stream: Stream) -> Iterator[None]:
        """Offer, the pieces, push; after each of them anything may happen."""
        vector = stream.vector
        worker, round = vector.worker, vector.round
        answer, *_ = self.say(Offer(worker, round, vector.digest, self.now))
        if answer != Accept(worker, round):
            self.answered(vector, answer)
            return
        assert worker not in self.held, "a place for a second vector"
        assert worker not in self.reading
        assert not any(other.open for other in self.streams if other.vector.worker == worker)
        stream.open = True
        yield
        for i in range(PIECES):
            if not stream.open:
                return  # its worker has left the run
            self.rows[worker][i] = vector
            yield
        if not stream.open:
            return
        stream.open = False
        counts = self.machine.refusal(worker, round) is None
        self.held |= {worker: vector} if counts else {}
        answer, *_ = self.say(Push(worker, round, vector.digest, self.now))
        assert counts == (answer == Accept(worker, round))
        self.told |= {(worker, round, vector.digest)} if counts else set()
        if not counts:
            self.say(Gone(worker, round, self.now))
        self.answered(vector, answer)

    def answered(self, vector: Vector, answer: Effect) -> None:
        client = self.clients[vector.worker]
        if client.vector != vector:
            return  # it has died meanwhile, or heard before
        if answer != Reject(Refusal.BUSY, self.machine.state.round):
            client.served, client.vector = vector.round, None

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), steps=st.integers(1, PIECES + 2))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        self.run(data.draw(st.sampled_from(self.streams), label="stream"), steps)

    def run(self, stream: Stream, steps: int = PIECES + 2) -> None:
        for _ in range(steps):
            if next(stream.steps, self) is self:
                self.streams.remove(stream)
                return

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The network delivers the beginning of an upload twice."""
        self.stream(data.draw(st.sampled_from(self.streams), label="stream").vector)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), faulty=st.booleans())
    def break_off(self, data: st.DataObject, faulty: bool) -> None:
        """The upload ends before its time, or with what no honest worker sends."""
        self.breaks_off(data.draw(st.sampled_from(self.streams), label="stream"), faulty)

    def breaks_off(self, stream: Stream, faulty: bool = False) -> None:
        self.streams.remove(stream)
        if not stream.open:
            return
        worker, round = stream.vector.worker, stream.vector.round
        if faulty and self.machine.refusal(worker, round) is None:
            self.convict(worker)
            self.say(Fault(worker, round, "not finite", self.now))
        self.say(Gone(worker, round, self.now))

    @rule(worker=NAMES, alike=st.booleans())
    def die(self, worker: str, alike: bool) -> None:
        """And start again, with or without the same result; what it has sent may still be under way."""
        self.clients[worker] = Client(life=self.clients[worker].life + (not alike))

    @rule(worker=NAMES)
    def revoke(self, worker: str) -> None:
        """The certificate of a worker is revoked; its process may go on, or come back with another one."""
        self.held.pop(worker, None)
        self.clients[worker].asks = False
        self.say(Withdraw(worker, "certificate revoked", self.now))

    @rule(worker=NAMES, kind=st.sampled_from([Absent, Present]))
    def come_or_go(self, worker: str, kind: type[Absent] | type[Present]) -> None:
        """The connections of a worker are closed, with its pull; or there is one again."""
        if kind is Absent:
            self.clients[worker].asks = False
        self.say(kind(worker, self.now))

    @precondition(lambda self: any(client.vector for client in self.clients.values()))
    @rule(data=st.data())
    def decline(self, data: st.DataObject) -> None:
        """A worker cannot make anything of the model that it has."""
        busy = [worker for worker, client in self.clients.items() if client.vector]
        worker = data.draw(st.sampled_from(busy))
        client = self.clients[worker]
        self.say(Decline(worker, client.vector.round, "no memory left", self.now))
        client.served, client.vector = client.vector.round, None

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.say(Tick(self.now))

    # What always holds

    @invariant()
    def the_state_is_what_the_effects_told(self) -> None:
        state = self.machine.state
        assert (state.phase, state.round) == (self.phase, self.round)
        waiting = {w: (v.round, v.digest) for w, v in (self.held | self.reading).items()}
        assert state.held == waiting or self.phase is Phase.FINISHED
        assert state.uploads.keys() == {stream.vector.worker for stream in self.streams if stream.open}
        assert not state.uploads.keys() & state.held.keys()
        assert not state.invited.keys() & (state.held.keys() | state.faults.keys())
        choice, punctual = self.machine.policy.selection, self.phase is Phase.OPEN and not state.overdue
        if isinstance(choice, LongestAbsent) and punctual:
            assert len(state.invited) + len(state.held) + len(state.faults) <= choice.k

    @invariant()
    def nothing_but_what_it_wakes_for_depends_on_time(self) -> None:
        again, due = Machine(self.machine.policy), self.machine.wake_at
        again.state = self.machine.state
        assert due is None or due > again.state.at
        before = again.state.at + 1e6 if due is None else (again.state.at + due) / 2
        assert again.handle(Tick(before)) == ()

    # In the end

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.the_same_again()
        for stream in [*self.streams]:
            self.breaks_off(stream)
        for worker in WORKERS:
            self.clients[worker].asks = False
        if self.phase is not Phase.FINISHED:
            self.all_come_back()
        policy = self.machine.policy
        if policy.by_invitation:
            events = [{**event, "quorum": 1} for event in self.log.events]
            assert check(events, Rules(1, F)) == []
        else:
            assert check(self.log.events, Rules(self.quorum, F)) == []

    def the_same_again(self) -> None:
        again = Machine(self.first_policy)
        again.state = self.origin
        for event, told in self.history:
            if isinstance(event, RunPolicy):
                again.follow(event)
            else:
                assert again.handle(event) == told
        assert again.state == self.machine.state

    def all_come_back(self) -> None:
        """Whatever has happened: once the network is whole, everybody's vectors are used again."""
        before, until = set(self.used), self.round + 40
        while not self.all_served(self.used - before):
            if self.phase is Phase.FINISHED:
                assert self.machine.policy.shortfall == "fail"
                return
            assert self.step(), ("nobody can do anything", self.machine.state)
            assert self.round <= until, self.machine.state

    def all_served(self, used: set[tuple[str, int]]) -> bool:
        """Where nobody waits for those who are slower or were absent, the others may be served alone."""
        selection = self.machine.policy.selection
        if isinstance(selection, BufferSelection) or not selection.by_invitation:
            return len(used) >= 10
        stay = self.members - self.machine.policy.leaving
        return all(sum(name == worker for name, _ in used) >= 2 for worker in stay)

    def step(self) -> bool:
        """Whether anything is left to do; time passes only when there is nothing else."""
        for worker, client in self.clients.items():
            if worker not in self.members:
                continue
            if client.vector is not None:
                self.run(self.stream(client.vector))
                return True
            if not client.asks and (self.machine.by_invitation or client.served < self.round):
                self.ask(worker, losing=False)
                if client.asks or client.vector is not None:
                    return True
        if self.phase is Phase.CLOSED:
            self.aggregated(sound=True)
            return True
        if (moment := self.machine.wake_at) is not None:
            self.now = moment
            self.say(Tick(moment))
        return moment is not None


Histories.TestCase.settings = settings(max_examples=examples(200), stateful_step_count=50, deadline=None)
TestHistories = Histories.TestCase
