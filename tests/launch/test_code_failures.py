"""Failures of code of the user in the records of a run."""

import pytest

from varangian.config import load
from varangian.launch.code_failures import CodeFailures
from varangian.server.observability.record import RoundRecord

REASON = "`byzantine.attack` 'tests.own_parts:tardy' failed: ZeroDivisionError"
OWN = ("byzantine.count=1", "byzantine.attack=tests.own_parts:tardy")
OURS = ("byzantine.count=1", "byzantine.attack=sign_flip")


@pytest.mark.parametrize(
    ("settings", "worker", "counts"),
    [(OWN, "w04", True), (OWN, "w00", False), (OURS, "w04", False), ((), "w04", False)],
)
def test_only_attackers_with_an_attack_of_the_user_are_believed(settings, worker, counts):
    failures = CodeFailures(load(None, ["workers=5", "f=1", "aggregator=median", *settings]))
    failures.look(RoundRecord(round=0, dropped={}, missing=(), declined={worker: REASON}, seconds={}))
    said = f"{REASON}. This was so in 1 of 2 rounds, so the scores do not count."
    assert failures.sentence(2) == (said if counts else None)
