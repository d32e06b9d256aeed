"""Event files, read back: frame by frame, and by TensorBoard itself."""

import struct

import pytest

from varangian.trackers import Followers, TensorBoard

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed")


@pytest.fixture
def follow(facts, record):
    from dataclasses import replace

    def follow(tracker, rounds, following=None):
        notes = []
        followers = Followers([tracker], replace(facts, following=following), notes.append)
        followers.begin()
        for round in rounds:
            followers.round(record(round, loss=1.0 + round))
        followers.end({"outcome": "finished", "reason": "all rounds are done", "rounds": 3})
        followers.close()
        return notes

    return follow


def events(file):
    """A file of records: length, its checksum, an event, its checksum."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def test_each_round_is_an_event_with_its_numbers(follow, facts):
    (where,) = follow(TensorBoard(), range(3))
    assert where == f"tracker tensorboard: tensorboard --logdir {facts.folder.parent}"
    (file,) = (facts.folder / "tensorboard").iterdir()
    found = {
        event.step: {value.tag: value.simple_value for value in event.summary.value}
        for event in events(file)
        if any(value.tag == "loss" for value in event.summary.value)
    }
    assert {step: numbers["loss"] for step, numbers in found.items()} == {0: 1.0, 1: 2.0, 2: 3.0}
    assert found[1]["weight/w00"] == 0.75
    texts = {
        value.tag: value.tensor.string_val[0].decode()
        for event in events(file)
        for value in event.summary.value
        if value.HasField("tensor")
    }
    assert "lr: 0.5" in texts["settings/text_summary"]
    assert "| w02 | 0 | 3 | 3 |" in texts["worker weights/text_summary"]
    assert texts["result/text_summary"] == "finished: all rounds are done"


def test_a_folder_of_many_runs_has_one_for_each(follow, tmp_path):
    follow(TensorBoard(folder=str(tmp_path / "all")), range(1))
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["a-run"]


@pytest.mark.exhaustive  # the events are read above
def test_tensorboard_shows_a_run_that_went_back_to_a_checkpoint_as_one(follow, facts):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    follow(TensorBoard(), range(4))
    follow(TensorBoard(), range(2, 6), following=2)
    shown = accumulator.EventAccumulator(str(facts.folder / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [
        (round, 1.0 + round) for round in range(6)
    ]
    assert "settings/text_summary" in shown.Tags()["tensors"]
    assert "_hparams_/session_start_info" in shown.summary_metadata
