"""Encrypted payloads, against the specification, over sockets that take and give as little as they like."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples
from tests.protos.data_channel.book import Book

from varangian.protos.data_channel import encrypted_stream as seal
from varangian.protos.data_channel import streaming_aead
from varangian.protos.data_channel.encrypted_stream import PAYLOADS

pytest.importorskip("cryptography")

KEY, THIS = bytes(range(32)), b"associated data"
SEGMENT = PAYLOADS.segment
FIRST, MORE = PAYLOADS.room(0), PAYLOADS.room(1)
SIZES = (1, 16, FIRST - 1, FIRST, FIRST + 1, FIRST + 3 * MORE + 5)
BOOK = Book(KEY, THIS)


def by_the_book(data, key=KEY):
    """Each segment, as the specification says it is."""
    return Book(key, THIS).segments(data)


def sealing(socket, size, associated=THIS, key=KEY):
    return seal.EncryptedStream(socket, key, associated, size)


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
@pytest.mark.parametrize("pieces", [99_991, SEGMENT, 1 << 30])
def test_what_is_sent_is_sealed_by_the_book(size, pieces):
    data, socket = random.Random(size).randbytes(size), Socket()
    written(sealing(socket, size), data, pieces)
    assert BOOK.encrypted(data, bytes(socket.taken[:40])) == bytes(socket.taken)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pieces", [(99_991,), (SEGMENT,), (1 << 20,), (7, SEGMENT + 3)])
def test_what_was_sealed_by_the_book_is_read(size, pieces):
    data = random.Random(size).randbytes(size)
    sealed = sealing(Socket(b"".join(by_the_book(data))), size)
    assert read(sealed, size, pieces) == data


COUNTS = st.lists(st.none() | st.integers(1, 3 * SEGMENT), max_size=40)


@settings(max_examples=examples(60), deadline=None)
@given(COUNTS, COUNTS, st.integers(1, 4 * SEGMENT), st.integers(1, 2 * SEGMENT), st.integers(1, 9))
def test_whatever_a_socket_takes_and_gives_at_a_time_no_bit_changes(sends, receives, size, piece, seed):
    data = random.Random(seed).randbytes(size)
    out = Socket(counts=sends)
    written(sealing(out, size), data, piece)
    assert BOOK.encrypted(data, bytes(out.taken[:40])) == bytes(out.taken)
    assert read(sealing(Socket(bytes(out.taken), receives), size), size, (piece,)) == data


def test_nothing_after_the_payload_is_read():
    data = bytes(SEGMENT + 9)
    socket = Socket(b"".join(by_the_book(data)) + b"the next ticket")
    assert read(sealing(socket, len(data)), len(data)) == data
    assert b"".join(socket.given) == b"the next ticket"


def test_nothing_is_passed_on_of_a_segment_that_has_not_come_whole():
    data = bytes(SEGMENT)
    socket = Socket(by_the_book(data)[0][:-1])
    sealed, memory = sealing(socket, len(data)), memoryview(bytearray(b"x" * len(data)))
    with pytest.raises(BlockingIOError):
        sealed.recv_into(memory)
    assert memory == b"x" * len(data)
    socket.ended = True
    assert sealed.recv_into(memory) == 0


def test_what_does_not_fit_whole_waits_for_the_next_call():
    """So nothing is copied when there is room for several segments at a time."""
    data = random.Random(3).randbytes(FIRST + 2 * MORE)
    sealed, memory = (
        sealing(Socket(b"".join(by_the_book(data))), len(data)),
        memoryview(bytearray(len(data))),
    )
    assert sealed.recv_into(memory[: FIRST + MORE + 100]) == FIRST + MORE
    assert sealed.recv_into(memory[FIRST + MORE :]) == MORE
    assert memory == data


def flipped(segments, at, byte):
    """Another bit in one of them."""
    changed = bytearray(segments[at])
    changed[byte] ^= 1
    return [*segments[:at], bytes(changed), *segments[at + 1 :]]


# All the ways to change a ciphertext are in test_streaming_aead.py.
DATA = random.Random(1).randbytes(2 * SEGMENT + 100)
WHOLE = by_the_book(DATA)
WRONG = {
    "another key": by_the_book(DATA, KEY[::-1]),
    "the salt": flipped(WHOLE, 0, 1),
    "a bit": flipped(WHOLE, 2, 5),
    "in another order": [WHOLE[at] for at in (0, 2, 1)],
    "cut shorter": [*BOOK.segments(DATA[:-1], WHOLE[0][:40]), b"x"],
    "longer": BOOK.segments(DATA + b"x", WHOLE[0][:40]),
    "one of another payload": [WHOLE[0], by_the_book(DATA)[1], WHOLE[2]],
    "not at all": [DATA + bytes(88)],
}


@pytest.mark.parametrize("what", WRONG)
def test_what_was_changed_on_its_way_is_not_read(what):
    sealed, found = sealing(Socket(b"".join(WRONG[what])), len(DATA)), bytearray()
    memory = memoryview(bytearray(SEGMENT))

    def all_of_it():
        while len(found) < len(DATA):
            found.extend(memory[: sealed.recv_into(memory[: len(DATA) - len(found)])])

    with pytest.raises(ConnectionError, match="not encrypted with the key of its call"):
        all_of_it()
    assert DATA.startswith(found), "what was passed on before is right"
    assert len(found) in (0, FIRST, FIRST + MORE)
    with pytest.raises(ConnectionError):
        sealed.recv_into(memory)


def test_the_end_of_a_connection_is_not_the_end_of_a_payload():
    for most in (0, 39, 40, SEGMENT, SEGMENT + 7, len(b"".join(WHOLE)) - 1):
        socket = Socket(b"".join(WHOLE)[:most])
        socket.ended = True
        assert len(read(sealing(socket, len(DATA)), len(DATA))) < len(DATA)


def test_more_than_the_payload_is_not_sent():
    socket = Socket()
    sealed = sealing(socket, 10)
    with pytest.raises(ValueError, match="last 10 bytes"):
        sealed.send(memoryview(bytes(11)))
    assert sealed.send(memoryview(b"0123456789")) == 10
    with pytest.raises(ValueError, match="last 0 bytes"):
        sealed.send(memoryview(b"0"))
    assert BOOK.decrypted(bytes(socket.taken)) == b"0123456789"


def test_no_two_segments_have_one_nonce(monkeypatch):
    """With one key: whoever sees two of them can read and forge both."""
    nonces = []

    class Cipher:
        def encrypt_into(self, nonce, data, more, into):
            nonces.append(nonce)

    monkeypatch.setattr("varangian.protos.data_channel.streaming_aead._cipher", lambda key: Cipher())
    size, counts = 5 * SEGMENT, [None, 1, None, 70_000, None] * 3
    written(sealing(Socket(counts=counts), size), bytes(size))
    assert len(nonces) == len(set(nonces)) == 6
    assert [nonce[-5:] for nonce in nonces] == [bytes([0, 0, 0, at, at == 5]) for at in range(6)]


def test_a_payload_that_is_sent_again_has_another_derived_key(monkeypatch):
    """Also if the key of its call were the same, which it is not."""
    keys = []
    cipher = streaming_aead._cipher
    monkeypatch.setattr(streaming_aead, "_cipher", lambda key: keys.append(key) or cipher(key))
    for _ in range(3):
        written(sealing(Socket(), 10), bytes(10))
    assert len(set(keys)) == 3
