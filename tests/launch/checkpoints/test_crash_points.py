"""A server that is killed at any call to the system while it writes: what is left of its run."""

import json
import os
import threading

import pytest
from tests.extent import everything
from tests.launch.checkpoints.kit import Kept

from varangian import files
from varangian.launch.checkpoints.folder import CheckpointFolder

CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "link")
KILLED, DONE = 9, 0
ROUNDS = 6


def die_at(k):
    """Let this process end at its k-th call that changes files, without a word, and before it is done."""
    lock, left = threading.Lock(), [k]

    def counted(original):
        def call(*given, **more):
            with lock:
                left[0] -= 1
                if not left[0]:
                    os._exit(KILLED)
            return original(*given, **more)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    files.fsync = os.fsync


def killed_at(k, path, **given):
    """Rounds in a process that is killed so; returns its exit status, and the checkpoints it knew of."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        status = KILLED + 1
        try:
            os.close(reads)
            one = Kept(path, keep=1, **given)
            tell = os.write
            die_at(k)
            for round in range(given.get("following", 0), ROUNDS):
                one.round(round, accuracy=0.5)
                if one.keeper.newest is not None:
                    tell(writes, bytes([one.keeper.newest]))
            one.close()
            status = DONE if not one.notes else KILLED + 1
        finally:
            os._exit(status)
    os.close(writes)
    with os.fdopen(reads, "rb") as told:
        known = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), max(known, default=0)


def rounds_on_record(path):
    content = (path / "rounds.jsonl").read_bytes()
    return [json.loads(line)["round"] for line in content[: content.rfind(b"\n") + 1].splitlines()]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("without_copy", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_kill_at_any_call_of_a_write_leaves_a_checkpoint(without_copy, tmp_path, kept):
    """Each can be read and has the lines of all rounds before it; none that was known of is lost."""
    status, k = KILLED, 1
    while status == KILLED:
        path = tmp_path / f"run-{k}"
        status, known = killed_at(k, path, without_copy=without_copy)
        assert status in (KILLED, DONE)
        found = CheckpointFolder(path).rounds()
        assert max(found, default=0) >= known
        for round in found:
            assert CheckpointFolder(path).read(round).plain["round"] == round
            assert {*range(round)} <= {*rounds_on_record(path)}
        kept(path.name, following=max(found, default=0)).close()
        left = os.listdir(path / "checkpoints") if found else []
        assert not [name for name in left if name.startswith(".")], "what was half written is removed"
        k += 1 if everything() else 23
    assert k > 40, "there are more calls than that"
    assert found == [6]
