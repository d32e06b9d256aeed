from collections.abc import Iterator

from varangian.protos.chunks import encode_chunk
from varangian.protos.messages import CHUNK_BYTES


def cut_chunks(data: memoryview, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Messages with a payload, in pieces of `size` bytes; the last may be shorter."""
    for at in range(0, len(data), size):
        yield encode_chunk(at, data[at : at + size])
