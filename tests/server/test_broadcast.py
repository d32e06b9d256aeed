import gc
import itertools
import weakref

from varangian.protos import codec, ps_pb2
from varangian.protos.codec import CHUNK_BYTES, CHUNK_FLOOR, CHUNK_LIMIT, Contract
from varangian.protos.layout import Layout
from varangian.server.broadcast import SHARED, Broadcast

CONTRACT = Contract("run-1", Layout((("weight", (3, CHUNK_BYTES // 8)),)))
PAYLOAD = bytes(range(256)) * (CONTRACT.layout.numel * 4 // 256)


def broadcast():
    return Broadcast(CONTRACT, 7, memoryview(PAYLOAD), codec.digest(PAYLOAD))


def test_it_is_a_manifest_and_then_the_payload():
    first, *rest = map(ps_pb2.PullReply.FromString, broadcast().messages())
    CONTRACT.check(first.manifest)
    assert first.manifest.round == 7
    assert [part.chunk.offset for part in rest] == [0, CHUNK_BYTES]
    assert b"".join(part.chunk.data for part in rest) == PAYLOAD


def test_every_pull_gets_the_same_objects_however_they_interleave():
    shared = broadcast()
    early, late = shared.messages(), shared.messages()
    head = list(itertools.islice(early, 2))
    messages = list(late)
    assert len(messages) == 3
    assert all(a is b for a, b in zip(messages, head + list(early), strict=True))


def test_a_pull_may_have_chunks_of_another_size():
    for asked, size in ((1, CHUNK_FLOOR), (100_000, 100_000), (1 << 30, CHUNK_LIMIT)):
        _, *rest = map(ps_pb2.PullReply.FromString, broadcast().messages(asked))
        assert [part.chunk.offset for part in rest] == list(range(0, len(PAYLOAD), size))
        assert b"".join(part.chunk.data for part in rest) == PAYLOAD


def test_no_more_than_a_few_messages_are_kept():
    payload = memoryview(bytes((SHARED + 5) * CHUNK_BYTES))
    shared = Broadcast(CONTRACT, 0, payload, bytes(16))
    _, first, *_ = shared.messages()
    _, again, *_ = shared.messages()
    assert again == first
    assert again is not first


def test_who_needs_it_no_more_frees_it_at_once():
    gc.disable()
    try:
        shared = broadcast()
        assert len(list(shared.messages())) == 3
        gone = weakref.ref(shared)
        del shared
        assert gone() is None
    finally:
        gc.enable()
