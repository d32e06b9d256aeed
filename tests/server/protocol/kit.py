"""Helpers of the tests of the machine."""

from __future__ import annotations

from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Effect, Event, Reject
from varangian.server.protocol.machine import Machine

A, B = b"a" * 16, b"b" * 16
WORKERS = ("w00", "w01", "w02", "w03")


def play(machine: Machine, *events: Event) -> list[Effect]:
    return [effect for event in events for effect in machine.handle(event)]


def refusal(machine: Machine, event: Event) -> Refusal:
    """The refusal of an event that must change nothing."""
    before = machine.state
    (effect,) = machine.handle(event)
    assert machine.state == before
    assert isinstance(effect, Reject)
    assert effect.round == before.round
    return effect.refusal
