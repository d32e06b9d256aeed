from collections.abc import Callable, Iterator

from varangian.protos.messages import CHUNK_BYTES
from varangian.protos.payloads.chunks import encode_chunk
from varangian.protos.payloads.receiving import Fill, Receive


def cut_chunks(data: memoryview, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Messages with a payload, in pieces of `size` bytes; the last may be shorter."""
    for at in range(0, len(data), size):
        yield encode_chunk(at, data[at : at + size])


def pass_to(take: Callable[[memoryview], object]) -> Fill:
    """Receives pieces into memory of their own, and passes each on."""

    def fill(receive: Receive, most: int) -> int:
        memory = memoryview(bytearray(most))
        count = receive(memory)
        if count:
            take(memory[:count])
        return count

    return fill
