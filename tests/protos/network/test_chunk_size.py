import itertools

from varangian.protos.messages import CHUNK_BYTES, CHUNK_FLOOR, CHUNK_LIMIT
from varangian.protos.network.chunk_size import WINDOW, ChunkSize


def sent(pace, rate, total):
    """Send so many bytes on a line of so many a second; the sizes and the longest message in seconds."""
    sizes, longest = [], 0.0
    while sum(sizes) < total:
        size = pace.size
        sizes.append(size)
        longest = max(longest, size / rate)
        pace.record(size, size / rate)
    return sizes, longest


def test_a_fast_line_has_large_messages_after_a_window():
    pace = ChunkSize()
    sizes, _ = sent(pace, 1e9, 10 << 20)
    small = list(itertools.takewhile(lambda size: size == CHUNK_FLOOR, sizes))
    assert sum(small) == WINDOW
    assert sizes[len(small) :][:4] == [CHUNK_FLOOR * 4, CHUNK_FLOOR * 16, CHUNK_FLOOR * 64, CHUNK_BYTES]
    assert sent(pace, 1e9, 3 << 20)[0] == [CHUNK_BYTES] * 3


def test_a_line_of_a_kilobyte_a_second_never_has_others():
    sizes, longest = sent(ChunkSize(), 1000, 1 << 20)
    assert set(sizes) == {CHUNK_FLOOR}
    assert longest < 5


def test_no_message_takes_long_on_any_line():
    for rate in (2e3, 1e4, 1e5, 1e6, 3e6):
        _, longest = sent(ChunkSize(), rate, 8 << 20)
        assert longest <= max(4 * 0.25, CHUNK_FLOOR / rate)


def test_messages_shrink_on_a_line_that_gets_worse():
    pace = ChunkSize()
    sent(pace, 1e9, 4 << 20)
    sizes, _ = sent(pace, 1e5, 4 << 20)
    assert sizes[0] == CHUNK_BYTES
    assert sizes[-1] <= 1e5


def test_what_a_buffer_swallows_at_once_says_nothing():
    """A window opens by 32 KB after half a minute in which nothing could be sent."""
    pace, behind = ChunkSize(), 0
    for _ in range(200):
        behind += pace.size
        pace.record(pace.size, behind // (32 << 10) * 32.0)
        behind %= 32 << 10
        assert pace.size == CHUNK_FLOOR


def test_who_was_silent_begins_anew():
    pace = ChunkSize()
    sent(pace, 1e9, 4 << 20)
    pace.stalled()
    assert pace.size == CHUNK_FLOOR
    assert sent(pace, 1e9, 1 << 20)[0].count(CHUNK_FLOOR) >= WINDOW // CHUNK_FLOOR


def test_the_server_says_what_is_large():
    for asked, most in ((1, CHUNK_FLOOR), (1 << 16, 1 << 16), (1 << 30, CHUNK_LIMIT)):
        pace = ChunkSize()
        pace.set_limit(asked)
        sent(pace, 1e9, 32 << 20)
        assert pace.size == most
        pace.set_limit(CHUNK_FLOOR)
        assert pace.size == CHUNK_FLOOR


def test_the_short_last_message_says_nothing():
    pace = ChunkSize()
    sent(pace, 1e9, 4 << 20)
    pace.record(100, 0.0001)
    pace.record(100, 5.0)
    assert pace.size == CHUNK_BYTES
