import gc
import itertools
import weakref

from varangian.protos import ps_pb2
from varangian.protos.contract import Contract
from varangian.protos.layout import Layout
from varangian.protos.messages import CHUNK_BYTES, CHUNK_FLOOR
from varangian.protos.payloads.encoding import payload_digest
from varangian.server.transport.downloads import SHARED, Broadcast

CONTRACT = Contract("run-1", Layout((("weight", (3, CHUNK_BYTES // 8)),)))
PAYLOAD = bytes(range(256)) * (CONTRACT.layout.numel * 4 // 256)


def broadcast():
    return Broadcast(CONTRACT, 7, memoryview(PAYLOAD), payload_digest(PAYLOAD))


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


class Line:
    """A clock that goes on only while a message is on its way."""

    def __init__(self, monkeypatch, rate):
        self.now, self.rate = 0.0, rate
        monkeypatch.setattr("varangian.server.transport.downloads.monotonic", lambda: self.now)

    def sizes(self, messages):
        next(messages)
        for message in messages:
            self.now += len(message) / self.rate
            yield len(ps_pb2.PullReply.FromString(message).chunk.data)


def test_a_pull_may_begin_with_small_chunks_which_grow_until_they_are_the_shared_ones(monkeypatch):
    payload = memoryview(bytes(5 * CHUNK_BYTES))
    shared = Broadcast(CONTRACT, 0, payload, bytes(16))
    for asked, size in ((1, CHUNK_FLOOR), (100_000, 100_000), (1 << 30, CHUNK_BYTES)):
        sizes = list(Line(monkeypatch, rate=1e9).sizes(shared.messages(asked)))
        assert sizes[0] == size
        assert sum(sizes) == len(payload)
        assert sizes[-3:] == [CHUNK_BYTES] * 3
    *_, last = shared.messages(1)
    assert last is list(shared.messages())[-1]


def test_chunks_stay_small_on_a_line_that_is_slow_and_become_so_on_one_that_gets_slow(monkeypatch):
    shared = Broadcast(CONTRACT, 0, memoryview(bytes(5 * CHUNK_BYTES)), bytes(16))
    line = Line(monkeypatch, rate=1000)
    assert set(line.sizes(shared.messages(1))) == {CHUNK_FLOOR}
    line.rate = 1e9
    sizes = []
    for size in line.sizes(shared.messages()):
        sizes.append(size)
        line.rate = 1e4
    assert (sizes[0], sizes[-1]) == (CHUNK_BYTES, CHUNK_FLOOR)
    assert sum(sizes) == 5 * CHUNK_BYTES


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
