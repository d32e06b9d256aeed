"""Files that are read again when they change, and what happens while they cannot be read."""

import errno
import os
from types import SimpleNamespace

import pytest
from tests.exhausted import no_descriptors

from varangian.protos.identity.watched_files import Change, WatchedFiles
from varangian.protos.network.descriptors import Spare


@pytest.fixture
def time():
    """Seconds of a clock, and of the wall long after the files were written."""
    return SimpleNamespace(now=0.0)


@pytest.fixture
def spare():
    made = Spare()
    yield made
    made.close()


@pytest.fixture
def watched(tmp_path, time, spare):
    path = tmp_path / "list"
    path.write_text("one")
    return WatchedFiles((path,), path.read_text, spare, clock=lambda: time.now, wall=lambda: 4e9 + time.now)


def replace(path, text):
    """As the authority does it; the file beside it is to be there already."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    return lambda: fresh.replace(path)


def look(watched, time, seconds=1.0):
    time.now += seconds
    return watched.look()


def test_a_change_is_seen_within_a_second_and_not_looked_for_more_often(watched, time, tmp_path):
    (tmp_path / "list").write_text("two")
    assert look(watched, time, 0.9) is Change.NONE
    assert watched.value == "one"
    assert look(watched, time, 0.1) is Change.CHANGED
    assert watched.value == "two"
    assert look(watched, time) is Change.NONE


def test_a_change_counts_as_seen_only_once_it_was_read(watched, time, tmp_path):
    path = tmp_path / "list"
    path.write_bytes(b"\xff")
    assert look(watched, time) is Change.FAILED
    assert (watched.value, watched.failure.since, watched.failure.missing) == ("one", 4e9 + 1, False)
    assert look(watched, time, 5) is Change.NONE  # nothing new: said once
    assert watched.failure.since == 4e9 + 1
    path.unlink()
    assert look(watched, time) is Change.FAILED
    assert (watched.failure.missing, watched.failure.began, watched.failure.since) == (True, 7, 4e9 + 1)
    path.write_text("one")
    assert look(watched, time) is Change.RECOVERED
    assert watched.failure is None


def test_a_file_that_has_just_changed_is_read_once_more(tmp_path, time, spare):
    """It may change again within the tick of the clock of its file system."""
    path = tmp_path / "list"
    path.write_text("one")
    wall = path.stat().st_ctime + 0.5
    reads = []

    def read():
        reads.append(path.read_text())
        return reads[-1]

    watched = WatchedFiles((path,), read, spare, clock=lambda: time.now, wall=lambda: wall + time.now)
    for _ in range(5):
        look(watched, time)
    assert reads == ["one"] * 3


def test_the_spare_descriptor_reads_when_there_is_no_other(watched, time, tmp_path):
    change = replace(tmp_path / "list", "two")
    with no_descriptors():
        change()
        assert look(watched, time) is Change.CHANGED
        assert watched.value == "two"
        assert look(watched, time) is Change.NONE


def test_without_any_descriptor_it_is_read_as_soon_as_there_is_one(watched, time, spare, tmp_path):
    """Something else took the spare one, too."""
    path = tmp_path / "list"
    change = replace(path, "two")
    spare.close()
    with no_descriptors() as taken:
        change()
        for _ in range(3):
            look(watched, time)
        assert (watched.value, watched.failure.error.errno) == ("one", errno.EMFILE)
        os.close(taken.pop())
        assert look(watched, time) is Change.CHANGED
    assert (watched.value, watched.failure) == ("two", None)
