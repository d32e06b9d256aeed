"""Sealed payloads, against AES-GCM by the book, over sockets that take and give as little as they like."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples

from varangian.protos import seal

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY = bytes(range(32))
SIZES = (1, 16, seal.RECORD - 1, seal.RECORD, seal.RECORD + 1, 3 * seal.RECORD + 5)


def by_the_book(data, key=KEY):
    """Each record, as the documentation says it is."""
    pieces = [data[at : at + 262_144] for at in range(0, len(data), 262_144)]
    return [
        AESGCM(key).encrypt(number.to_bytes(12, "big"), piece, None) for number, piece in enumerate(pieces)
    ]


class Socket:
    """Takes and gives at most so many bytes at a time; None is a time at which it is not ready."""

    def __init__(self, given=b"", counts=()):
        self.given, self.taken = deque([given] if given else []), bytearray()
        self._counts = iter(counts)
        self.ended = False

    def _count(self):
        count = next(self._counts, 1 << 30)
        if count is None:
            raise BlockingIOError
        return count

    def recv_into(self, memory):
        count = min(self._count(), len(memory))
        if not self.given:
            if self.ended:
                return 0
            raise BlockingIOError
        piece = self.given.popleft()
        memory[: min(count, len(piece))] = piece[:count]
        if piece[count:]:
            self.given.appendleft(piece[count:])
        return min(count, len(piece))

    def send(self, data):
        count = self._count()
        self.taken += data[:count]
        return min(count, len(data))


def read(sealed, size, pieces=(1 << 20,)):
    """All of a payload, or what there is of it before its end, into memory of these sizes in turn."""
    found, again = bytearray(), 0
    while len(found) < size:
        memory = bytearray(min(pieces[len(found) % len(pieces)], size - len(found)))
        try:
            count = sealed.recv_into(memoryview(memory))
        except BlockingIOError:
            again += 1
            assert again < 1000, "nothing more comes"
            continue
        if not count:
            break
        found += memory[:count]
    return bytes(found)


def written(sealed, data, pieces=100_000):
    view = memoryview(data)
    for at in range(0, len(view), pieces):
        rest = view[at : at + pieces]
        while rest:
            try:
                rest = rest[sealed.send(rest) :]
            except BlockingIOError:
                continue


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pieces", [99_991, seal.RECORD, 1 << 30])
def test_what_is_sent_is_sealed_by_the_book(size, pieces):
    data, socket = random.Random(size).randbytes(size), Socket()
    written(seal.Sealed(socket, KEY, size), data, pieces)
    assert bytes(socket.taken) == b"".join(by_the_book(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pieces", [(99_991,), (seal.RECORD,), (1 << 20,), (7, seal.RECORD + 3)])
def test_what_was_sealed_by_the_book_is_read(size, pieces):
    data = random.Random(size).randbytes(size)
    sealed = seal.Sealed(Socket(b"".join(by_the_book(data))), KEY, size)
    assert read(sealed, size, pieces) == data


COUNTS = st.lists(st.none() | st.integers(1, 3 * seal.RECORD), max_size=40)


@settings(max_examples=examples(60), deadline=None)
@given(COUNTS, COUNTS, st.integers(1, 4 * seal.RECORD), st.integers(1, 2 * seal.RECORD), st.integers(1, 9))
def test_whatever_a_socket_takes_and_gives_at_a_time_no_bit_changes(sends, receives, size, piece, seed):
    data = random.Random(seed).randbytes(size)
    out = Socket(counts=sends)
    written(seal.Sealed(out, KEY, size), data, piece)
    assert bytes(out.taken) == b"".join(by_the_book(data))
    assert read(seal.Sealed(Socket(bytes(out.taken), receives), KEY, size), size, (piece,)) == data


def test_nothing_after_the_payload_is_read():
    data = bytes(seal.RECORD + 9)
    socket = Socket(b"".join(by_the_book(data)) + b"the next ticket")
    assert read(seal.Sealed(socket, KEY, len(data)), len(data)) == data
    assert b"".join(socket.given) == b"the next ticket"


def test_nothing_is_passed_on_of_a_record_that_has_not_come_whole():
    data = bytes(seal.RECORD)
    socket = Socket(by_the_book(data)[0][:-1])
    sealed, memory = seal.Sealed(socket, KEY, len(data)), memoryview(bytearray(b"x" * len(data)))
    with pytest.raises(BlockingIOError):
        sealed.recv_into(memory)
    assert memory == b"x" * len(data)
    socket.ended = True
    assert sealed.recv_into(memory) == 0


def flipped(records, at=-1, bit=1):
    return [*records[:at], bytes([*records[at][:5], records[at][5] ^ bit, *records[at][6:]])]


DATA = random.Random(1).randbytes(2 * seal.RECORD + 100)
WRONG = {
    "another key": by_the_book(DATA, KEY[::-1]),
    "a bit": flipped(by_the_book(DATA)),
    "its tag": [*by_the_book(DATA)[:-1], by_the_book(DATA)[-1][:-1] + b"\0"],
    "in another order": [by_the_book(DATA)[at] for at in (1, 0, 2)],
    "one twice": [by_the_book(DATA)[at] for at in (0, 0, 2)],
    "one left out": [*by_the_book(DATA)[1:], bytes(seal.RECORD)],
    "cut shorter": [*by_the_book(DATA[:-1]), b"x"],
    "longer": by_the_book(DATA + b"x"),
    "not at all": [DATA + bytes(48)],
}


@pytest.mark.parametrize("what", WRONG)
def test_what_was_changed_on_its_way_is_not_read(what):
    sealed, found = seal.Sealed(Socket(b"".join(WRONG[what])), KEY, len(DATA)), bytearray()

    def all_of_it():
        memory = memoryview(bytearray(seal.RECORD))
        while len(found) < len(DATA):
            found.extend(memory[: sealed.recv_into(memory[: len(DATA) - len(found)])])

    with pytest.raises(ConnectionError, match="not sealed with the key of its call"):
        all_of_it()
    good = next((at for at, record in enumerate(WRONG[what]) if record != by_the_book(DATA)[at]), 0)
    assert found == DATA[: good * seal.RECORD]


def test_more_than_the_payload_is_not_sent():
    socket = Socket()
    sealed = seal.Sealed(socket, KEY, 10)
    with pytest.raises(ValueError, match="last 10 bytes"):
        sealed.send(memoryview(bytes(11)))
    assert sealed.send(memoryview(b"0123456789")) == 10
    with pytest.raises(ValueError, match="last 0 bytes"):
        sealed.send(memoryview(b"0"))
    assert bytes(socket.taken) == by_the_book(b"0123456789")[0]


def test_no_two_records_have_one_nonce():
    """With one key: whoever sees two of them can read and forge both."""
    nonces = []

    class Cipher:
        def encrypt_into(self, nonce, data, more, into):
            nonces.append(nonce)

    size, counts = 5 * seal.RECORD, [None, 1, None, 70_000, None] * 3
    sealed = seal.Sealed(Socket(counts=counts), KEY, size)
    sealed._cipher = Cipher()
    written(sealed, bytes(size))
    assert len(nonces) == len(set(nonces)) == 5


@pytest.fixture
def _asked_anew():
    seal.missing.cache_clear()
    yield
    seal.missing.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
def test_what_is_missing_is_said(monkeypatch):
    assert seal.missing() == ""
    seal.missing.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(seal, "find_spec", lambda name: None)
        assert "`cryptography` is not installed: pip install" in seal.missing()
    seal.missing.cache_clear()
    old = type("AESGCM", (), {"encrypt": None})
    monkeypatch.setattr("cryptography.hazmat.primitives.ciphers.aead.AESGCM", old)
    assert "too old" in seal.missing()
