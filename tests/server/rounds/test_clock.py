"""Alarms and news, on a clock that moves when told to and on a real loop."""

import asyncio

from varangian.server.rounds.clock import MONOTONIC, Alarm, Clock, LatestValue


def test_an_alarm_rings_once_at_its_moment(time):
    rings = []
    alarm = Alarm(time.clock, lambda: rings.append(time.now))
    alarm.set(1005.0)
    time.advance(4.9)
    assert rings == []
    time.advance(100.0)
    assert rings == [1005.0]


def test_a_moment_that_has_passed_rings_at_once(time):
    rings = []
    Alarm(time.clock, lambda: rings.append(time.now)).set(3.0)
    time.advance(0.0)
    assert rings == [1000.0]


def test_an_alarm_is_put_off_and_called_off(time):
    rings = []
    alarm = Alarm(time.clock, lambda: rings.append(time.now))
    for at in (1005.0, 1009.0, 1009.0):
        alarm.set(at)
        assert [timer.at for timer in time.waiting()] == [at]
    time.advance(6.0)
    assert rings == []
    alarm.set(None)
    time.advance(60.0)
    assert rings == []


def test_a_clock_that_rings_early_is_set_again_for_the_same_moment(time):
    """Timers of a real loop may come a few microseconds before their time."""
    rings = []

    def ring():
        rings.append(time.now)
        alarm.set(1005.0)

    early = iter([0.25, 0.0, 0.0])
    alarm = Alarm(Clock(time.clock.now, lambda delay, act: time.call_later(delay - next(early), act)), ring)
    alarm.set(1005.0)
    time.advance(4.75)
    assert rings == [1004.75]
    assert [timer.at for timer in time.waiting()] == [1005.0]


async def test_a_later_value_reaches_readers_of_a_real_loop():
    latest = LatestValue(0, MONOTONIC)
    reader = asyncio.create_task(latest.wait_for(lambda value: value > 1, 1e6))
    for value in (1, 2, 3):
        await asyncio.sleep(0)
        latest.publish(value)
    assert await reader >= 2
    assert await latest.wait_for(lambda value: value > 3, 1e-4) is None
