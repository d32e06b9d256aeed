"""A tracker costs lines of its own, and nothing else of the run."""

import json

import pytest
from tests.extent import patience
from tests.trackers.own_trackers import Failing, Hanging, Leaving, Lines, Useless

from varangian.trackers import Followers, follower


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(follower, "PAUSE", 0.001)
    monkeypatch.setattr(follower, "SOON", patience(60))


@pytest.fixture
def followed(facts, record):
    """Some rounds of a run with trackers; what was noted."""

    def follow(*trackers, seconds=None):
        notes = []
        followers = Followers(trackers, facts, notes.append)
        followers.begin()
        for round in range(5):
            followers.round(record(round))
        followers.end({"outcome": "finished", "rounds": 5})
        followers.close(patience(60) if seconds is None else seconds)
        return notes

    return follow


def test_a_tracker_is_told_of_all_in_order(followed, tmp_path):
    path = tmp_path / "lines"
    assert followed(Lines(str(path))) == []
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        ["begin", "a-run", None, {}, 3],
        *(["round", round, 2.5] for round in range(5)),
        ["weights", ["w00", "w01", "w02"], 5],
        ["end", "finished", 5],
    ]


def test_what_it_keeps_is_there_when_the_run_goes_on(followed, facts, tmp_path):
    path = tmp_path / "lines"
    for _ in range(2):
        followed(Lines(str(path)), Lines(str(path)))
    assert json.loads((facts.folder / follower.KEPT).read_text()) == {
        "tests.trackers.own_trackers:Lines": {"id": "made"},
        "tests.trackers.own_trackers:Lines 2": {"id": "made"},
    }
    begins = [line for line in map(json.loads, path.read_text().splitlines()) if line[0] == "begin"]
    assert [kept for *_, kept, _ in begins] == [{}, {}, {"id": "made"}, {"id": "made"}]


@pytest.mark.parametrize("content", ["", "[]", '{"a": 3}', "\xff"])
def test_a_file_of_another_form_is_no_obstacle(followed, facts, tmp_path, content):
    (facts.folder / follower.KEPT).write_text(content, encoding="latin-1")
    assert followed(Lines(str(tmp_path / "lines"))) == []


def test_one_that_never_begins_is_said_once_and_its_lines_are_counted(followed):
    tracker = Failing("begin")
    named = "tests.trackers.own_trackers:Failing"
    failed, lacks = followed(tracker)
    assert failed.startswith(f"warning: tracker {named} failed: RuntimeError: no begin")
    assert "\x1b" not in failed
    assert failed.endswith("The run goes on")
    assert lacks == f"warning: tracker {named} lacks 5 of 5 rounds"
    assert tracker.rounds == tracker.ends == []


def test_one_that_begins_late_has_all(facts, record):
    tracker, notes = Failing("begin", times=3), []
    followers = Followers([tracker], facts, notes.append)
    followers.begin()
    for round in range(5):
        followers.round(record(round))
    assert tracker.began.wait(patience(30))
    followers.end({"outcome": "finished"})
    followers.close(patience(60))
    (failed,) = notes
    assert "no begin" in failed
    assert tracker.rounds == [0, 1, 2, 3, 4]


def test_the_lines_that_fail_are_counted(followed):
    tracker = Failing("round", times=2)
    failed, lacks = followed(tracker)
    assert "no round" in failed
    assert lacks.endswith("lacks 2 of 5 rounds")
    assert (tracker.rounds, len(tracker.ends)) == ([2, 3, 4], 1)


def test_what_is_not_needed_may_fail(followed):
    tracker = Failing("flush weights")
    (failed,) = followed(tracker)
    assert "no flush" in failed or "no weights" in failed
    assert (tracker.rounds, len(tracker.ends)) == ([0, 1, 2, 3, 4], 1)


def test_a_tracker_cannot_end_the_process(followed):
    failed, lacks = followed(Leaving())
    assert "it called sys.exit(good-bye)" in failed
    assert "lacks 5 of 5" in lacks


def test_one_that_cannot_work_as_it_is_set_up_is_not_tried_again(followed):
    tracker = Useless()
    failed, lacks = followed(tracker)
    assert failed.endswith("failed: there is no login. Use `login`. The run goes on")
    assert "lacks 5 of 5" in lacks
    assert tracker.failed == 1


def test_a_round_never_waits_for_one_that_hangs(facts, record, monkeypatch):
    monkeypatch.setattr(follower, "RECORDS", 4)
    notes, tracker, sound = [], Hanging("round"), Failing("")
    followers = Followers([tracker, sound], facts, notes.append)
    followers.begin()
    followers.round(record(0))
    assert tracker.there.wait(patience(30))  # it has the first record in its hand
    for round in range(1, 10):
        followers.round(record(round))
    tracker.go.set()
    followers.end({"outcome": "finished"})
    followers.close(patience(60))
    assert tracker.rounds == [0, 6, 7, 8, 9]
    assert [note for note in notes if "Hanging" in note][-1].endswith("lacks 5 of 10 rounds")


def test_the_end_of_a_run_does_not_wait_for_ever(followed, monkeypatch):
    monkeypatch.setattr(follower, "SOON", 0.01)
    tracker = Hanging("end")
    try:
        notes = followed(tracker, seconds=0.05)
    finally:
        tracker.go.set()
    assert any(note.startswith("waiting for tracker") for note in notes)
    assert "has not taken the end of the run in time" in notes[-1]


def test_rounds_that_were_not_sent_are_counted(followed):
    tracker = Failing("")
    tracker.unsent = 2
    (lacks,) = followed(tracker)
    assert lacks.endswith("lacks 2 of 5 rounds")


def test_where_to_look_is_said(followed):
    tracker = Failing("")
    tracker.shown_at = "http://tracker/run"
    assert followed(tracker) == ["tracker tests.trackers.own_trackers:Failing: http://tracker/run"]


def test_a_run_that_does_not_begin_leaves_nothing(facts, record):
    tracker, notes = Failing("begin"), []
    followers = Followers([tracker], facts, notes.append)
    followers.round(record(0))
    followers.end({"outcome": "failed"})
    followers.close()
    assert (tracker.failed, notes) == (0, [])


def test_a_disk_that_is_full_is_no_obstacle(followed, monkeypatch, tmp_path):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(follower, "write_atomically", full)
    path = tmp_path / "lines"
    (note,) = followed(Lines(str(path)))
    assert "trackers.json cannot be written" in note
    assert len(path.read_text().splitlines()) == 8
