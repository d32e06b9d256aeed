"""Whatever a peer does, the server answers honest workers, and takes no more memory, files or threads."""

import inspect

import pytest
from tests.hostile import attacks

LONG = (attacks.join_flood, attacks.pull_flood, attacks.never_reading, attacks.amplification)
"""Attacks of several seconds."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [pytest.param(attack, marks=[pytest.mark.exhaustive] * (attack in LONG)) for attack in attacks.ATTACKS],
    ids=lambda attack: attack.__name__,
)
def test_a_server_survives(attack, siege, honest, unharmed):
    with unharmed():
        running = attack(siege)
        if inspect.isgenerator(running):
            for _ in range(2):
                next(running, None)
                honest.round()
            running.close()
