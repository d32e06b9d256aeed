"""The keeper of checkpoints: what is written, what is kept, and what is said when that fails."""

import errno
import json
import os
import re
import shutil
import threading

import pytest
import torch
from tests.extent import patience
from tests.launch.checkpoints.kit import ORIGIN, record, state

from varangian.launch.output.chain import head_of
from varangian.state_file import unflatten

SECONDS = re.compile(r"\b\d+ s\b")
"""How long something has taken, which depends on the machine."""


def test_a_checkpoint_has_the_state_and_says_where_it_comes_from(kept):
    one = kept(own=lambda: {"seconds": 1.5})
    one.round(0)
    one.round(1, accuracy=0.5, loss=1.0)
    found = one.folder.read(2)
    tree = unflatten(found.plain["state"], found.tensors)
    assert torch.equal(tree["learner"]["parameters"], torch.full((4,), 2.0))
    assert torch.equal(tree["learner"]["optimizer"]["step"], torch.tensor(1.0))
    assert (tree["round"], tree["given"], tree["run"], tree["machine"]) == (
        2,
        1,
        {"seconds": 1.5},
        {"skips": 0},
    )
    head = one.folder.head(2)
    assert {key: head[key] for key in ORIGIN.plain()} == ORIGIN.plain()
    assert (head["version"], head["round"]) == (1, 2)
    assert head["score"] == {"name": "accuracy", "value": 0.5, "round": 1}
    lines = (one.run.path / "rounds.jsonl").read_bytes()
    last = head_of(lines.splitlines()[-1])
    assert head["record"] == {"bytes": len(lines), "lines": 2, "digest": last}
    assert one.notes == []
    assert one.keeper.newest == 2


def test_the_digest_is_that_of_a_result(kept, small):
    from varangian.config.build import learner

    made = learner(small(), torch.full((4,), 2.0))
    one = kept()
    one.round(0)
    one.round(1)
    assert one.folder.head(2)["digest"] == made.digest()


def test_the_newest_and_the_best_are_kept(kept):
    one = kept()
    for round, accuracy in enumerate([0.1, 0.2, 0.3, 0.9, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8]):
        assert one.round(round, accuracy=accuracy) is (round % 2 == 1)
    assert one.folder.rounds() == [10, 8, 4]
    assert sorted(one.folder.scores()) == [4, 8, 10]


@pytest.mark.parametrize(
    ("best", "scores", "left"),
    [
        ("loss", {"loss": [3.0, 1.0, 2.0, 4.0, 5.0]}, [10, 4]),
        ("mae_error", {"metrics": [{"mae_error": value} for value in (3.0, 2.0, 1.0, 4.0, 5.0)]}, [10, 6]),
        ("f1", {"metrics": [{"f1": value} for value in (3.0, 2.0, 1.0, 4.0, 5.0)]}, [10]),
        ("nothing", {"loss": [1.0, 2.0, 3.0, 4.0, 5.0]}, [10, 2]),
        (None, {"loss": [1.0, 2.0, 3.0, 4.0, 5.0]}, [10]),
        ("accuracy", {"accuracy": [0.5, float("nan"), 0.5, 0.1, 0.1]}, [10, 6, 2]),
    ],
)
def test_the_best_is_told_by_its_score(kept, best, scores, left):
    one = kept(best=best, keep=1)
    for place in range(5):
        one.round(2 * place)
        one.round(2 * place + 1, **{name: values[place] for name, values in scores.items()})
    assert one.folder.rounds() == left


def test_one_from_before_the_alarms_is_kept(kept):
    one = kept(keep=1)
    for round in range(12):
        dropped = {"w03": "not finite"} if round == 5 else {}
        one.round(round, dropped=dropped)
    assert one.folder.rounds() == [12, 4]


def test_a_state_that_is_not_finite_is_not_kept_and_that_is_said_once(kept):
    one = kept()
    for round in range(8):
        one.round(round, value=float("inf") if 3 <= round < 7 else 1.0)
    assert one.folder.rounds() == [8, 2]
    assert one.notes == [
        "warning: the state after round 3 is not finite and was not kept; "
        "the newest checkpoint is that of round 2"
    ]


def test_vectors_that_wait_may_be_as_their_workers_sent_them(kept):
    one = kept()
    vector = torch.tensor([float("nan")])
    one.keeper.keep(state(2, w01=vector), {})
    one.keeper.wait()
    assert torch.equal(one.folder.read(2).tensors["held/w01"], vector) is False
    assert one.folder.read(2).tensors["held/w01"].isnan().all()


def test_the_state_may_change_as_soon_as_it_was_handed_over(kept, monkeypatch):
    one = kept()
    go = threading.Event()
    sync = one.run.sync
    monkeypatch.setattr(one.run, "sync", lambda place: (go.wait(), sync(place)))
    handed = state(2)
    one.keeper.keep(handed, {})
    handed.learner["reference"].fill_(7)
    go.set()
    one.keeper.wait()
    assert torch.equal(one.folder.read(2).tensors["learner/reference"], torch.full((4,), 2.0))


def slow(one, monkeypatch):
    """A disk that takes no record until it is told to."""
    go = threading.Event()
    sync = one.run.sync
    monkeypatch.setattr(one.run, "sync", lambda place: (go.wait(), sync(place)))
    return go


def test_rounds_wait_for_the_checkpoint_before(kept, monkeypatch):
    """Workers keep their states for the last checkpoints alone: none is left out."""
    one = kept()
    monkeypatch.setattr("varangian.launch.checkpoints.keeper.NOTICED", 0.0)
    go = slow(one, monkeypatch)
    for round in (2, 4, 6):
        assert one.keeper.due(round, record(round - 1))
        threading.Timer(0.01, go.set).start()
        one.keeper.keep(state(round), {})
    one.keeper.wait()
    assert one.folder.rounds() == [6, 4]
    (said,) = one.notes
    assert SECONDS.sub("N s", said) == (
        "warning: a checkpoint takes N s longer than 2 rounds, which wait for it; "
        "a larger server.checkpoint.every leaves more time"
    )


def test_a_disk_that_hangs_holds_no_run_up(kept, monkeypatch):
    one = kept()
    monkeypatch.setattr("varangian.launch.checkpoints.keeper.PATIENCE", 0.01)
    go = slow(one, monkeypatch)
    for round in (2, 4, 6):
        one.keeper.keep(state(round), {})
    (said,) = one.notes
    assert SECONDS.sub("N s", said).startswith(
        "warning: a checkpoint has taken more than N s, so that of round 4 is left out; a larger "
    )
    go.set()
    one.keeper.wait(patience(60))
    one.keeper.keep(state(8), {})
    one.keeper.wait(patience(60))
    assert one.folder.rounds() == [8, 2]


def test_without_a_copy_it_is_written_before_the_state_changes(kept):
    one = kept(without_copy=True)
    handed = state(2)
    one.keeper.keep(handed, {})
    handed.learner["reference"].fill_(7)
    one.keeper.wait()
    assert torch.equal(one.folder.read(2).tensors["learner/reference"], torch.full((4,), 2.0))


@pytest.mark.parametrize(("rounds", "every", "due"), [(20, 3, True), (3, 3, True), (2, 3, False)])
def test_the_last_round_is_kept_in_a_long_run(kept, rounds, every, due):
    assert kept(rounds=rounds, every=every).keeper.due(rounds, record(rounds - 1)) is due


def failing(monkeypatch, code, call="write"):
    """Let what is done with checkpoints fail."""
    original = getattr(os, call)

    def fail(*given, **more):
        name = (
            given[0]
            if isinstance(given[0], str | os.PathLike)
            else os.readlink(f"/proc/self/fd/{given[0]}")
        )
        if "checkpoints" in str(name):
            raise OSError(code, os.strerror(code))
        return original(*given, **more)

    monkeypatch.setattr(os, call, fail)


def test_a_full_disk_keeps_the_old_checkpoint(kept, monkeypatch):
    one = kept()
    one.round(0)
    one.round(1)
    failing(monkeypatch, errno.ENOSPC)
    for round in range(2, 6):
        one.round(round)
    assert os.listdir(one.folder.path) == ["round-000002.safetensors"]
    assert one.notes == [
        "warning: the checkpoint of round 4 cannot be written (No space left on device); the run goes on, "
        "and the newest checkpoint is that of round 2"
    ]
    monkeypatch.undo()
    one.round(6)
    one.round(7)
    assert one.folder.rounds() == [8, 2]
    assert one.notes[1:] == ["checkpoints can be written again: the newest is that of round 8"]


def test_a_read_only_folder_is_said_once(kept, monkeypatch):
    one = kept()
    failing(monkeypatch, errno.EROFS, "open")
    for round in range(6):
        one.round(round)
    assert one.notes == [
        "warning: the checkpoint of round 2 cannot be written (Read-only file system); the run goes on, "
        "and there is none yet"
    ]


def test_a_disk_that_fails_to_sync_leaves_no_half_checkpoint(kept, monkeypatch):
    one = kept()

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("varangian.files.fsync", fail)
    one.round(0)
    one.round(1)
    assert os.listdir(one.folder.path) == []
    assert "(Input/output error)" in one.notes[0]


def test_a_folder_that_was_deleted_is_made_again_with_its_documents(kept):
    one = kept()
    one.round(0)
    one.round(1)
    shutil.rmtree(one.run.path)
    one.round(2)
    one.round(3)
    assert one.folder.rounds() == [4]
    assert {"config.yaml", "manifest.json", "rounds.jsonl"} < set(os.listdir(one.run.path))
    lines = (one.run.path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2, 3]


def test_damaged_checkpoints_of_a_run_that_begins_again_do_not_count(kept):
    first = kept(keep=1, every=4)
    for round in range(8):
        first.round(round)
    first.close()
    again = kept(keep=1, following=0)
    assert again.keeper.newest is None
    for round in range(4):
        again.round(round)
    assert again.folder.rounds() == [8, 4]
    for round in range(4, 10):
        again.round(round)
    assert again.folder.rounds() == [10]


def test_what_cannot_be_kept_does_not_end_the_run(kept):
    one = kept(own=lambda: {"a": object()})
    one.round(0)
    one.round(1)
    (said,) = one.notes
    assert "cannot be written (TypeError: run.a should be a plain value or a tensor. Found object)" in said


def test_a_run_that_goes_on_knows_scores_and_alarms(kept):
    first = kept(keep=1)
    for round, accuracy in enumerate([0.1, 0.2, 0.9, 0.9, 0.2, 0.2]):
        first.round(round, accuracy=accuracy, dropped={"w01": "bad"} if round == 1 else {})
    first.close()
    (first.folder.path / ".round-000008.safetensors.1").write_text("half")
    (first.folder.path / "round-000008.safetensors").write_text("damaged")
    again = kept(keep=1, following=6, before=first.folder.head(6))
    assert sorted(os.listdir(again.folder.path)) == [
        "round-000004.safetensors",
        "round-000006.safetensors",
        "round-000008.safetensors",
    ]
    assert again.keeper.newest == 6
    for round in range(6, 10):
        again.round(round, dropped={"w01": "bad"})
    assert again.folder.rounds() == [10, 4]
    assert again.folder.head(10)["alarms"]["first"] == 1
    assert again.folder.head(10)["score"]["value"] == 0.2
