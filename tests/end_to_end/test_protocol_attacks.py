"""Attacks on the protocol in a run with processes, and what the run says of them."""

import json

import pytest
from tests.extent import for_everybody

from varangian.config import load
from varangian.launch import run

pytestmark = pytest.mark.slow

SMALL = [
    "data=synthetic",
    "model=softmax",
    "aggregator=median",
    "workers=4",
    "f=1",
    "rounds=4",
    "worker.batch_size=8",
]
OWN = '''
"""An attack on the protocol that no version of the server has seen."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Longer:
    """Sends more numbers than the model has, then a vector for a later round, and then an honest push."""

    by: int = 1

    async def send(self, line, round, vector, rng):
        push = line.prepare(round, vector)
        answers = [
            await line.send(replace(push, numel=push.numel + self.by)),
            await line.send(replace(push, round=round + 9)),
            await line.send(push),
        ]
        assert [answer.code for answer in answers] == ["NUMEL", "FUTURE", ""], answers
'''


@pytest.fixture
def carried_out(tmp_path, monkeypatch):
    (tmp_path / "attacks_of_a_user.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def carry_out(*settings):
        notes = []
        result = run(load(None, [*SMALL, *for_everybody(), "output=runs", *settings]), note=notes.append)
        return result, json.loads((result.folder / "result.json").read_text()), notes

    return carry_out


def test_an_own_attack_on_the_protocol_is_mounted_and_its_refusals_are_in_the_result(carried_out):
    attack = "byzantine.attack={attacks_of_a_user:Longer: {by: 3}}"
    result, written, notes = carried_out("byzantine.count=1", attack)
    assert result.outcome == "finished"
    assert written["refused"] == result.refused == {"FUTURE": 4, "NUMEL": 4}
    assert all(record["missing"] == [] and record["dropped"] == {} for record in result.history)
    assert notes == []
    honest, nothing, _ = carried_out()
    assert honest.digest == result.digest, "in the end it sends an honest vector"
    assert honest.refused is None
    assert "refused" not in nothing


def test_an_attack_in_an_attack_on_the_protocol_makes_what_it_sends(carried_out):
    who = ["byzantine.count=1", "byzantine.knows=all"]
    sent, _, _ = carried_out(*who, "byzantine.attack={equivocate: {attack: {alie: {z: 1.5}}}}")
    exact = ["backend=simulate", "simulate.gradients=exact"]
    alone, _, _ = carried_out(*who, "byzantine.attack={alie: {z: 1.5}}", *exact)
    assert sent.digest == alone.digest, "its first version counts"
    assert sent.refused.keys() <= {"COUNTED", "STALE", "FINISHED"}
