"""The folder of a run that goes on: what is kept of it, and what is cut off."""

import csv
import json
import shutil

import pytest

from varangian.launch import RunError
from varangian.launch.output.chain import links
from varangian.launch.output.files import mend
from varangian.launch.output.run_folder import RunFolder
from varangian.server.observability.record import RoundRecord


def record(round, **fields):
    return RoundRecord(**{"round": round, "dropped": {}, "missing": (), "seconds": {}} | fields)


@pytest.fixture
def folder(small):
    """The folder of a run that was killed after three rounds."""
    made = RunFolder.create(small(), ["varangian", "run"])
    for round in range(3):
        made.observe(record(round, loss=3.0 - round))
    made.close()
    return made.path


def rounds(path):
    return [json.loads(line)["round"] for line in (path / "rounds.jsonl").read_text().splitlines()]


def rows(path):
    return [int(row["round"]) for row in csv.DictReader((path / "metrics.csv").read_text().splitlines())]


def test_rounds_that_are_done_again_have_two_lines_and_one_row(folder, small):
    again = RunFolder.reopen(folder, small(), 1, elapsed=100.0)
    again.observe(record(1, loss=2.0))
    again.observe(record(2, loss=1.0))
    again.close()
    assert rounds(folder) == [0, 1, 2, 1, 2]
    assert rows(folder) == [0, 1, 2]
    last = [*csv.DictReader((folder / "metrics.csv").read_text().splitlines())][-1]
    assert float(last["time"]) >= 100
    again = RunFolder.reopen(folder, small(), 2)
    again.close()
    assert rows(folder) == [0, 1]


def test_a_line_that_was_cut_off_is_mended(folder, small):
    whole = (folder / "rounds.jsonl").read_bytes()
    with (folder / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 3, "lo')
    with (folder / "metrics.csv").open("ab") as file:
        file.write(b"3,1.0")
    again = RunFolder.reopen(folder, small(), 3)
    assert again.mended == 16
    assert (folder / "rounds.jsonl").read_bytes() == whole
    again.close()
    assert rows(folder) == [0, 1, 2]


def test_the_last_line_is_found_in_a_long_file(tmp_path):
    path = tmp_path / "rounds.jsonl"
    assert mend(path) == 0
    path.write_bytes(b"first\n" + b"x" * 200_000)
    assert mend(path) == 200_000
    assert path.read_bytes() == b"first\n"
    assert mend(path) == 0
    path.write_bytes(b"no line")
    assert (mend(path), path.read_bytes()) == (7, b"")


def test_a_run_that_goes_on_has_no_result_and_keeps_its_documents(folder, small):
    before = (folder / "config.yaml").read_bytes()
    (folder / "result.json").write_text("{}")
    again = RunFolder.reopen(
        folder, small("rounds=9"), 3, documents={"config.epoch-1.yaml": b"rounds: 9\n"}
    )
    again.close()
    again.discard()
    assert (folder / "config.yaml").read_bytes() == before
    assert (folder / "config.epoch-1.yaml").read_bytes() == b"rounds: 9\n"
    assert not (folder / "result.json").exists()


def test_a_run_that_cannot_go_on_keeps_its_result(folder, small, monkeypatch):
    (folder / "result.json").write_text("{}")

    def full(path, content, mode=None):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("varangian.launch.output.run_folder.write_atomically", full)
    with pytest.raises(RunError, match="cannot go on, as it cannot be written: No space left on device"):
        RunFolder.reopen(folder, small(), 3)
    assert (folder / "result.json").read_text() == "{}"


def test_other_metrics_have_other_columns(folder, small):
    again = RunFolder.reopen(folder, small(), 2, metrics=("mae",))
    again.observe(record(2, loss=1.0, metrics={"mae": 0.5}))
    again.close()
    found = [*csv.DictReader((folder / "metrics.csv").read_text().splitlines())]
    assert [row["mae"] for row in found] == ["", "", "0.5"]
    assert [row["loss"] for row in found] == ["3.0", "2.0", "1.0"]


def test_what_is_no_folder_of_a_run_is_named(tmp_path, small):
    with pytest.raises(RunError, match=r"should be the folder of a run\. There is no .*config\.yaml"):
        RunFolder.reopen(tmp_path, small(), 3)


def test_a_place_is_behind_the_lines_before_it(folder, small):
    again = RunFolder.reopen(folder, small(), 3)
    place = again.place
    assert (place.lines, place.bytes) == (3, (folder / "rounds.jsonl").stat().st_size)
    again.observe(record(3))
    again.sync(again.place)
    assert again.place.bytes == (folder / "rounds.jsonl").stat().st_size
    assert (again.place.lines, place.lines) == (4, 3)
    again.close()


def test_lines_that_are_not_on_the_disk_are_told(folder, small, monkeypatch):
    again = RunFolder.reopen(folder, small(), 3, warn=lambda text: None)

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varangian.launch.output.queued_writer.os.write", full)
    again.observe(record(3))
    with pytest.raises(OSError, match=r"No space left on device: '.*rounds\.jsonl'"):
        again.sync(again.place)
    monkeypatch.undo()
    again.close()
    assert rounds(folder) == [0, 1, 2, 3]


def test_a_folder_that_has_gone_is_made_again_with_its_records(folder, small):
    again = RunFolder.reopen(folder, small(), 3, warn=lambda text: None)
    shutil.rmtree(folder)
    again.observe(record(3))
    again.flush()
    again.restore()
    again.observe(record(4))
    again.close()
    assert rounds(folder) == rows(folder) == [0, 1, 2, 3, 4]
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "manifest.json",
        "metrics.csv",
        "rounds.jsonl",
    }


def test_the_first_record_of_a_run_that_goes_on_says_so(folder, small):
    with (folder / "rounds.jsonl").open("ab") as file:
        file.write(b"{")
    again = RunFolder.reopen(folder, small(), 2, resumed={"epoch": 1})
    for round in (2, 3):
        again.observe(record(round))
    again.close()
    lines = (folder / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    found = [*links(lines)]
    assert [link.record["resumed"] for link in found[3:]] == [{"round": 2, "epoch": 1, "mended": 1}, None]
    assert [link.before for link in found[1:]] == [link.digest for link in found[:-1]]
    assert again.place.head == found[-1].digest
