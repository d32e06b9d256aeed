"""Rounds in which a rule, a mixing or an attack of the user failed.

A run goes on without them. Its scores are not those of the rule then, nor under the attack: a rule looks
robust where the attack has only raised an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from varangian.config import RunConfig
from varangian.own_classes import is_own
from varangian.registry import is_target
from varangian.server.observability.record import RoundRecord


class CodeFailures:
    """Counts the rounds of a run in which code of the user failed, and keeps the first reason.

    What other workers than the attackers of the configuration say is never taken for a failure.
    """

    def __init__(self, config: RunConfig) -> None:
        self._parts = [*_own_parts(config.resolved()["aggregator"])]
        own_attack = config.byzantine.attack is not None and is_own(config.byzantine.attack)
        self._attackers = config.byzantine_names if own_attack else ()
        self._count, self._first = 0, ""

    def look(self, record: RoundRecord) -> None:
        if reason := self._reason(record):
            self._count += 1
            self._first = self._first or reason

    def state(self) -> dict[str, Any]:
        """The count and the first reason, as JSON has them."""
        return {"count": self._count, "first": self._first}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._count, self._first = state["count"], state["first"]

    def sentence(self, rounds: int) -> str | None:
        """A sentence about the first failure and in how many of these rounds; None if nothing failed."""
        if not self._count:
            return None
        times = f"in {self._count} of {rounds} rounds"
        return f"{self._first.rstrip('.')}. This was so {times}, so the scores do not count."

    def _reason(self, record: RoundRecord) -> str:
        skipped = record.skipped or ""
        for part in self._parts:
            if f"{part} failed: " in skipped or f"of {part} should return" in skipped:
                return skipped.partition(": ")[2]
        declined = (record.declined.get(name, "") for name in self._attackers)
        return next((reason for reason in declined if reason.startswith("`byzantine.attack` ")), "")


def _own_parts(spec: object) -> Iterator[str]:
    """The names of classes and functions of the user in an aggregator, as it is resolved."""
    if isinstance(spec, Mapping):
        for name, fields in spec.items():
            if is_target(name):
                yield name
            yield from _own_parts(fields)
    elif isinstance(spec, list | tuple):
        for one in spec:
            yield from _own_parts(one)
