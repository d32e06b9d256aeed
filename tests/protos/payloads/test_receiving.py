"""Bytes of a payload, in whatever order and in pieces of whatever size they come."""

import contextlib
import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.chunks import cut_chunks
from tests.refused import refused

from varangian.protos.errors import Refused
from varangian.protos.messages import CHUNK_FLOOR
from varangian.protos.payloads.chunks import push_payload
from varangian.protos.payloads.encoding import encode_vector, payload_digest
from varangian.protos.payloads.receiving import BLOCK, PayloadSink
from varangian.protos.refusals import Refusal

DIGEST = bytes(16)


def sink_into(row: bytearray) -> PayloadSink:
    return PayloadSink(len(row), lambda at: memoryview(row)[at:])


def assembled(data, messages):
    row = bytearray(len(data))
    sink = sink_into(row)
    for message in messages:
        sink.add(*push_payload(message))
    sink.finish(payload_digest(data))
    return bytes(row)


@given(
    st.binary(min_size=1, max_size=7 * CHUNK_FLOOR).map(memoryview),
    st.integers(CHUNK_FLOOR, 3 * CHUNK_FLOOR),
)
def test_assembling_undoes_cutting(data, size):
    messages = list(cut_chunks(data, size))
    assert len(messages) == math.ceil(len(data) / size)
    assert assembled(data, messages) == data


def test_a_vector_keeps_every_bit():
    vector = torch.tensor([0.0, -0.0, 1e-40, 3.4e38, float("nan"), float("-inf")])
    payload = encode_vector(vector)
    out = torch.frombuffer(bytearray(assembled(payload, cut_chunks(payload, 7))), dtype=torch.float32)
    assert torch.equal(out.view(torch.int32), vector.view(torch.int32))


TOTAL = 3 * CHUNK_FLOOR


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([(1, CHUNK_FLOOR)], Refusal.ORDER),
        ([(CHUNK_FLOOR, CHUNK_FLOOR)], Refusal.ORDER),
        ([(0, CHUNK_FLOOR), (0, CHUNK_FLOOR)], Refusal.ORDER),
        ([(0, CHUNK_FLOOR), (CHUNK_FLOOR - 1, CHUNK_FLOOR)], Refusal.ORDER),
        ([(0, CHUNK_FLOOR), (2 * CHUNK_FLOOR, CHUNK_FLOOR)], Refusal.ORDER),
        ([(2**64 - 1, CHUNK_FLOOR)], Refusal.ORDER),
        ([(0, TOTAL + 1)], Refusal.TOO_MANY_BYTES),
        ([(0, TOTAL), (TOTAL, 1)], Refusal.TOO_MANY_BYTES),
        ([(0, TOTAL), (TOTAL, 0)], Refusal.TOO_MANY_BYTES),
        ([(0, 0)], Refusal.CHUNK_SIZE),
        ([(0, CHUNK_FLOOR), (CHUNK_FLOOR, 0)], Refusal.CHUNK_SIZE),
    ],
)
def test_a_chunk_out_of_place_is_refused_and_passes_nothing(parts, code):
    sink = sink_into(bytearray(TOTAL))
    *good, (offset, size) = parts
    for at, length in good:
        sink.add(at, bytes(length))
    before = sink.passed
    assert refused(sink.add, offset, b"\x02" * size) is code
    assert sink.passed == before
    if before < TOTAL:
        sink.add(before, bytes(TOTAL - before))
    sink.finish(payload_digest(bytes(TOTAL)))


def test_a_stream_that_ends_early_is_refused():
    sink = sink_into(bytearray(TOTAL))
    sink.add(0, bytes(CHUNK_FLOOR))
    assert not sink.complete
    assert refused(sink.finish, DIGEST) is Refusal.TOO_FEW_BYTES


@given(st.integers(0, 99), st.integers(1, 255))
def test_any_changed_byte_is_noticed(index, change):
    data = bytes(range(100))
    altered = bytearray(data)
    altered[index] ^= change
    sink = sink_into(bytearray(100))
    sink.add(0, bytes(altered))
    assert refused(sink.finish, payload_digest(data)) is Refusal.DIGEST
    assert refused(sink.finish, b"") is Refusal.DIGEST_SIZE


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1) | st.sampled_from([0, 64]), st.binary(max_size=80)), max_size=6
    )
)
def test_whatever_comes_no_more_passes_than_was_promised(parts):
    row = bytearray(64)
    sink = sink_into(row)
    with contextlib.suppress(Refused):
        for offset, data in parts:
            sink.add(offset, data)
    refused(sink.finish, payload_digest(b"\x01" * 64))
    assert sink.passed <= len(row) == 64
    assert not any(row[sink.passed :])


def test_what_lands_is_told_as_it_came():
    told, row = bytearray(), bytearray(2 * BLOCK + 7)
    sink = PayloadSink(len(row), lambda at: memoryview(row)[at : at + BLOCK - 1], told.extend)
    data = memoryview(bytes(range(256)) * len(row))[: len(row)]
    sink.add(0, data[:10])
    assert sink.fill(lambda memory: memory.__setitem__(slice(0, 5), data[10:15]) or 5, 9) == 5
    sink.add(15, data[15:])
    assert told == row == data
    sink.finish(payload_digest(data))


def test_nothing_lands_once_it_is_closed_also_from_a_thread():
    row = bytearray(4)
    sink, asked, go = sink_into(row), threading.Event(), threading.Event()

    def receive(memory):
        asked.set()
        assert go.wait(20)
        memory[:] = b"late"
        return len(memory)

    thread = threading.Thread(target=sink.fill, args=(receive, 4))
    thread.start()
    assert asked.wait(20)
    closing = threading.Thread(target=sink.close, args=(lambda: KeyError("given up"),))
    closing.start()  # it waits for what is on its way
    go.set()
    thread.join()
    closing.join()
    assert row == b"late"
    with pytest.raises(KeyError, match="given up"):
        sink.fill(receive, 4)


def kept(sink, data, digest):
    """What `take_whole` stores."""
    found = []
    sink.take_whole(data, digest, lambda whole: found.append(bytes(whole)))
    return found


def test_a_whole_payload_is_stored_once_as_it_lies():
    data = bytes(range(200))
    sink = sink_into(bytearray(200))
    assert kept(sink, data, payload_digest(data)) == [data]
    assert sink.complete


@pytest.mark.parametrize(
    ("data", "digest", "refusal"),
    [
        (bytes(199), payload_digest(bytes(199)), Refusal.TOO_FEW_BYTES),
        (bytes(201), payload_digest(bytes(201)), Refusal.TOO_MANY_BYTES),
        (b"", payload_digest(b""), Refusal.CHUNK_SIZE),
        (bytes(200), DIGEST, Refusal.DIGEST),
        (bytes(200), b"short", Refusal.DIGEST_SIZE),
    ],
)
def test_of_a_whole_payload_that_is_not_as_promised_nothing_is_stored(data, digest, refusal):
    sink, stored = sink_into(bytearray(200)), []
    assert refused(sink.take_whole, data, digest, stored.append) is refusal
    assert not stored
    assert sink.passed == 0
