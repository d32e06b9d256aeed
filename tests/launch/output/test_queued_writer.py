"""Writers that never block: slow readers, full disks, readers that leave; with real pipes and files."""

import contextlib
import errno
import io
import json
import os
import threading

import pytest

from varangian.launch.output import queued_writer as module
from varangian.launch.output.queued_writer import Descriptor, QueuedWriter, Stream, writer

SOON = 60.0
"""Seconds for a thread on a busy machine; nothing waits that long unless it fails."""


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def pipe():
    ends = [*os.pipe()]
    yield ends
    for end in ends:
        if end is not None:
            os.close(end)


def lines(count, size=100):
    return [f"{json.dumps({'line': i, 'fill': 'x' * size})}\n" for i in range(count)]


def test_an_unread_pipe_stops_nobody_and_the_newest_lines_survive(pipe, warnings):
    out = QueuedWriter(
        Descriptor(pipe[1]), "out", warnings.append, limit=10_000, gap=lambda lost: f'{{"lost": {lost}}}\n'
    )
    os.set_blocking(pipe[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:  # until the pipe is full
            os.write(pipe[1], b"{}\n")
    os.set_blocking(pipe[1], True)
    for line in lines(5000):
        out.write(line)
    assert not out.drain(0.01)
    received = []

    def read():
        with os.fdopen(pipe[0], "rb") as stream:
            received.extend(stream.read().splitlines())

    reader = threading.Thread(target=read)
    reader.start()
    assert out.close(SOON)
    os.close(pipe[1])
    reader.join(SOON)
    pipe[:] = [None, None]
    found = [json.loads(line) for line in received]  # no line is torn
    gap = sum(line["lost"] for line in found if "lost" in line)
    numbers = [line["line"] for line in found if "line" in line]
    assert gap == out.lost == 5000 - len(numbers) > 0
    assert numbers == sorted(numbers)
    assert numbers[-1] == 4999
    assert warnings == []


def test_a_reader_that_leaves_is_told_of_once(pipe, warnings):
    out = QueuedWriter(Descriptor(pipe[1]), "standard output", warnings.append)
    os.close(pipe[0])
    pipe[0] = None
    for line in lines(100):
        out.write(line)
    assert out.close(SOON)
    assert warnings == [
        "standard output cannot be written (its reader has gone); the run goes on, and what it would have "
        "shown is left out"
    ]


class FullDisk(Descriptor):
    """A file on a disk that takes 150 more bytes and is then full for a few attempts."""

    def __init__(self, descriptor, monkeypatch, attempts):
        super().__init__(descriptor)
        self.room, self.attempts = 150, attempts
        self.refused, self.freed = threading.Event(), threading.Event()
        self._write = os.write
        monkeypatch.setattr(os, "write", self.limited)

    def limited(self, descriptor, data):
        if descriptor != self.descriptor:
            return self._write(descriptor, data)
        if self.room == 0 and self.attempts > 0:
            self.attempts -= 1
            self.refused.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.room:
            data = bytes(data[: self.room])
            self.room -= len(data)
        elif self.attempts == 0:
            self.freed.set()
        return self._write(descriptor, data)


@pytest.mark.parametrize("flags", [os.O_APPEND, 0])
def test_a_disk_that_is_full_for_a_while_loses_and_tears_nothing(tmp_path, monkeypatch, warnings, flags):
    monkeypatch.setattr(module, "RETRY", 0.001)
    path = tmp_path / "rounds.jsonl"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags)
    disk = FullDisk(descriptor, monkeypatch, attempts=3)
    out = QueuedWriter(disk, "rounds.jsonl", warnings.append)
    expected = lines(50)
    for line in expected:
        out.write(line)
    assert disk.freed.wait(SOON)
    assert out.close(SOON)
    assert path.read_text() == "".join(expected)
    assert out.lost == 0
    assert len(warnings) == 1
    assert "rounds.jsonl cannot be written (No space left on device); the run goes on" in warnings[0]
    os.close(descriptor)


def test_a_disk_that_stays_full_keeps_whole_lines_and_counts_the_others(tmp_path, monkeypatch, warnings):
    path = tmp_path / "rounds.jsonl"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    disk = FullDisk(descriptor, monkeypatch, attempts=10**9)
    out = QueuedWriter(disk, "rounds.jsonl", warnings.append)
    out.write(lines(1)[0])
    assert out.drain(SOON)
    for line in lines(3):
        out.write(line)
    assert disk.refused.wait(SOON)
    assert not out.drain(SOON)
    assert out.waiting() == "".join(lines(3)).encode()
    assert out.close(SOON)
    assert path.read_text() == lines(1)[0]
    assert (out.lost, len(warnings)) == (3, 1)
    os.close(descriptor)


def test_the_encoding_of_the_stream_is_kept_to(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        out = writer(stream, "standard output")
        out.write("runs/\xfcn\xef\n")
        assert out.close(SOON)
    assert (tmp_path / "out").read_bytes() == b"runs/\\xfcn\\xef\n"


def test_a_stream_without_a_descriptor(warnings):
    stream = io.StringIO()
    out = QueuedWriter(Stream(stream), "out", warnings.append)
    out.write("one\n")
    assert out.drain(SOON)
    assert stream.getvalue() == "one\n"
    stream.close()
    out.write("two\n")
    assert out.close(SOON)
    assert len(warnings) == 1


class Batches:
    """A sink that keeps what is written at once."""

    def __init__(self):
        self.found = []

    def write(self, data):
        self.found.append(data)
        return b"", None


def test_lines_that_are_collected_are_written_at_once_when_somebody_waits_for_them(warnings):
    sink = Batches()
    out = QueuedWriter(sink, "out", warnings.append, linger=1e6)
    for line in ("a\n", "b\n", "c\n"):
        out.write(line)
    assert out.drain(SOON)
    out.write("d\n")
    assert out.close(SOON)
    assert sink.found == [b"a\nb\nc\n", b"d\n"]


def test_lines_that_are_collected_are_written_when_they_are_many(warnings):
    sink = Batches()
    out = QueuedWriter(sink, "out", warnings.append, linger=1e6)
    written = threading.Event()
    sink.write = lambda data: written.set() or (b"", None)
    for line in lines(1000):
        out.write(line)
    assert written.wait(SOON)
    assert out.close(SOON)
