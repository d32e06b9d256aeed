"""Time that passes when it is told to."""

from varangian.launch.simulation.virtual_clock import VirtualTime


def test_what_is_due_happens_in_order_at_its_moment():
    time, seen = VirtualTime(), []

    def note(name):
        return lambda: seen.append((name, time.clock.now()))

    for delay, name in ((2.0, "late"), (1.0, "early"), (1.0, "early too"), (9.0, "never")):
        time.clock.call_later(delay, note(name))
    assert time.next_at == 1.0
    time.advance(3.0)
    assert seen == [("early", 1.0), ("early too", 1.0), ("late", 2.0)]
    assert (time.now, time.next_at) == (3.0, 9.0)


def test_what_is_called_off_does_not_happen():
    time, seen = VirtualTime(), []
    timer = time.clock.call_later(1.0, lambda: seen.append("called off"))
    timer.cancel()
    assert time.next_at is None
    time.advance(2.0)
    assert seen == []


def test_what_happens_can_cause_more_on_the_way():
    time, seen = VirtualTime(), []
    time.clock.call_later(1.0, lambda: time.clock.call_later(1.0, lambda: seen.append(time.now)))
    time.advance(5.0)
    assert seen == [2.0]


def test_time_does_not_go_back():
    time = VirtualTime()
    time.advance(2.0)
    time.advance(1.0)
    assert time.now == 2.0
