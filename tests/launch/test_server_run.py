"""The run of a server in a folder: stopped, kept, and gone on with; workers compute beside it."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from dataclasses import replace

import pytest
from tests.launch.conftest import SMALL

from varangian.config import load
from varangian.launch.checkpoints.folder import CheckpointFolder
from varangian.launch.checkpoints.lock import FolderLock
from varangian.launch.checkpoints.resumed import Resumed
from varangian.launch.result import RunError
from varangian.launch.server_run import ServerRun
from varangian.state_file import unflatten

SETTINGS = (*SMALL, "rounds=6", "worker.momentum=0", "evaluate.every=2", "optimizer=adam")
FEDLAAVG = "participation={fedlaavg: {participants: 3}}"


class World:
    """Runs of a server whose workers hand over what they compute."""

    def __init__(self, output, *settings: str) -> None:
        self.config = load(None, [*SETTINGS, f"output={output}", *settings])
        self.notes: list[str] = []

    async def play(self, resume: Resumed | None = None, until: int = 6):
        """Rounds up to this one, then a stop; the result, and whether the run can go on."""
        server_run = ServerRun.open(self.config, lambda record: None, self.notes.append, resume=resume)
        with closing(server_run):
            coordinator, compute = server_run.coordinator(), server_run.model_side
            serving = asyncio.create_task(coordinator.run(server_run.stop.event, server_run.grace))
            await coordinator.until_idle()
            while coordinator.round < until:
                round, names = coordinator.round, self.config.worker_names
                if server_run.machine.by_invitation:
                    for name in names:
                        coordinator.pulls.ask(name, round - 1)
                    names = tuple(server_run.machine.state.invited)
                model = await coordinator.snapshot(round - 1, 60.0)
                for name, row in compute.vectors(names, round, model.parameters).items():
                    assert coordinator.hand_over(name, round, row) is None
                while coordinator.round == round:
                    await asyncio.sleep(0)
            if until < self.config.rounds:
                server_run.stop.because("stopped for a test")
            result = server_run.result(await serving)
            return result, server_run.can_go_on, server_run.terms


def resumed(folder, round: int) -> Resumed:
    """What goes on from a checkpoint."""
    kept = CheckpointFolder(folder).read(round)
    lock = FolderLock.take(folder, lambda text: None)
    return Resumed(folder, lock, round, unflatten(kept.plain["state"], kept.tensors), kept.plain)


def rounds_in(folder) -> list[int]:
    return [json.loads(line)["round"] for line in (folder / "rounds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("participation", ["participation=sync", FEDLAAVG])
async def test_a_run_that_was_stopped_goes_on_to_the_same_end(tmp_path, participation):
    world = World(tmp_path, participation)
    straight, over, _ = await world.play()
    assert (straight.outcome, over) == ("finished", False)
    part, can_go_on, terms = await world.play(until=3)
    assert can_go_on
    assert (part.rounds, terms.epoch, terms.resumed_at, terms.every) == (3, 0, 0, 50)
    assert world.notes[-1] == f"3 rounds are kept: varangian run --resume {part.folder} goes on"
    assert CheckpointFolder(part.folder).rounds() == [3]
    going_on = resumed(part.folder, 3)
    end, over, terms = await world.play(going_on)
    assert (terms.epoch, terms.resumed_at, over) == (1, 3, False)
    assert (end.folder, end.digest, end.loss) == (part.folder, straight.digest, straight.loss)
    assert (end.rounds, end.outcome) == (6, "finished")
    assert rounds_in(end.folder) == [*range(6)]
    assert end.seconds > going_on.state["run"]["seconds"] > 0


async def test_rounds_after_the_checkpoint_are_done_again(tmp_path):
    world = World(tmp_path, "server.checkpoint.every=2")
    straight, *_ = await world.play()
    part, *_ = await world.play(until=5)
    end, *_ = await world.play(resumed(part.folder, 4))
    assert rounds_in(end.folder) == [0, 1, 2, 3, 4, 4, 5]
    assert (end.digest, end.rounds) == (straight.digest, 6)


async def test_a_worker_that_was_revoked_after_the_checkpoint_is_forgotten(tmp_path):
    world = World(tmp_path, FEDLAAVG)
    part, *_ = await world.play(until=3)
    again = resumed(part.folder, 3)
    known = set(again.state["rows"]["latest"]["vectors"])
    revoked = min(known)
    server_run = ServerRun.open(
        world.config, lambda record: None, print, resume=replace(again, revoked=(revoked,))
    )
    with closing(server_run):
        coordinator = server_run.coordinator()
        serving = asyncio.create_task(coordinator.run(server_run.stop.event))
        await coordinator.until_idle()
        assert set(server_run.row_source.state()["latest"]["vectors"]) == known - {revoked}
        server_run.stop.because("stopped for a test")
        await serving


async def test_without_a_checkpoint_round_0_begins_again(tmp_path):
    world = World(tmp_path, "server.checkpoint=null")
    straight, *_ = await world.play()
    part, can_go_on, terms = await world.play(until=2)
    assert (can_go_on, terms.every, terms.keep) == (False, 0, 0)
    lock = FolderLock.take(part.folder, lambda text: None)
    end, _, terms = await world.play(Resumed(part.folder, lock))
    assert (terms.epoch, terms.resumed_at) == (1, 0)
    assert (end.digest, end.rounds) == (straight.digest, 6)


async def test_a_state_that_does_not_fit_is_one_clear_error(tmp_path):
    part, *_ = await World(tmp_path).play(until=2)
    going_on = resumed(part.folder, 2)
    with pytest.raises(RunError, match=r"the checkpoint of round 2 in .* is of another model"):
        await World(tmp_path, "model.mlp.hidden=3").play(going_on)
    going_on.lock.release()  # which is up to the caller where nothing was opened
    FolderLock.take(part.folder, lambda text: None).release()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], ["checkpoints of 40 kB every 50 rounds; the newest 3 and up to two others are kept"]),
        (["server.checkpoint=null"], []),
    ],
)
def test_large_checkpoints_are_told_of(tmp_path, monkeypatch, settings, said):
    monkeypatch.setattr("varangian.launch.server_run.WORTH_A_WORD", 1000)
    monkeypatch.setattr("varangian.launch.server_run.snapshot_bytes", lambda config, d: 40_000)
    config = load(None, [*SMALL, f"output={tmp_path}", *settings])
    with closing(ServerRun.open(config, lambda record: None, lambda text: None)) as server_run:
        assert [*server_run.storage] == said
