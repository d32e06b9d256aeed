"""Quorum of a round: who has answered and who still may, whether the round is over, and the sentence why.

A proven fault is an answer: a rule that holds for q rows of which f are Byzantine also holds for q - 1 of
which f - 1 are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import NamedTuple, TypeVar

from varangian.server.protocol.adaptive_waiting import WaitingHistory, is_patient
from varangian.server.protocol.deadlines import Arrivals, after_round
from varangian.server.protocol.events import Close, RollCall, Seconds, Skip, Worker
from varangian.server.protocol.state import NEVER, Phase, RunPolicy, RunState

R = TypeVar("R", bound=RollCall)


class Verdict(Enum):
    WAIT = auto()
    CLOSE = auto()
    SHORT = auto()


class Decision(NamedTuple):
    verdict: Verdict
    because: str


class Answers(NamedTuple):
    """The answers of the members of a round. Names are sorted."""

    pushed: tuple[Worker, ...]
    faulty: tuple[Worker, ...]
    asked: tuple[Worker, ...]
    """Workers that were asked and have not answered; none once the round is complete without them."""
    away: tuple[Worker, ...]
    """Workers that will not answer: they want a later round, or have declined this one."""
    absent: tuple[Worker, ...]
    """Workers that have not answered and are not connected; without invitations also those withdrawn."""
    slow: tuple[Worker, ...]
    """Workers that are not waited for, having missed too many rounds in a row."""
    others: tuple[Worker, ...]
    """Members that have neither answered nor are away, absent or slow."""
    patient: bool
    """Whether the round waits for all workers up to its deadline."""
    needed: int
    """After how many answers the round is complete."""
    quorum: int
    """The fewest answers with which it closes at its deadline."""
    full: bool
    """Whether as many have answered as can be waited for."""

    @property
    def total(self) -> int:
        return len(self.pushed) + len(self.faulty)


def count_answers(policy: RunPolicy, state: RunState) -> Answers:
    workers, selection = policy.workers, policy.selection
    members = selection.members(workers, state.round)
    full_size = selection.full_size(len(workers), state.round)
    needed = selection.needed(workers, state, len(ready_workers(policy, state)))
    least = quorum(policy, full_size, needed)
    pushed, faulty = _among(members, state.held), _among(members, state.faults)
    silent = _without(members, _either(state.held, state.faults))
    answered = len(pushed) + len(faulty)
    expected = set[Worker]() if answered >= needed else set(selection.expected(workers, state))
    # By invitation, a worker that comes back with another certificate is waited for once it is invited.
    unconnected = state.absent if policy.by_invitation else _either(state.absent, state.revoked)
    later = _away(state)
    uploading = useful_uploads(policy, state) if later or unconnected else set[Worker]()
    away = _among(silent, later - uploading)
    absent = _among(silent, {*unconnected} - uploading - {*away}) if unconnected else ()
    there = _without(silent, {*away, *absent}) if away or absent else silent
    patient = is_patient(state.history, state.is_first, state.opened_at, policy.deadline_of(state), there)
    often = set[Worker]()
    if state.history.missed and not patient:
        often = _slow(policy, state, members, expected.intersection(there))
    slow = _among(silent, often) if len(often) <= policy.spare(needed, least) else ()
    others = _without(there, slow)
    if policy.by_invitation:
        full = answered + (len(slow) if selection.fresh_only else 0) >= needed
    else:
        full = not others
    return Answers(
        pushed=pushed,
        faulty=faulty,
        asked=_without(_among(silent, expected), _either(state.declined, state.revoked)),
        away=away,
        absent=absent,
        slow=slow,
        others=others,
        patient=patient,
        needed=needed,
        quorum=least,
        full=full,
    )


def _slow(
    policy: RunPolicy, state: RunState, members: tuple[Worker, ...], expected: set[Worker]
) -> set[Worker]:
    """Members that had missed too many rounds before this one, among those who answered or may."""
    if policy.waiting is None:
        return set()
    asked = expected | state.held.keys() | state.faults.keys()
    return {w for w in members if w in asked and state.history.is_passed_over(policy.waiting, w)}


def _away(state: RunState) -> set[Worker]:
    """Connected workers that will not answer this round: they want a later one, or have declined."""
    if not (state.parked or state.declined):
        return set()
    parked = state.parked.items()
    later = {w for w, round in parked if round > state.round and w not in state.invited}
    return later | state.declined.keys()


# Each event asks these of all workers: n lookups, in lists as these are faster than generators, and no
# loop where there is nobody to look for.
def _among(workers: tuple[Worker, ...], chosen: Collection[Worker]) -> tuple[Worker, ...]:
    return tuple([w for w in workers if w in chosen]) if chosen else ()


def _without(workers: tuple[Worker, ...], others: Collection[Worker]) -> tuple[Worker, ...]:
    return tuple([w for w in workers if w not in others]) if others else workers


def _either(some: Collection[Worker], more: Collection[Worker]) -> Collection[Worker]:
    """The workers of both; as a rule one has none."""
    return {*some, *more} if some and more else some or more


def passed_over(policy: RunPolicy, state: RunState) -> frozenset[Worker]:
    """Workers that could still answer, but are not waited for after too many missed rounds in a row."""
    return frozenset(count_answers(policy, state).slow) if state.history.missed else frozenset()


def decide(policy: RunPolicy, state: RunState, answers: Answers) -> Decision:
    """Whether the open round can close, and the sentence why or why not."""
    if len(state.faults) > policy.f:
        guilty = (
            f"round {state.round}: {len(state.faults)} proven faulty ({list_names(sorted(state.faults))})"
        )
        return Decision(Verdict.SHORT, f"{guilty}, more than the declared f = {policy.f}")
    said = describe(policy, state, answers)
    if must_wait(policy, state, answers):
        return Decision(Verdict.WAIT, f"{said}; {_until(policy, state, answers)}")
    late, over = is_late(policy, state), is_over(policy, state, answers)
    lacking = policy.shortage(answers.pushed, answers.faulty, answers.quorum)
    if answers.full and not lacking:
        return Decision(Verdict.CLOSE, f"{said}; {_nobody_else(policy, state, answers)}")
    if not answers.others and not ((answers.absent or answers.slow) and lacking):
        said += _not_waited_for(policy, state, answers)
    elif over and not late:
        span = _span(policy, state, answers)
        enough = f"enough had answered after {state.quorum_took or 0.0:.3g} s"
        said += f", missing {list_names(answers.asked)}; {enough}"
        return Decision(Verdict.CLOSE, f"{said}, and the others had {span:.3g} s from its start")
    elif not late:
        gone = [w for w in answers.absent if w not in state.revoked]
        said += f", absent {list_names(gone)}" if gone else ""
        return Decision(Verdict.WAIT, f"{said}; the deadline is still to come")
    else:
        said += f", missing {list_names(answers.asked)}" if answers.asked else ""
        said += f"; the deadline of {policy.deadline_of(state):g} s is over"
    if lacking:
        return Decision(Verdict.SHORT, f"{said} and {lacking}")
    return Decision(Verdict.CLOSE, f"{said} and the quorum of {answers.quorum} is met")


def must_wait(policy: RunPolicy, state: RunState, answers: Answers) -> bool:
    """Whether the round stays open: others may still answer, and their time is not over."""
    if len(state.faults) > policy.f or not answers.others or answers.full:
        return False
    return not (is_late(policy, state) or is_over(policy, state, answers))


def waiting_is_useless(policy: RunPolicy, state: RunState, answers: Answers) -> bool:
    """Whether waiting beyond the deadline is no use.

    Without invitations: those who could still answer would not be enough. By invitation: nobody is left who
    could answer; or those who are away could make up the quorum in a later round, which so has to come.
    So has one with other workers, in which those who are dead can be left out.
    """
    if len(state.faults) > policy.f or policy.following is not None:
        return True
    if not policy.by_invitation:
        most = {w for w in policy.workers if w not in state.faults and w not in state.declined}
        return bool(policy.shortage(most, state.faults))
    there = {*answers.pushed, *answers.away}
    full_size = policy.selection.full_size(len(policy.workers), state.round)
    least = quorum(policy, full_size, len(there) + len(answers.faulty))
    enough = bool(answers.away) and not policy.shortage(there, answers.faulty, least)
    return enough or not (answers.others or answers.absent or answers.slow)


def is_late(policy: RunPolicy, state: RunState) -> bool:
    """Whether the deadline of the round has passed."""
    return state.opened_at is not None and state.at >= state.opened_at + policy.deadline_of(state)


def is_over(policy: RunPolicy, state: RunState, answers: Answers) -> bool:
    """Whether those who are late have been waited for long enough, and the others are enough."""
    end = due(policy, state, answers)
    return end is not None and state.at >= end and has_enough(policy, answers)


def due(policy: RunPolicy, state: RunState, answers: Answers) -> Seconds | None:
    """The time at which late workers are no longer waited for; None if that is the deadline.

    Counted from the last of their invitations in this round, if there was one.
    """
    if policy.waiting is None or state.opened_at is None or state.quorum_took is None or answers.patient:
        return None
    asked = (state.asked[worker] for worker in answers.others if worker in state.asked)
    start = max((state.opened_at, *(at for round, at in asked if round == state.round)))
    end = start + state.history.span(policy.waiting, state.quorum_took, policy.deadline_of(state))
    return end if end < state.opened_at + policy.deadline_of(state) else None


def has_enough(policy: RunPolicy, answers: Answers) -> bool:
    """Whether so many have answered that the adaptive wait may begin, and the round could be closed."""
    return answers.total >= _enough(policy, answers) and not policy.shortage(
        answers.pushed, answers.faulty, answers.quorum
    )


def _enough(policy: RunPolicy, answers: Answers) -> int:
    return answers.needed - policy.spare(answers.needed, answers.quorum)


def quorum_time(policy: RunPolicy, state: RunState, answers: Answers) -> Seconds:
    """Seconds that enough answers took: since the round opened, or since the pulls if that is longer."""
    spans = sorted(state.took.get(worker, 0.0) for worker in answers.pushed)
    honest = _enough(policy, answers) - len(answers.faulty)
    own = spans[min(honest, len(spans)) - 1] if honest > 0 and spans else 0.0
    return max(own, 0.0 if state.opened_at is None else state.at - state.opened_at)


def quorum_after(policy: RunPolicy, state: RunState, answers: Answers) -> Seconds | None:
    """Seconds from the start of the round until its quorum had answered; None if it has not.

    A proven fault counts as an answer, and its time is not known: it is taken for the first.
    """
    spans, enough = arrivals(state, answers.pushed), answers.quorum - len(answers.faulty)
    if len(spans) < enough:
        return None
    return sorted(spans.values())[enough - 1] if enough > 0 else 0.0


def arrivals(state: RunState, workers: Iterable[Worker]) -> dict[Worker, Seconds]:
    """Seconds from the start of the round until the vectors of these workers came; 0 if they were there."""
    opened_at = state.at if state.opened_at is None else state.opened_at

    def after(worker: Worker) -> Seconds:
        asked_at = state.asked.get(worker, (NEVER, opened_at))[1]
        return max(0.0, asked_at + state.took.get(worker, 0.0) - opened_at)

    return {worker: after(worker) for worker in workers}


def quorum(policy: RunPolicy, full_size: int, there: int) -> int:
    """The fewest answers with which a round closes, where so many could answer at the most."""
    return policy.quorum if policy.fixed else policy.selection.quorum(policy.quorum, full_size, there)


def missing(
    kind: type[RollCall], policy: RunPolicy, state: RunState, answers: Answers
) -> tuple[Worker, ...]:
    """Workers that were asked and did not answer in time; in a round given up early, only the absent."""
    closed = kind is Close and (not policy.by_invitation or is_over(policy, state, answers))
    if closed or is_late(policy, state):
        return answers.asked
    aside = answers.absent if kind is Skip else answers.absent + answers.slow
    return tuple(w for w in answers.asked if w in aside)


def summarise(kind: type[R], policy: RunPolicy, state: RunState, answers: Answers, because: str) -> R:
    """The roll call of a round that ends."""
    silent = missing(kind, policy, state, answers)
    aside = {*answers.absent, *answers.slow}
    return kind(
        round=state.round,
        workers=answers.pushed,
        faults={worker: state.faults[worker] for worker in sorted(state.faults)},
        missing=silent,
        waited=0.0 if state.opened_at is None else state.at - state.opened_at,
        because=because,
        declined=dict(sorted(state.declined.items())),
        revoked=tuple(sorted(state.revoked)),
        not_waited_for={worker: _reason(state, worker) for worker in silent if worker in aside},
        deadline=None if policy.auto is None else policy.deadline_of(state),
        quorum_after=quorum_after(policy, state, answers),
    )


def _reason(state: RunState, worker: Worker) -> str:
    """Why a worker that is missing was not waited for."""
    rounds = state.history.missed.get(worker, 0)
    return "absent" if worker in state.absent else f"missed the last {rounds} rounds"


def summarise_close(policy: RunPolicy, state: RunState, answers: Answers, because: str) -> Close:
    """As `summarise`, with ages and factors where vectors can be of several rounds."""
    close = summarise(Close, policy, state, answers, because)
    if not policy.by_invitation:
        return close
    ages = {worker: state.round - state.held[worker][0] for worker in answers.pushed}
    factors = {worker: policy.selection.factor(age) for worker, age in ages.items()}
    return replace(close, ages=ages, factors=factors)


def remember(kind: type[RollCall], policy: RunPolicy, state: RunState, answers: Answers) -> WaitingHistory:
    """The history of adaptive waiting after the round has ended."""
    if policy.waiting is None:
        return state.history if policy.auto is None else replace(state.history, opened_at=state.opened_at)
    return state.history.after_round(
        first=state.is_first,
        opened_at=state.opened_at,
        at=state.at,
        took=state.quorum_took,
        deadline=policy.deadline_of(state),
        answered={*answers.pushed, *answers.faulty, *state.declined},
        missing=set(missing(kind, policy, state, answers)) - state.absent,
    )


def remember_arrivals(
    kind: type[RollCall], policy: RunPolicy, state: RunState, answers: Answers
) -> Arrivals:
    """The arrival times of the last rounds after the round has ended, from which deadlines follow."""
    if policy.auto is None or state.is_first:  # the first includes the start of the workers
        return state.arrivals
    connected = (w for w in missing(kind, policy, state, answers) if w not in state.absent)
    opened_at = state.at if state.opened_at is None else state.opened_at
    least = max(policy.deadline_of(state), state.at - opened_at)
    # An invitation may come some time after the round has opened, and the deadline counts from the opening.
    later = {w: max(0.0, asked[1] - opened_at) for w, asked in state.asked.items()}
    seconds = {worker: state.took[worker] + later.get(worker, 0.0) for worker in answers.pushed}
    return after_round(state.arrivals, state.round, seconds, dict.fromkeys(connected, least))


def is_young_enough(policy: RunPolicy, state: RunState, round: int) -> bool:
    """Whether a vector for this model that arrives now is young enough when it is used."""
    tau, used_in = policy.selection.tau, state.round + (state.phase is Phase.CLOSED)
    return tau is None or used_in - round <= tau


def useful_uploads(policy: RunPolicy, state: RunState) -> set[Worker]:
    """Workers whose open upload counts once it is complete."""
    if not state.uploads:
        return set()
    if policy.by_invitation:
        return {w for w, (round, _) in state.uploads.items() if state.invited.get(w) == round}
    uploads = (w for w, (round, _) in state.uploads.items() if round == state.round)
    return {w for w in uploads if not state.has_withdrawn_upload(w)}


def ready_workers(policy: RunPolicy, state: RunState) -> tuple[Worker, ...]:
    """Workers that wait for an invitation and could have one now; sorted."""
    if not state.parked:
        return ()
    busy = useful_uploads(policy, state) | state.held.keys() | state.faults.keys()
    there = (w for w, round in state.parked.items() if round <= state.round and w not in busy)
    return tuple(sorted(there))


def describe(policy: RunPolicy, state: RunState, answers: Answers) -> str:
    """The answers so far, as the beginning of a sentence."""
    parts = f"({len(answers.pushed)} pushed, {len(answers.faulty)} faulty)"
    what = "answers are there" if policy.by_invitation else "workers answered"
    counted = f"{answers.total} of {answers.needed} {what} {parts}"
    kinds = {"declined": state.declined, "revoked": state.revoked}
    excused = (f", {len(who)} {kind} ({_first(who)})" for kind, who in kinds.items() if who)
    return f"round {state.round}: {counted}{''.join(excused)}"


def list_names(workers: Sequence[Worker], most: int = 5) -> str:
    """The first few names; a sentence must stay readable with a thousand workers."""
    more = f" and {len(workers) - most} more" if len(workers) > most else ""
    return ", ".join(workers[:most]) + more


def _first(reasons: Mapping[Worker, str]) -> str:
    """The first worker, by name, and its reason."""
    worker = min(reasons)
    return f"{worker}: {reasons[worker].rstrip('.')}"


def _span(policy: RunPolicy, state: RunState, answers: Answers) -> Seconds:
    """Seconds that the round waits for late workers, counted from its start."""
    end = due(policy, state, answers)
    return policy.deadline_of(state) if end is None or state.opened_at is None else end - state.opened_at


def _until(policy: RunPolicy, state: RunState, answers: Answers) -> str:
    """The time until which late workers are waited for, in words."""
    span = _span(policy, state, answers)
    if span == policy.deadline_of(state):
        return "the deadline is still to come"
    return f"{span:.3g} s for those who are late are not over"


def _nobody_else(policy: RunPolicy, state: RunState, answers: Answers) -> str:
    """Why nobody else is waited for in a round that is complete."""
    if policy.by_invitation:
        missed = f"{list_names(answers.slow)} missed too many rounds in a row, and "
        return f"{missed if answers.slow else ''}nobody else is waited for"
    gone = [w for w in answers.asked if w in state.absent]
    slow = [w for w in answers.asked if w not in state.absent]
    parts = [_absent(gone)] if gone else []
    if slow and policy.waiting is not None:
        parts.append(f"{list_names(slow)} missed the last {policy.waiting.rounds} rounds or more")
    if parts:
        return f"only {' and '.join(parts)}"
    return "nobody else is waited for" if state.declined or state.revoked else "nobody is missing"


def _not_waited_for(policy: RunPolicy, state: RunState, answers: Answers) -> str:
    """Workers that are not waited for in a round that nobody else can answer."""
    if not policy.by_invitation:
        return "; nobody else can answer"
    gone = [worker for worker in answers.absent if worker not in state.revoked]
    said = f"; {_absent(gone)}" if gone else ""
    said += f"; {list_names(answers.slow)} missed too many rounds in a row" if answers.slow else ""
    return f"{said}; the others ({list_names(answers.away)}) are away" if answers.away else said


def _absent(workers: Sequence[Worker]) -> str:
    return f"{list_names(workers)} {'is' if len(workers) == 1 else 'are'} absent"
