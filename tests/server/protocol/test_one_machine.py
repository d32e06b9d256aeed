"""If everybody asks for every model, the machine of participation decides as the round machine does."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.extent import examples

from varangian.protos.refusals import Refusal
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.adaptive_waiting import AdaptiveWaiting
from varangian.server.protocol.events import (
    Committed,
    Duplicate,
    Effect,
    Event,
    Fault,
    Finish,
    Gone,
    Invite,
    Offer,
    Open,
    Phase,
    Push,
    Ready,
    Reject,
    RollCall,
    RoundPolicy,
    Skipped,
    Stop,
    Tick,
)
from varangian.server.protocol.machine import ParticipationMachine
from varangian.server.protocol.state import RunPolicy
from varangian.server.protocol.synchronous import RoundMachine

A, B = b"a" * 16, b"b" * 16
WORKERS = ("w00", "w01", "w02", "w03")
NAMES = st.sampled_from([*WORKERS, "stranger"])
DIGESTS = st.sampled_from([A, B, b""])
ROUNDS = st.integers(-1, 1)


def told(effects: tuple[Effect, ...]) -> list[object]:
    """What both have to say alike: all but who is invited, and how it is put."""
    return [_plain(effect) for effect in effects if not isinstance(effect, Invite)]


def _plain(effect: Effect) -> object:
    match effect:
        case RollCall():
            who = effect.workers, [*effect.faults.items()], effect.missing, effect.not_waited_for
            return type(effect), effect.round, who, effect.waited
        case Finish():
            return Finish
        case _:
            return effect


def late(effects: tuple[Effect, ...]) -> bool:
    """Whether this answers a push for a round that is over; one machine also knows if it was counted."""
    stale = {Refusal.STALE, Refusal.TOO_OLD, Refusal.REPEATED, Refusal.COUNTED}
    return all(isinstance(e, Duplicate) or (isinstance(e, Reject) and e.refusal in stale) for e in effects)


class Alike(RuleBasedStateMachine):
    """The same events for both, in any order, whether or not they are in order."""

    @initialize(
        quorum=st.integers(1, 4),
        f=st.integers(0, 2),
        shortfall=st.sampled_from(["wait", "skip", "fail"]),
        waiting=st.sampled_from([None, AdaptiveWaiting(2.0, 3.0, 2), AdaptiveWaiting(1.0, 0.0, 1)]),
    )
    def start(self, quorum: int, f: int, shortfall: str, waiting: AdaptiveWaiting | None) -> None:
        policy = RoundPolicy(WORKERS, 6, quorum, 10.0, shortfall, f, max_skips=3, waiting=waiting)
        self.rounds = RoundMachine(policy)
        self.participation = ParticipationMachine(RunPolicy(**vars(policy), choice=Everyone()))
        self.now = 0.0
        self.ask()
        self.say(Offer("w00", 0, A, 0.0))
        self.say(Gone("w00", 0, 0.0))

    def ask(self) -> None:
        for worker in WORKERS:
            invites = self.participation.handle(Ready(worker, self.round, self.now))
            assert invites == (Invite(worker, self.round),)

    @property
    def round(self) -> int:
        return self.rounds.state.round

    def say(self, event: Event) -> None:
        one, other = self.rounds.handle(event), self.participation.handle(event)
        assert told(one) == told(other) or (one and other and late(one) and late(other)), (
            event,
            one,
            other,
        )
        if isinstance(other[-1:][0] if other else None, Open):
            self.ask()
        self.compare()

    def compare(self) -> None:
        one, other = self.rounds.state, self.participation.state
        for name in (
            "round",
            "phase",
            "opened_at",
            "overdue",
            "skips",
            "uploads",
            "faults",
            "pace",
            "quorum_took",
        ):
            assert getattr(one, name) == getattr(other, name), name
        assert one.pushed == other.pushed
        assert self.rounds.wake_at == self.participation.wake_at
        if one.phase is Phase.OPEN:
            assert self.rounds.decision(self.now)[0] == self.participation.decision(self.now)[0]
            for worker in WORKERS:
                assert self.rounds.standing(worker, self.round) == self.participation.standing(
                    worker, self.round
                )

    @rule(worker=NAMES, shift=ROUNDS, digest=DIGESTS)
    def offer(self, worker: str, shift: int, digest: bytes) -> None:
        if shift < 0 and self.rounds.policy.waiting is not None:
            return  # it has been invited again by now: a vector for the last round shows nothing
        self.say(Offer(worker, self.round + shift, digest, self.now))

    @rule(worker=NAMES, shift=ROUNDS, digest=DIGESTS)
    def push(self, worker: str, shift: int, digest: bytes) -> None:
        self.say(Push(worker, self.round + shift, digest or A, self.now))

    @rule(worker=NAMES, digest=st.sampled_from([A, B]))
    def send(self, worker: str, digest: bytes) -> None:
        self.say(Offer(worker, self.round, digest, self.now))
        self.say(Push(worker, self.round, digest, self.now))

    @rule(digest=st.sampled_from([A, B]), but=st.sets(st.sampled_from(WORKERS), max_size=2))
    def send_all(self, digest: bytes, but: set[str]) -> None:
        for worker in sorted({*WORKERS} - but):
            self.send(worker, digest)

    @rule(worker=NAMES, shift=ROUNDS)
    def fault(self, worker: str, shift: int) -> None:
        self.say(Fault(worker, self.round + shift, "x", self.now))

    @rule(worker=NAMES, shift=ROUNDS)
    def gone(self, worker: str, shift: int) -> None:
        self.say(Gone(worker, self.round + shift, self.now))

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 11.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.say(Tick(self.now))

    @rule(shift=ROUNDS)
    def commit(self, shift: int) -> None:
        self.say(Committed(self.round + shift, self.now))

    @rule()
    @precondition(lambda self: self.rounds.state.phase is Phase.CLOSED)
    def commit_closed(self) -> None:
        self.say(Committed(self.round, self.now))

    @rule()
    @precondition(lambda self: self.rounds.state.phase is Phase.CLOSED)
    def skip_closed(self) -> None:
        self.say(Skipped(self.round, "no guarantee", self.now))

    @rule(stop=st.integers(0, 9))
    def stop(self, stop: int) -> None:
        if stop == 0:
            self.say(Stop("stopped on request", self.now))


Alike.TestCase.settings = settings(max_examples=examples(120), stateful_step_count=40, deadline=None)
TestAlike = Alike.TestCase
