import itertools

from varangian.protos import codec, ps_pb2
from varangian.protos.codec import CHUNK_BYTES, Contract
from varangian.protos.layout import Layout
from varangian.server.broadcast import Broadcast

CONTRACT = Contract("run-1", Layout((("weight", (3, CHUNK_BYTES // 8)),)))
PAYLOAD = bytes(range(256)) * (CONTRACT.layout.numel * 4 // 256)


def broadcast():
    return Broadcast(CONTRACT, 7, memoryview(PAYLOAD), codec.digest(PAYLOAD))


def test_it_is_a_manifest_and_then_the_payload():
    first, *rest = map(ps_pb2.PullReply.FromString, broadcast())
    CONTRACT.check(first.manifest)
    assert first.manifest.round == 7
    assert [part.chunk.offset for part in rest] == [0, CHUNK_BYTES]
    assert b"".join(part.chunk.data for part in rest) == PAYLOAD


def test_every_pull_gets_the_same_objects_however_they_interleave():
    shared = broadcast()
    early, late = iter(shared), iter(shared)
    head = list(itertools.islice(early, 2))
    messages = list(late)
    assert len(messages) == 3
    assert all(a is b for a, b in zip(messages, head + list(early), strict=True))
