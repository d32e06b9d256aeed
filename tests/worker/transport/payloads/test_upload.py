"""A vector as bytes, wherever its pieces are cut."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varangian.protos.network.chunk_size import ChunkSize
from varangian.protos.payloads.chunks import decode_chunk
from varangian.protos.payloads.encoding import Encoding, payload_digest
from varangian.worker.transport.payloads.upload import BLOCK, Outgoing, PieceMemory

NUMEL = 5 * 256 + 33
ENCODINGS = [
    Encoding(NUMEL, dtype, exact)
    for dtype, exact in (("float32", 0), ("float32", 7), ("bfloat16", 0), ("bfloat16", 7), ("int8", 0))
] + [Encoding(NUMEL, "int8", 300), Encoding(NUMEL, "int8", NUMEL)]
VECTOR = torch.randn(NUMEL, generator=torch.Generator().manual_seed(3))


@given(
    encoding=st.sampled_from(ENCODINGS),
    cuts=st.lists(st.integers(0, 4 * NUMEL), max_size=8),
    seed=st.integers(0, 2**64 - 1),
)
@settings(deadline=None)
def test_pieces_make_the_payload_wherever_they_are_cut(encoding, cuts, seed):
    payload = bytes(encoding.encode(VECTOR, seed))
    at = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    outgoing = Outgoing(VECTOR, encoding, seed)
    assert outgoing.size == len(payload)
    memory = PieceMemory()
    assert b"".join(bytes(outgoing.piece(a, b, memory)) for a, b in itertools.pairwise(at)) == payload


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_messages_pieces_and_one_message_have_the_same_bytes_and_digest(encoding):
    payload = bytes(encoding.encode(VECTOR, 9))
    beside, chunks, again = (Outgoing(VECTOR, encoding, 9) for _ in range(3))
    assert b"".join(map(bytes, beside.pieces())) == payload
    *parts, seal = chunks.messages(ChunkSize())
    assert b"".join(bytes(decode_chunk(part)[1]) for part in parts) == payload
    assert seal == chunks.seal()
    again.compute_digest()
    assert {one.digest for one in (beside, chunks, again)} == {payload_digest(payload)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_attempt_that_was_given_up_changes_no_byte_of_the_next_one(dtype):
    """A thread may still be in the middle of it."""
    vector = torch.arange(3 * BLOCK, dtype=torch.float32)
    encoding = Encoding(len(vector), dtype)
    payload = bytes(encoding.encode(vector, 9))
    outgoing = Outgoing(vector, encoding, 9)
    given_up, sent = outgoing.pieces(), b""
    next(given_up)
    for count, piece in enumerate(outgoing.pieces(), 1):  # noqa: B007
        next(given_up, None)
        sent += bytes(piece)
    assert count > 2
    assert sent == payload
    assert outgoing.digest == payload_digest(payload)
