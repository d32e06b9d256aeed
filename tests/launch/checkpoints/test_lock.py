"""The lock of a run folder."""

import json
import os
import re
import subprocess
import sys

import pytest

from varangian.launch import RunError
from varangian.launch.checkpoints import lock
from varangian.launch.checkpoints.lock import FolderLock

HOLDER = """
import pathlib, sys
from varangian.launch.checkpoints.lock import FolderLock
held = FolderLock.take(pathlib.Path(sys.argv[1]), print)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def take(tmp_path):
    notes, held = [], []

    def taken(**given):
        held.append(FolderLock.take(tmp_path, notes.append, **given))
        return held[-1]

    taken.notes = notes
    yield taken
    for one in held:
        one.release()


def lines(folder):
    return [json.loads(line) for line in (folder / "lock").read_text().splitlines() if line]


def rewrite(folder, **changes):
    """The last line with other values, as another process would have written it."""
    known = {**lines(folder)[-1], **changes}
    (folder / "lock").write_text(json.dumps(known) + "\n")


def test_a_lock_says_who_works_there_and_that_it_has_ended(take, tmp_path):
    first = take(command=["varangian", "server"])
    (known,) = lines(tmp_path)
    assert (known["pid"], known["epoch"], known["command"]) == (os.getpid(), 0, ["varangian", "server"])
    assert known["ended"] is None
    first.release()
    first.release()
    assert [one["ended"] is None for one in lines(tmp_path)] == [True, False]
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_each_start_has_the_next_epoch(take):
    for epoch in range(3):
        one = take()
        assert one.epoch == epoch
        one.release()
    assert take(least=7).epoch == 7
    assert take.notes == []


def test_a_second_server_is_refused_and_a_stale_lock_is_not(take, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError) as refused:
            take()
        who = rf"another server \(process {holder.pid} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d\)"
        assert re.fullmatch(
            rf"{who} works in {tmp_path}; stop it, or wait until it has ended", str(refused.value)
        )
        with pytest.raises(RunError, match="works in"):
            take(force=True)
        holder.kill()
    assert take().epoch == 1
    (said,) = take.notes
    assert re.fullmatch(
        rf"{who} worked in {tmp_path} and ended without saying so; this one takes over", said
    )


def test_a_server_on_another_machine_is_believed_to_live(take, tmp_path):
    take().release()
    rewrite(tmp_path, ended=None, host="elsewhere", boot="another")
    with pytest.raises(RunError, match=r"on elsewhere, .* on another machine; .*, add --force"):
        take()
    assert take(force=True).epoch == 1


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"host": "another-container"}, id="a container that was made anew"),
        pytest.param({"boot": "before"}, id="a machine that was started again"),
        pytest.param({"host": "elsewhere", "boot": "another", "ended": "2026-01-01T00:00:00"}, id="ended"),
    ],
)
def test_a_server_that_cannot_live_is_taken_over(take, tmp_path, changes):
    take().release()
    rewrite(tmp_path, **{"ended": None, "pid": 1, **changes})
    assert take().epoch == 1
    assert len(take.notes) == (changes.get("ended") is None)


def test_without_locks_the_process_tells(take, tmp_path, monkeypatch):
    take().release()

    def unsupported(descriptor, how):
        raise OSError("no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    parent = os.getppid()
    rewrite(tmp_path, ended=None, pid=parent, started=lock.started(parent))
    with pytest.raises(RunError, match=f"process {parent} "):
        take()
    rewrite(tmp_path, ended=None, pid=parent, started="1")
    assert take().epoch == 1


@pytest.mark.parametrize("torn", ['{"pid": 1, "epo', "", "3", "[]", "\x00\x00\x00"])
def test_a_line_that_was_cut_off_is_passed_over(take, tmp_path, torn):
    take().release()
    with (tmp_path / "lock").open("a") as file:
        file.write(torn)
    second = take()
    second.release()
    assert (second.epoch, take().epoch) == (1, 2)


def test_a_file_that_was_deleted_is_made_again_and_locked(take, tmp_path):
    first = take()
    (tmp_path / "lock").unlink()
    first.restore()
    first.restore()
    assert [line["ended"] for line in lines(tmp_path)] == [None]
    with pytest.raises(RunError, match="works in"):
        take()
    (tmp_path / "lock").unlink()
    second = take()
    with pytest.raises(RunError, match=r"works in .* by now"):
        first.restore()
    assert second.epoch == 0


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"gone/lock cannot be written: No such file or directory\. It says"):
        FolderLock.take(tmp_path / "gone", print)
