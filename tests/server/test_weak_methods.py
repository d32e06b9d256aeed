"""Methods that do not keep their object alive."""

import weakref

from varangian.server.weak_methods import weakly


class Counter:
    """Counts how often its part was rung."""

    def __init__(self):
        self.rings = 0
        self.part = weakly(self.ring)

    def ring(self, more=1):
        self.rings += more
        return self.rings


def test_it_is_the_method_as_long_as_its_object_is_there():
    counter = Counter()
    assert [counter.part(), counter.part(more=2)] == [1, 3]


def test_an_object_is_freed_although_its_part_has_its_method():
    counter = Counter()
    part, gone = counter.part, weakref.ref(counter)
    del counter
    assert gone() is None
    assert part() is None
