"""Verdict on the open synchronous round: close it, wait, or give it up, each with its sentence.

As `synchronous` it knows no clock, no tensor, no thread and no wire.
"""

from __future__ import annotations

from varangian.server.protocol.decisions import Decision, Verdict
from varangian.server.protocol.events import RoundPolicy, RoundState, Seconds
from varangian.server.protocol.roll_call import (
    awaited,
    count_answers,
    is_late,
    is_over,
    list_names,
    missing,
    silent,
    span,
    unanswered,
    waited,
)


def decided(policy: RoundPolicy, state: RoundState, at: Seconds) -> Decision:
    """Whether the open round can close, and the sentence why or why not."""
    faults = len(state.faults)
    if faults > policy.f:
        guilty = f"round {state.round}: {faults} proven faulty ({list_names(sorted(state.faults))})"
        return Decision(Verdict.SHORT, f"{guilty}, more than the declared f = {policy.f}")
    said, late = count_answers(policy, state), is_late(policy, state, at)
    expected, over = awaited(policy, state), is_over(policy, state, at)
    if expected and not late and not over:
        return Decision(Verdict.WAIT, f"{said}; {_until(policy, state)}")
    lacking = policy.shortage(state.pushed, state.faults)
    if not expected and not lacking:
        return Decision(Verdict.CLOSE, f"{said}; {_without(policy, state)}")
    if over and not late:
        said += f", missing {list_names(silent(policy, state))}"
        return Decision(Verdict.CLOSE, f"{said}; {_waited(policy, state)}")
    if not late and unanswered(policy, state):
        absent = list_names(missing(policy, state, at))
        absent = f", absent {absent}" if absent else ""
        return Decision(Verdict.WAIT, f"{said}{absent}; the deadline is still to come")
    if late:
        absent = list_names(missing(policy, state, at))
        said += f", missing {absent}" if absent else ""
        said += f"; the deadline of {policy.deadline:g} s is over"
    else:
        said += "; nobody else can answer"
    if lacking:
        return Decision(Verdict.SHORT, f"{said} and {lacking}")
    return Decision(Verdict.CLOSE, f"{said} and the quorum of {policy.quorum} is met")


def _until(policy: RoundPolicy, state: RoundState) -> str:
    """How long those who are late are still waited for."""
    until = span(policy, state)
    if until == policy.deadline:
        return "the deadline is still to come"
    return f"{until:.3g} s for those who are late are not over"


def _waited(policy: RoundPolicy, state: RoundState) -> str:
    """Why a round is over before its deadline, although somebody was waited for."""
    return waited(state.quorum_took or 0.0, span(policy, state))


def _without(policy: RoundPolicy, state: RoundState) -> str:
    """Why nobody else is waited for."""
    absent = [w for w in silent(policy, state) if w in state.absent]
    slow = [w for w in silent(policy, state) if w not in state.absent]
    parts = [f"{list_names(absent)} {'is' if len(absent) == 1 else 'are'} absent"] if absent else []
    parts += (
        [f"{list_names(slow)} missed the last {policy.waiting and policy.waiting.rounds} rounds or more"]
        if slow
        else []
    )
    if parts:
        return f"only {' and '.join(parts)}"
    return "nobody else is waited for" if state.declined or state.revoked else "nobody is missing"


def in_vain(policy: RoundPolicy, state: RoundState) -> bool:
    """Whether waiting longer is no use: even with all who could still answer, too little would be there."""
    most = {*state.pushed, *unanswered(policy, state)}
    return len(state.faults) > policy.f or bool(policy.shortage(most, state.faults))
