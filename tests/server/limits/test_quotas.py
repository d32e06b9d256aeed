import pytest
from tests.refused import refused

from varangian.protos.errors import Refused
from varangian.protos.refusals import Refusal
from varangian.server.limits.concurrency import StreamQuota
from varangian.server.limits.quotas import (
    DOWNLOAD_EVERY,
    JOINS_PER_SECOND,
    LONGEST_DELAY,
    Calls,
    CutOffError,
    Guesses,
    RoundQuotas,
    TokenBucket,
)


@pytest.fixture
def quotas(time):
    return RoundQuotas(uploads=3, downloads=2, joins=4, clock=lambda: time.now)


def test_a_bucket_holds_so_much_and_fills_at_its_rate(time):
    bucket = TokenBucket(rate=2.0, most=3.0, clock=lambda: time.now)
    assert [bucket.try_to_take() for _ in range(4)] == [True, True, True, False]
    time.advance(0.4)
    assert not bucket.try_to_take()
    time.advance(0.1)
    assert bucket.try_to_take()
    time.advance(1000.0)
    assert [bucket.try_to_take() for _ in range(4)] == [True, True, True, False]


def test_what_is_taken_before_it_is_there_is_waited_for(time):
    bucket = TokenBucket(rate=50.0, most=2.0, clock=lambda: time.now)
    assert [round(bucket.take(), 6) for _ in range(4)] == [0.0, 0.0, 0.02, 0.04]
    time.advance(0.04)
    assert round(bucket.take(), 6) == 0.02


def test_uploads_are_counted_by_worker_and_round(quotas):
    for _ in range(3):
        quotas.upload("w00", 7)
    assert refused(quotas.upload, "w00", 7) is Refusal.UPLOADS
    quotas.upload("w01", 7)
    quotas.upload("w00", 8)


def test_downloads_of_the_same_parameters_come_by_and_by(quotas, time):
    for _ in range(2):
        quotas.download("w00", 7)
    assert refused(quotas.download, "w00", 7) is Refusal.PULLS
    quotas.download("w00", 8)
    quotas.download("w00", 8)
    assert refused(quotas.download, "w00", 8) is Refusal.PULLS
    time.advance(DOWNLOAD_EVERY)
    quotas.download("w00", 8)
    assert refused(quotas.download, "w00", 8) is Refusal.PULLS


def test_joins_come_by_and_by(quotas, time):
    for _ in range(4):
        quotas.join("w00")
    assert refused(quotas.join, "w00") is Refusal.JOINS
    quotas.join("w01")
    time.advance(1 / JOINS_PER_SECOND)
    quotas.join("w00")


def test_a_stream_makes_room_when_it_ends(quotas):
    quota = StreamQuota(1)
    with quota.stream("w00"):
        with pytest.raises(Refused), quota.stream("w00"):
            pass
        with quota.stream("w01"):
            pass
    with quota.stream("w00"):
        pass


def test_a_caller_is_slowed_down_then_refused_and_then_cut_off(time):
    calls = Calls(rate=2.0, most=2.0, clock=lambda: time.now)
    assert [calls.take("w00") for _ in range(4)] == [(0.0, False), (0.0, False), (0.5, False), (1.0, False)]
    assert [calls.take("w00") for _ in range(4)] == [(LONGEST_DELAY, True)] * 4
    with pytest.raises(CutOffError):
        calls.take("w00")
    assert calls.take("w01") == (0.0, False)
    time.advance(3.0)
    assert calls.take("w00") == (0.0, False)


def test_what_a_round_needs_is_given_back(time):
    calls = Calls(rate=1.0, most=1.0, clock=lambda: time.now)
    for _ in range(100):
        assert calls.take("w00") == (0.0, False)
        calls.give("w00")


def test_callers_that_are_too_many_share_a_bucket(time, monkeypatch):
    monkeypatch.setattr("varangian.server.limits.quotas.MOST_CALLERS", 3)
    calls = Calls(rate=1.0, most=1.0, clock=lambda: time.now)
    assert [calls.take(f"address {i}")[0] for i in range(4)] == [0.0] * 4
    assert calls.take("address 4")[0] == 1.0
    time.advance(9.0)
    assert calls.take("address 5") == (0.0, False)


def test_wrong_enrolment_tokens_are_limited_for_each_address(time):
    guesses = Guesses(lambda: time.now)
    for _ in range(5):
        guesses.check("192.0.2.1")
        guesses.note("192.0.2.1")
    assert refused(guesses.check, "192.0.2.1") is Refusal.GUESSES
    guesses.check("192.0.2.2")
    time.advance(12.0)
    guesses.check("192.0.2.1")
    guesses.note("192.0.2.1")
    assert refused(guesses.check, "192.0.2.1") is Refusal.GUESSES


def test_addresses_of_wrong_tokens_do_not_fill_the_memory(time, monkeypatch):
    monkeypatch.setattr("varangian.server.limits.quotas.MOST_CALLERS", 3)
    guesses = Guesses(lambda: time.now)
    for number in range(10):
        for _ in range(5):
            guesses.note(f"192.0.2.{number}")
    for number in range(3):
        assert refused(guesses.check, f"192.0.2.{number}") is Refusal.GUESSES
    guesses.check("192.0.2.3")
    time.advance(60.0)  # whom nobody has heard of for a while makes room
    for _ in range(5):
        guesses.note("192.0.2.9")
    assert refused(guesses.check, "192.0.2.9") is Refusal.GUESSES
