import gc

from varangian.server.process.garbage_collector import frozen_garbage_collector


class Ring:
    """Only the collector can free it."""

    freed = 0

    def __init__(self):
        self.ring = self

    def __del__(self):
        Ring.freed += 1


def test_what_was_there_before_is_looked_at_again_afterwards_and_what_comes_meanwhile_at_once():
    gc.collect()
    Ring.freed = 0
    Ring()
    with frozen_garbage_collector():
        gc.collect()
        assert Ring.freed == 0
        Ring()
        gc.collect()
        assert Ring.freed == 1
    gc.collect()
    assert Ring.freed == 2
