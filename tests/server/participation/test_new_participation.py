"""A participation is one dataclass, registered by name: this file alone adds one and runs it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pytest
from tests.extent import for_everybody

from varangian.cli.commands.check import verdict
from varangian.config import load
from varangian.launch import run
from varangian.registry import ConfigError, Problem
from varangian.server.participation import PARTICIPATION, Participation
from varangian.server.participation.selection import InvitePerRound
from varangian.server.protocol.state import RunState


@dataclass(frozen=True)
class Rotation(Participation):
    """K workers take part in a round, the next K of the list in the round after it."""

    k: int = 3

    def problems(self, n: int, f: int, deadline: float) -> Iterator[Problem]:
        if self.k > n:
            yield Problem(self.setting("k"), f"should be at most the number of workers, {n}", self.k)

    def round_size(self, n: int, f: int) -> int:
        return self.k

    def selection(self, n: int, f: int) -> Turn:
        return Turn(self.k)


@dataclass(frozen=True)
class Turn(InvitePerRound):
    k: int

    def members(self, workers: tuple[str, ...], round: int) -> tuple[str, ...]:
        first, n = round * self.k, len(workers)
        return tuple(sorted(workers[(first + i) % n] for i in range(self.k)))

    def expected(self, workers: tuple[str, ...], state: RunState) -> Collection[str]:
        return self.members(workers, state.round)

    def full_size(self, n: int, round: int) -> int:
        return self.k

    def needed(self, workers: tuple[str, ...], state: RunState, ready: int) -> int:
        return self.k

    def invite(self, workers: tuple[str, ...], state: RunState, ready: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(worker for worker in self.members(workers, state.round) if worker in ready)


@pytest.fixture(autouse=True)
def rotation(monkeypatch):
    monkeypatch.setattr(PARTICIPATION, "_entries", dict(PARTICIPATION._entries))  # and it goes again
    PARTICIPATION.register("rotation")(Rotation)


SETTINGS = ["data=synthetic", "model=softmax", "workers=5", "f=1", "aggregator=median", "rounds=6"]


@pytest.mark.slow
def test_it_runs_the_same_in_simulation_and_in_processes(tmp_path):
    records, results = {"simulate": [], "processes": []}, []
    for backend, observed in records.items():
        settings = ["participation=rotation", f"backend={backend}", f"output={tmp_path}", *for_everybody()]
        config = load(None, [*SETTINGS, *settings])
        results.append(run(config, observe=observed.append, note=lambda text: None))
    assert [(result.outcome, result.rounds) for result in results] == [("finished", 6)] * 2
    assert results[0].digest == results[1].digest
    for there in records.values():
        assert [*map(sorted, (record.ages for record in there))][:3] == [
            ["w00", "w01", "w02"],
            ["w00", "w03", "w04"],
            ["w01", "w02", "w03"],
        ]
    assert all("-rotation-median" in result.folder.name for result in results)


def test_it_is_configured_checked_and_told_as_the_others_are(tmp_path):
    config = load(None, [*SETTINGS, "participation.rotation.k=4"])
    assert (config.participation, config.quorum) == (Rotation(4), 3)
    assert "3 vectors, the fewest that make a round" in verdict(config)
    with pytest.raises(ConfigError, match=r"participation\.rotation\.k: should be .* 5\. Found 6\."):
        load(None, [*SETTINGS, "participation.rotation.k=6"])
    with pytest.raises(ConfigError, match=r"with participation\.rotation: a window"):
        load(None, [*SETTINGS, "participation.rotation.k=4", "server.memory=window"])
