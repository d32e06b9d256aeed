"""Simulations of workers that come and go: exact, in virtual time."""

import errno
import os
import re
from types import SimpleNamespace

import pytest

from varangian.launch import RunError, run

STRAGGLER = "delays={steps: {step: 1, factor: 10, workers: [0]}}"
EVERY = {
    "sync": ["participation=sync"],
    "async": ["participation=async"],
    "fedavg": ["participation={fedavg: {participants: 4}}"],
    "fedlaavg": ["participation={fedlaavg: {participants: 3}}"],
    "asap": ["participation=asap", "workers=8"],
}


@pytest.mark.parametrize("way", EVERY)
def test_every_way_learns_and_repeats_itself_to_the_last_bit(carried_out, way):
    settings = [*EVERY[way], STRAGGLER, "rounds=30", "server.deadline=60", "server.wait_floor=20"]
    (first, records, _), (again, _, _) = carried_out(*settings), carried_out(*settings)
    other, _, _ = carried_out(*settings, "seed=2")
    assert (first.outcome, first.rounds) == ("finished", 30)
    assert first.digest == again.digest != other.digest
    assert first.accuracy > 0.85
    assert all(record.missing == () or way in {"async", "asap"} for record in records)
    assert (records[0].ages is None) == (way == "sync")


def waited(records):
    return sum(record.seconds["wait"] for record in records)


def test_a_straggler_holds_up_those_who_wait_for_it(carried_out):
    _, sync, _ = carried_out(STRAGGLER, "rounds=12", "workers=8", "server.wait_floor=20")
    _, free, _ = carried_out(STRAGGLER, "rounds=12", "workers=8", "participation=async")
    assert waited(sync) > 11 * 10
    assert all(record.missing == () for record in sync)
    assert waited(free) == pytest.approx(12)
    ages = [record.ages["w00"] for record in free if "w00" in record.ages]
    assert ages == [9], "ten steps of the others are one of its own"


def test_a_vector_that_is_too_old_never_counts(carried_out):
    _, records, _ = carried_out(STRAGGLER, "rounds=25", "participation={async: {tau: 5}}")
    assert all("w00" not in record.ages for record in records)


def test_asap_uses_everybody_equally_often(carried_out):
    _, records, _ = carried_out("workers=8", "rounds=24", "participation=asap")
    counts = [sum(f"w{i:02}" in record.ages for record in records) for i in range(8)]
    assert counts == [24 * 4 // 8] * 8
    assert {len(record.ages) for record in records} == {4}


def test_fedlaavg_takes_turns_and_keeps_the_latest_of_all(carried_out):
    groups = "availability={alternating: {period: 4}}"
    _, records, notes = carried_out("participation={fedlaavg: {participants: 2}}", groups, "rounds=8")
    new = [[w for w, age in record.ages.items() if age == 0] for record in records]
    assert new[:2] == [["w00", "w01"]] * 2
    assert all(set(chosen) <= {"w02", "w03", "w04"} for chosen in (*new[2:4], *new[6:]))
    assert new[4:6] == [["w00", "w01"]] * 2
    assert all(len(record.ages) == 5 for record in records[3:])
    (note,) = notes
    assert note.startswith("The latest vectors of 5 workers take up to ")


def test_who_is_away_when_its_turn_comes_loses_nothing(carried_out):
    """Three of four are chosen; the fourth still asks when its half goes, and is first when it is back."""
    settings = ["workers=8", "f=0", "availability={alternating: {period: 4}}", "rounds=12"]
    _, records, _ = carried_out(*settings, "participation={fedavg: {participants: 3}}")
    chosen = [set(record.ages) for record in records]
    assert chosen[:2] == [{"w00", "w01", "w02"}, {"w00", "w01", "w03"}]
    assert all(len(names) == 3 for names in chosen)
    last = dict.fromkeys((f"w{i:02}" for i in range(8)), -1)
    for round, names in enumerate(chosen):
        there = range(4) if round % 4 < 2 else range(4, 8)
        oldest = sorted((last[f"w{i:02}"], f"w{i:02}") for i in there)[:3]
        assert names == {name for _, name in oldest}
        last |= dict.fromkeys(names, round)


@pytest.mark.parametrize("kept", ["store: bfloat16", "folder: {folder}"])
def test_a_store_on_disk_changes_no_bit_and_one_of_half_the_size_does(carried_out, tmp_path, kept):
    disk = tmp_path / "disk"
    disk.mkdir()
    kept = kept.replace("{folder}", str(disk))
    settings = ["aggregator=median", "rounds=6"]
    plain, _, _ = carried_out(*settings, "participation={fedlaavg: {participants: 3}}")
    other, _, (note,) = carried_out(*settings, f"participation={{fedlaavg: {{participants: 3, {kept}}}}}")
    assert (plain.digest == other.digest) == ("folder" in kept)
    assert ("bfloat16" in note, str(disk) in note) == ("bfloat16" in kept, "folder" in kept)
    assert [*disk.iterdir()] == []


def test_a_byzantine_worker_is_outvoted_by_those_who_are_away(carried_out):
    attack = ["byzantine.attack=sign_flip", "byzantine.count=1", "rounds=60", "worker.momentum=0"]
    way = "participation={fedlaavg: {participants: 2}}"
    lost, _, _ = carried_out(*attack, way, "aggregator=mean", "byzantine.attack={sign_flip: {scale: 20}}")
    kept, records, _ = carried_out(*attack, way, "aggregator=median")
    assert lost.accuracy < 0.6 < 0.85 < kept.accuracy
    faulty, records, _ = carried_out(way, "byzantine.attack=non_finite", "byzantine.count=1", "rounds=9")
    assert all("w04" not in record.ages for record in records)
    assert any(record.dropped == {"w04": "not finite"} for record in records)
    assert faulty.outcome == "finished"


def test_a_disk_without_room_is_refused_before_the_run(small, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=7))
    config = small(f"participation={{fedlaavg: {{folder: {tmp_path}}}}}")
    with pytest.raises(RunError, match=r"free for the latest vectors of 5 workers\. Found 7 bytes"):
        run(config, observe=lambda record: None, note=lambda text: None)
    assert not (tmp_path / "runs").exists()


def test_rows_in_a_file_change_no_bit(carried_out, tmp_path):
    settings = ["aggregator=nnm+trimmed_mean", "rounds=4"]
    plain, _, _ = carried_out(*settings)
    other, _, (note,) = carried_out(*settings, f"server.rows_folder={tmp_path}")
    assert plain.digest == other.digest
    assert note.startswith("The vectors of a round take ")
    assert f"in a file in {tmp_path}: 5 rows of " in note


def test_a_disk_without_room_for_the_rows_is_refused_before_the_run(small, tmp_path, monkeypatch):
    config = small(f"server.rows_folder={tmp_path}")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=7))
    with pytest.raises(RunError, match=r"for 5 vectors\. Found 7 bytes"):
        run(config, observe=lambda record: None, note=lambda text: None)
    assert not (tmp_path / "runs").exists()


def test_on_a_full_disk_vectors_count_in_their_own_round(carried_out, tmp_path, monkeypatch):
    writes, write = [], os.pwrite

    def pwrite(fd, data, at):
        writes.append(at)
        if len(writes) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    settings = "participants: 2, gather: 5.0, rule: mean"
    result, records, notes = carried_out(
        f"aggregator={{fedlaavg: {{{settings}, folder: {tmp_path}}}}}", "f=0", "rounds=8"
    )
    assert result.outcome == "finished"
    (warning,) = [note for note in notes if note.startswith("warning:")]
    assert re.search(r"vector of w02 cannot be written to .*: No space left on device", warning)
    for record in records:
        assert sorted(record.ages.values())[:2] == [0, 0], "those who pushed count, kept or not"
    assert max(records[-1].ages.values()) > 2, "and of those who are away the last that was kept"


def test_latest_vectors_that_do_not_fit_are_refused_before_the_run(small, monkeypatch):
    monkeypatch.setattr("varangian.launch.server_run.available_memory", lambda: 1 << 20)
    with pytest.raises(RunError, match="latest vectors in a `folder` on disk, or half as large"):
        run(small("participation=fedlaavg"), observe=lambda record: None, note=lambda text: None)
