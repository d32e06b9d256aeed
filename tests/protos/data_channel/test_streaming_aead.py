"""AES-GCM-HKDF Streaming AEAD against published vectors, the package `tink`, and its specification."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.protos.data_channel import oracle
from tests.protos.data_channel.book import Book, encrypted_size

from varangian.protos.data_channel import streaming_aead
from varangian.protos.data_channel.associated_data import AssociatedData
from varangian.protos.data_channel.streaming_aead import (
    PAYLOADS,
    TAG,
    DecryptionError,
    Parameters,
    Segments,
)

pytest.importorskip("cryptography")

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
KEY = bytes(range(32))
SMALL = Parameters(segment=100)
ROOM = PAYLOADS.room(0)


def encrypted(key, header, associated, data, parameters=PAYLOADS):
    """All segments, after the header."""
    segments, found, rest = Segments(key, header, associated, len(data), parameters), header, data
    for _ in range(parameters.count(len(data))):
        into = bytearray(segments.next + TAG)
        piece, rest = rest[: segments.next], rest[segments.next :]
        segments.encrypt_into(piece, memoryview(into))
        found += into
    assert (rest, segments.left) == (b"", 0)
    return bytes(found)


def decrypted(key, data, associated, size, parameters=PAYLOADS):
    segments, found = Segments(key, data[: parameters.header], associated, size, parameters), b""
    rest = data[parameters.header :]
    for _ in range(parameters.count(size)):
        into = bytearray(segments.next)
        piece, rest = rest[: len(into) + TAG], rest[len(into) + TAG :]
        segments.decrypt_into(piece, memoryview(into))
        found += into
    return found


@pytest.mark.parametrize("number", range(len(VECTORS["published"])))
def test_published_vectors(number):
    vector = VECTORS["published"][number]
    key, data, associated, whole = (
        bytes.fromhex(vector[field]) for field in ("key", "plaintext", "associated", "ciphertext")
    )
    parameters = Parameters(vector["derived_key_size"], vector["hash"], vector["segment"])
    assert encrypted(key, whole[: parameters.header], associated, data, parameters) == whole
    assert decrypted(key, whole, associated, len(data), parameters) == data
    algorithm = vector["hash"].lower()
    book = Book(key, associated, vector["segment"], vector["derived_key_size"], algorithm)
    assert book.encrypted(data, whole[: parameters.header]) == whole, "what other tests compare with"


@pytest.mark.parametrize("number", range(len(VECTORS["made"])))
def test_vectors_made_by_tink_with_the_parameters_of_payloads(number):
    vector = VECTORS["made"][number]
    size, header = vector["size"], bytes.fromhex(vector["header"])
    associated = AssociatedData(*oracle.TRANSFER, size).associated()
    found = encrypted(bytes.fromhex(vector["key"]), header, associated, oracle.plain(size))
    assert hashlib.sha256(found).hexdigest() == vector["sha256"]


SIZES = [1, ROOM - 1, ROOM, ROOM + 1, ROOM + PAYLOADS.room(1), ROOM + PAYLOADS.room(1) + 1, 1_000_003]


@pytest.mark.parametrize("size", SIZES)
def test_tink_decrypts_ours_and_we_decrypt_its(size):
    pytest.importorskip("tink", reason="the oracle is in the dependency group `test`")
    data, associated = oracle.plain(size), AssociatedData(*oracle.TRANSFER, size).associated()
    theirs = oracle.primitive(KEY)
    ours = encrypted(KEY, PAYLOADS.new_header(), associated, data)
    assert len(ours) == PAYLOADS.ciphertext(size) == encrypted_size(size)
    assert oracle.decrypted(theirs, associated, ours) == data
    assert decrypted(KEY, oracle.encrypted(theirs, associated, data), associated, size) == data


@pytest.mark.parametrize("derived", [16, 32])
@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
def test_tink_agrees_with_other_parameters(derived, algorithm):
    pytest.importorskip("tink", reason="the oracle is in the dependency group `test`")
    parameters = Parameters(derived, algorithm, 100)
    theirs = oracle.primitive(KEY, 100, derived, algorithm)
    for size in (0, 1, *range(parameters.room(0) - 1, parameters.room(0) + 2), 1000):
        data = oracle.plain(size)
        ours = encrypted(KEY, parameters.new_header(), b"associated", data, parameters)
        assert oracle.decrypted(theirs, b"associated", ours) == data
        whole = oracle.encrypted(theirs, b"associated", data)
        assert decrypted(KEY, whole, b"associated", size, parameters) == data


@given(st.binary(max_size=700), st.binary(max_size=40))
def test_it_is_the_specification(data, associated):
    book, header = Book(KEY, associated, SMALL.segment), SMALL.new_header()
    found = encrypted(KEY, header, associated, data, SMALL)
    assert found == book.encrypted(data, header)
    assert book.decrypted(found) == decrypted(KEY, found, associated, len(data), SMALL) == data
    assert len(found) == SMALL.ciphertext(len(data))


@given(st.integers(1, 5000), st.integers(1, 1000))
def test_pieces_are_whole_segments_and_all_of_the_message(size, most):
    cuts = [*SMALL.pieces(size, most)]
    assert [start for start, _ in cuts] == [0, *(stop for _, stop in cuts[:-1])]
    assert cuts[-1][1] == size
    assert all((stop - SMALL.room(0)) % SMALL.room(1) == 0 for _, stop in cuts[:-1])
    assert all(stop - start <= max(most, SMALL.segment) for start, stop in cuts)


DATA = random.Random(5).randbytes(350)
LEN = len(DATA)
WHOLE = Book(KEY, b"this", SMALL.segment).segments(DATA)
CUT = Book(KEY, b"this", SMALL.segment).segments(DATA[:-1], WHOLE[0][:40])
LONG = Book(KEY, b"this", SMALL.segment).segments(DATA + bytes(100), WHOLE[0][:40])
WRONG = {
    "another key": (KEY[::-1], WHOLE, b"this", LEN),
    "other associated data": (KEY, WHOLE, b"that", LEN),
    "no associated data": (KEY, WHOLE, b"", LEN),
    "segments in another order": (KEY, [WHOLE[0], WHOLE[2], WHOLE[1], *WHOLE[3:]], b"this", LEN),
    "a segment twice": (KEY, [*WHOLE[:2], WHOLE[1], *WHOLE[3:]], b"this", LEN),
    "a segment left out": (KEY, [*WHOLE[:2], *WHOLE[3:], bytes(100)], b"this", LEN),
    "a segment of another message": (KEY, [WHOLE[0], LONG[1][::-1], *WHOLE[2:]], b"this", LEN),
    "the last segment in the middle": (
        KEY,
        [WHOLE[0], WHOLE[-1].ljust(100, b"\0"), *WHOLE[2:]],
        b"this",
        LEN,
    ),
    "the end of a longer one": (KEY, LONG, b"this", LEN),
    "the end of a shorter one": (KEY, [*CUT, b"x"], b"this", LEN),
    "cut at a segment": (KEY, WHOLE[:3], b"this", 44 + 2 * 84),
    "no last segment": (KEY, WHOLE, b"this", LEN + 84),
    "another salt": (KEY, [b"\x28" + bytes(32) + WHOLE[0][33:], *WHOLE[1:]], b"this", LEN),
    "another nonce prefix": (KEY, [WHOLE[0][:33] + bytes(7) + WHOLE[0][40:], *WHOLE[1:]], b"this", LEN),
    "another length of the header": (KEY, [b"\x18" + WHOLE[0][1:], *WHOLE[1:]], b"this", LEN),
    "no header": (KEY, [WHOLE[0][:20]], b"this", LEN),
    "not encrypted": (KEY, [DATA, bytes(200)], b"this", LEN),
}


def test_the_messages_that_are_changed_below_are_good_ones():
    assert decrypted(KEY, b"".join(WHOLE), b"this", LEN, SMALL) == DATA
    assert len(WHOLE) == 5


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_the_message_is_not_decrypted(what):
    key, segments, associated, size = WRONG[what]
    with pytest.raises(DecryptionError):
        decrypted(key, b"".join(segments), associated, size, SMALL)


@given(st.integers(0, sum(map(len, WHOLE)) - 1), st.integers(0, 7))
def test_every_bit_counts(at, bit):
    changed = bytearray(b"".join(WHOLE))
    changed[at] ^= 1 << bit
    with pytest.raises(DecryptionError):
        decrypted(KEY, bytes(changed), b"this", LEN, SMALL)


def test_nothing_of_a_segment_that_is_not_authentic_is_left():
    segments = Segments(KEY, WHOLE[0][:40], b"this", LEN, SMALL)
    into = bytearray(b"x" * segments.next)
    with pytest.raises(DecryptionError):
        segments.decrypt_into(WHOLE[0][40:-1] + bytes([WHOLE[0][-1] ^ 1]), memoryview(into))
    assert into == bytes(len(into))


def test_there_is_no_segment_after_the_last_and_none_of_another_size():
    segments = Segments(KEY, PAYLOADS.new_header(), b"", 10)
    for size in (9, 11):
        with pytest.raises(ValueError, match="should not come"):
            segments.encrypt_into(bytes(size), memoryview(bytearray(size + TAG)))
    segments.encrypt_into(bytes(10), memoryview(bytearray(26)))
    for size in (0, 10):
        with pytest.raises(ValueError, match="after 1 of 1"):
            segments.encrypt_into(bytes(size), memoryview(bytearray(size + TAG)))


def test_a_counter_does_not_begin_again():
    size = SMALL.room(0) + (2**32 - 1) * SMALL.room(1)
    assert Segments(KEY, SMALL.new_header(), b"", size, SMALL).left == size
    with pytest.raises(ValueError, match=r"at most 2\^32 segments"):
        Segments(KEY, SMALL.new_header(), b"", size + 1, SMALL)
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Segments(KEY[:-1], SMALL.new_header(), b"", 1, SMALL)


def test_each_message_has_a_header_of_its_own():
    headers = {PAYLOADS.new_header() for _ in range(100)}
    assert len(headers) == 100
    assert {(len(header), header[0]) for header in headers} == {(40, 40)}


# associated data

ONE = AssociatedData(4, "push", "run-1", 7, "w03", 1000)
OTHERS = {
    "protocol": replace(ONE, protocol=2),
    "direction": replace(ONE, direction="pull"),
    "run": replace(ONE, run="run-2"),
    "round": replace(ONE, round=8),
    "worker": replace(ONE, worker="w04"),
    "size": replace(ONE, size=1001),
}


def test_associated_data_are_as_documented():
    expected = "00000004 02 00000005 72756e2d31 0000000000000007 00000003 773033 00000000000003e8"
    assert ONE.associated().hex() == expected.replace(" ", "")


@pytest.mark.parametrize("what", OTHERS)
def test_a_payload_of_another_transfer_is_not_decrypted(what):
    whole = Book(KEY, OTHERS[what].associated()).encrypted(DATA)
    assert decrypted(KEY, whole, OTHERS[what].associated(), LEN) == DATA
    with pytest.raises(DecryptionError):
        decrypted(KEY, whole, ONE.associated(), LEN)


TEXTS = st.text("ab\0\1", max_size=4)
TRANSFERS = st.builds(
    AssociatedData,
    st.integers(0, 2),
    st.sampled_from(["pull", "push"]),
    TEXTS,
    st.integers(0, 300),
    TEXTS,
    st.integers(0, 300),
)


@given(TRANSFERS, TRANSFERS)
def test_no_two_transfers_have_the_same_associated_data(one, other):
    assert (one.associated() == other.associated()) == (one == other)


@pytest.fixture
def _asked_anew():
    streaming_aead.why_unavailable.cache_clear()
    yield
    streaming_aead.why_unavailable.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
def test_what_is_missing_is_said(monkeypatch):
    assert streaming_aead.why_unavailable() == ""
    streaming_aead.why_unavailable.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(streaming_aead, "find_spec", lambda name: None)
        assert "`cryptography` is not installed: pip install" in streaming_aead.why_unavailable()
    streaming_aead.why_unavailable.cache_clear()
    old = type("AESGCM", (), {"encrypt": None})
    monkeypatch.setattr("cryptography.hazmat.primitives.ciphers.aead.AESGCM", old)
    assert "too old" in streaming_aead.why_unavailable()
