"""Bytes into rows, wherever they are cut."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import patience
from torch import Tensor

from varangian.protos.payloads.encoding import (
    TORCH,
    Dtype,
    Encoding,
    RowDtype,
    encode_vector,
    payload_digest,
)
from varangian.protos.refusals import Refusal
from varangian.server.rows.slot import Overtaken, Slot, SlotListener

NAN = float("nan")
BLOCK = 1 << 15
TINY = torch.finfo(torch.float32).tiny


class Row:
    """One row of its own, of which nobody else hears."""

    def __init__(self, row: Tensor, most: int | None = None):
        self.row, self.most = row, most or len(row)
        self.refusal: Refusal | None = None
        self.seen: list[tuple[int, bool]] = []

    def free(self, worker: str, column: int) -> int:
        return self.most - column

    def place(self, worker: str, column: int) -> tuple[Tensor, int, int]:
        return self.row, column, self.free(worker, column)

    async def wait_for_room(self, slot: Slot) -> None:
        self.most += 3

    def progressed(self, slot: Slot) -> None:
        self.seen.append((slot.columns, slot.full))


def slot_of(row: Row | Tensor, dtype: Dtype = "float32", exact: int = 0) -> Slot:
    storage: Any = row if isinstance(row, Row) else Row(row)
    listener = SlotListener(lambda slot: storage.refusal, storage.progressed, storage.wait_for_room)
    return Slot("w00", 0, b"", Encoding(len(storage.row), dtype, exact), storage, listener)


def put(slot: Slot, *pieces: bytes | memoryview) -> None:
    async def all_of_them() -> None:
        for piece in pieces:
            await slot.put(piece)

    asyncio.run(all_of_them())


def fill(slot: Slot, payload: memoryview, most: int) -> int:
    """What a connection does that has these bytes."""

    def receive(memory: memoryview) -> int:
        count = min(len(memory), len(payload))
        memory[:count] = payload[:count]
        return count

    return slot.sink.fill(receive, most)


def pieces_of(payload: memoryview, cuts: list[int]) -> list[memoryview]:
    at = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    return [payload[a:b] for a, b in itertools.pairwise(at)]


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=9),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    wire=st.sampled_from(["float32", "bfloat16"]),
    kept=st.sampled_from(["float32", "bfloat16"]),
)
@settings(deadline=None)
def test_any_cut_lands_the_same(values: list[float], cuts: list[int], wire: RowDtype, kept: RowDtype):
    sent = torch.tensor(values)
    payload = encode_vector(sent, wire)
    row = torch.empty(len(values), dtype=TORCH[kept])
    slot = slot_of(row, wire)
    assert slot.size == len(payload)
    put(slot, *pieces_of(payload, cuts))
    assert slot.full
    wanted = sent.to(TORCH[wire]).float()
    wanted[wanted.abs() < TINY] = 0.0
    wanted = wanted.to(TORCH[kept])
    assert slot.finite == bool(wanted.isfinite().all())
    if slot.finite:
        assert torch.equal(row.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_many_blocks_at_odd_addresses(wire: RowDtype):
    sent = torch.randn(2 * BLOCK + 5)
    shifted = memoryview(b"x" + bytes(encode_vector(sent, wire)))[1:]
    row = torch.empty(len(sent))
    put(slot_of(row, wire), shifted)
    assert torch.equal(row, sent.to(TORCH[wire]).float())


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 4])
def test_a_vector_that_is_not_finite_is_taken_to_its_end(place: int):
    sent = torch.ones(2 * BLOCK + 5)
    sent[place] = NAN
    slot = slot_of(torch.empty(len(sent)))
    put(slot, *pieces_of(encode_vector(sent), [4 * BLOCK]))
    assert (slot.full, slot.finite) == (True, False)


def test_more_than_a_vector_is_a_mistake_of_the_caller():
    slot = slot_of(torch.zeros(2))
    with pytest.raises(ValueError, match="should have 8 bytes"):
        put(slot, bytes(12))


def test_progress_is_told_after_each_piece():
    row = Row(torch.zeros(4))
    put(slot_of(row), bytes(5), bytes(2), bytes(9))
    assert row.seen == [(1, False), (1, False), (4, True)]


def test_an_overtaken_upload_lands_nothing():
    row = Row(torch.zeros(2))
    row.refusal = Refusal.STALE
    with pytest.raises(Overtaken, match="This round is over") as error:
        put(slot_of(row), encode_vector(torch.ones(2)))
    assert error.value.refusal is Refusal.STALE
    assert not row.row.any()


def test_what_has_no_room_waits_for_it():
    sent = torch.randn(20)
    row = Row(torch.zeros(20), most=4)
    slot = slot_of(row)
    assert slot.has_room()
    assert (slot.has_room(16), slot.has_room(17)) == (True, False)
    put(slot, encode_vector(sent)[:16])
    assert not slot.has_room()
    put(slot, encode_vector(sent)[16:])
    assert [columns for columns, _ in row.seen] == [4, 7, 10, 13, 16, 19, 20]
    assert torch.equal(row.row, sent)
    assert slot.has_room()


def test_what_is_not_finite_needs_no_room():
    sent = torch.full((20,), NAN)
    row = Row(torch.zeros(20), most=4)
    slot = slot_of(row)
    put(slot, encode_vector(sent))
    assert (slot.full, slot.finite, slot.has_room()) == (True, False, True)
    assert row.seen == [(4, False), (20, True)]


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=9),
    most=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    wire=st.sampled_from(["float32", "bfloat16"]),
    kept=st.sampled_from(["float32", "bfloat16"]),
    direct=st.booleans(),
)
@settings(deadline=None)
def test_turns_of_a_thread_land_the_same(
    values: list[float], most: list[int], wire: RowDtype, kept: RowDtype, direct: bool
):
    """Each as large as it may be by then, with a row that has room for three numbers at first."""
    payload = encode_vector(torch.tensor(values), wire)
    whole = torch.empty(len(values), dtype=TORCH[kept])
    parts = torch.empty_like(whole)
    put(slot_of(whole, wire), payload)
    row = Row(parts, 3)
    slot, at, turns = slot_of(row, wire), 0, itertools.cycle(most)
    while at < len(payload):
        asyncio.run(slot.wait_for_room())
        count = min(slot.free_bytes, next(turns))
        assert count > 0
        count = fill(slot, payload[at:], count) if direct else slot.sink.take(payload[at : at + count])
        slot.report_progress()
        at += count
    assert slot.full
    assert slot.free_bytes == 0
    slot.sink.finish(payload_digest(payload))
    if slot.finite:
        assert torch.equal(whole.view(torch.uint8), parts.view(torch.uint8))
    assert row.seen[-1] == (len(values), True)


def test_nothing_lands_in_a_slot_that_is_closed():
    row = torch.zeros(4)
    slot = slot_of(row)
    slot.sink.take(encode_vector(torch.ones(2)))
    slot.close()
    for land in (slot.sink.take, lambda data: fill(slot, data, 4)):
        with pytest.raises(Overtaken) as error:
            land(encode_vector(torch.ones(1)))
        assert error.value.refusal is Refusal.UNOFFERED
    assert row.tolist() == [1, 1, 0, 0]


@pytest.mark.timeout(patience(20))
@pytest.mark.parametrize("most", [3, 2])
@pytest.mark.parametrize("begun", [12, 14])
def test_room_that_is_taken_away_while_a_thread_is_busy_ends_the_upload(most: int, begun: int):
    row = Row(torch.zeros(8), 6)
    slot = slot_of(row)
    slot.sink.take(encode_vector(torch.ones(8))[:begun])
    row.most = most
    for land in (slot.sink.take, lambda data: fill(slot, data, 4)):
        with pytest.raises(Overtaken) as error:
            land(encode_vector(torch.ones(1)))
        assert error.value.refusal is Refusal.RESTARTED
    assert row.row.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_an_unsound_vector_needs_no_room():
    slot = slot_of(Row(torch.zeros(4), 1))
    slot.sink.take(encode_vector(torch.tensor([NAN])))
    assert slot.has_room()
    assert slot.free_bytes == 12
    slot.sink.take(encode_vector(torch.ones(3)))
    assert slot.full


def test_more_than_was_promised_is_an_error_in_a_thread_too():
    slot = slot_of(torch.zeros(2))
    with pytest.raises(ValueError, match="Found more"):
        slot.sink.take(encode_vector(torch.ones(3)))


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
@pytest.mark.parametrize("most", [None, 1])
def test_a_whole_payload_lands_as_its_pieces_do(wire: RowDtype, most: int | None, values: list[float]):
    payload = bytes(encode_vector(torch.tensor(values), wire))
    pieces, whole = (Row(torch.zeros(len(values)), room) for room in (None, most))
    one, other = slot_of(pieces, wire), slot_of(whole, wire)
    put(one, payload)
    asyncio.run(other.put_whole(payload, payload_digest(payload)))
    assert other.full
    assert other.finite == one.finite
    if one.finite:
        assert torch.equal(whole.row, pieces.row)
    assert whole.seen[-1] == (len(values), True)


def test_an_overtaken_whole_payload_lands_nothing():
    row = Row(torch.zeros(5))
    row.refusal = Refusal.STALE
    payload = bytes(encode_vector(torch.ones(5)))
    with pytest.raises(Overtaken):
        asyncio.run(slot_of(row).put_whole(payload, payload_digest(payload)))
    assert not row.row.any()


LONG = 2 * 256 + 77
"""Numbers of three blocks, the last of which is shorter."""
ENCODINGS = [
    Encoding(LONG, dtype, exact)
    for dtype, exact in (("int8", 0), ("int8", 5), ("int8", LONG), ("bfloat16", 9), ("int8", 77))
]


def sent_as(encoding: Encoding, seed: int) -> tuple[Tensor, memoryview]:
    vector = torch.randn(encoding.numel, generator=torch.Generator().manual_seed(seed))
    return vector, encoding.encode(vector, seed)


@given(
    encoding=st.sampled_from(ENCODINGS),
    cuts=st.lists(st.integers(0, 4 * LONG), max_size=9),
    kept=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 9),
)
@settings(deadline=None)
def test_any_cut_of_blocks_lands_the_same(encoding: Encoding, cuts: list[int], kept: RowDtype, seed: int):
    _, payload = sent_as(encoding, seed)
    row = torch.empty(LONG, dtype=TORCH[kept])
    slot = slot_of(row, encoding.dtype, encoding.exact)
    assert slot.size == len(payload)
    put(slot, *pieces_of(payload, cuts))
    assert (slot.full, slot.finite, slot.columns) == (True, True, LONG)
    assert torch.equal(row, encoding.decode(payload).to(TORCH[kept]))


@given(
    encoding=st.sampled_from(ENCODINGS),
    most=st.lists(st.integers(1, 700), min_size=1, max_size=40),
    kept=st.sampled_from(["float32", "bfloat16"]),
    room=st.integers(1, 300),
    direct=st.booleans(),
)
@settings(deadline=None)
def test_turns_of_a_thread_land_blocks_the_same(
    encoding: Encoding, most: list[int], kept: RowDtype, room: int, direct: bool
):
    """Each as large as it may be by then, with a row that has room for three numbers more at a time."""
    _, payload = sent_as(encoding, 1)
    row = Row(torch.empty(LONG, dtype=TORCH[kept]), room)
    slot, at, turns = slot_of(row, encoding.dtype, encoding.exact), 0, itertools.cycle(most)
    while at < len(payload):
        asyncio.run(slot.wait_for_room())
        assert slot.has_room()
        count = min(slot.free_bytes, next(turns))
        assert count > 0
        count = fill(slot, payload[at:], count) if direct else slot.sink.take(payload[at : at + count])
        slot.report_progress()
        at += count
    assert slot.full
    slot.sink.finish(payload_digest(payload))
    assert torch.equal(row.row, encoding.decode(payload).to(TORCH[kept]))


@pytest.mark.parametrize("most", [None, 256])
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_whole_payloads_of_blocks_land_as_their_pieces_do(
    encoding: Encoding, kept: RowDtype, most: int | None
):
    _, payload = sent_as(encoding, 2)
    row = Row(torch.empty(LONG, dtype=TORCH[kept]), most)
    slot = slot_of(row, encoding.dtype, encoding.exact)
    asyncio.run(slot.put_whole(bytes(payload), payload_digest(payload)))
    assert slot.full
    assert torch.equal(row.row, encoding.decode(payload).to(TORCH[kept]))


def test_many_blocks_in_one_turn_land_the_same():
    encoding = Encoding(3_000_001, "int8", 2)
    _, payload = sent_as(encoding, 3)
    row = torch.empty(encoding.numel)
    put(slot_of(row, "int8", 2), payload)
    assert torch.equal(row, encoding.decode(payload))


@given(st.binary(min_size=1000, max_size=1000), st.lists(st.integers(0, 1000), max_size=5))
@settings(deadline=None)
def test_any_bytes_of_blocks_are_a_vector_or_not_finite(data: bytes, cuts: list[int]):
    """Wherever they are cut, what is judged finite is."""
    exact = 40
    encoding = Encoding(840 - 4 * 4 + exact, "int8", exact)
    assert encoding.size == len(data)
    row = torch.empty(encoding.numel)
    slot = slot_of(row, "int8", exact)
    put(slot, *pieces_of(memoryview(data), cuts))
    assert slot.full
    assert not slot.finite or bool(row.isfinite().all())


@pytest.mark.parametrize("scale", [NAN, float("inf"), -1.0, 3e38, 1e-40])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_hostile_scale_is_a_fault_wherever_it_is_cut(scale: float, block: int):
    encoding = Encoding(LONG, "int8")
    payload = bytearray(sent_as(encoding, 4)[1])
    payload[260 * block : 260 * block + 4] = torch.tensor([scale]).numpy().tobytes()
    for cut in (1, 259, 261, 500):
        slot = slot_of(torch.empty(LONG), "int8")
        put(slot, *pieces_of(memoryview(payload), [cut]))
        assert (slot.full, slot.finite) == (True, False)
