import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.refused import refused

from varangian.protos.refusals import Refusal
from varangian.server.identity.presence import Presence
from varangian.server.identity.sessions import RECONNECT_GRACE, Sessions

SECRET = b"sixteen bytes ok"
FIRST, SECOND = "0" * 32, "f" * 32


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sessions(clock):
    return Sessions(["w01", "w00"], SECRET, timeout=10.0, clock=clock)


def metadata(sessions, name="w00", session=FIRST, **changes):
    values = {"worker": name, "token": sessions.token(name), "session": session} | changes
    return [("user-agent", "x"), *((f"varangian-{key}", value) for key, value in values.items())]


def test_a_token_is_an_hmac_of_the_name(sessions):
    expected = hmac.new(SECRET, b"varangian worker token\nw00", "sha256").hexdigest()
    assert sessions.token("w00") == expected
    assert sessions.token("w01") != expected


def test_a_worker_that_joined_is_known_by_its_name(sessions):
    assert sessions.claim(metadata(sessions)) == "w00"
    assert sessions.identify(metadata(sessions)) == "w00"
    assert sessions.joined == {"w00"}


def test_a_worker_that_has_not_joined_is_refused(sessions):
    assert refused(sessions.identify, metadata(sessions)) is Refusal.NOT_JOINED


def test_the_token_of_another_worker_is_refused(sessions):
    stolen = metadata(sessions, "w00", token=sessions.token("w01"))
    assert refused(sessions.claim, stolen) is Refusal.BAD_TOKEN
    assert sessions.joined == frozenset()


def test_a_name_that_the_run_does_not_have_is_refused(sessions):
    assert refused(sessions.claim, metadata(sessions, worker="w02")) is Refusal.UNKNOWN_WORKER


@pytest.mark.parametrize("missing", ["worker", "token", "session"])
def test_missing_metadata_is_refused(sessions, missing):
    rest = [pair for pair in metadata(sessions) if pair[0] != f"varangian-{missing}"]
    assert refused(sessions.claim, rest) is Refusal.UNIDENTIFIED


@pytest.mark.parametrize("extra", [("varangian-worker", "w01"), ("varangian-token", b"\x00")])
def test_repeated_metadata_is_refused(sessions, extra):
    assert refused(sessions.claim, [*metadata(sessions), extra]) is Refusal.UNIDENTIFIED


@pytest.mark.parametrize("session", ["", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n"])
def test_a_session_is_32_hexadecimal_digits(sessions, session):
    assert refused(sessions.claim, metadata(sessions, session=session)) is Refusal.UNIDENTIFIED


def test_a_second_process_waits_until_the_first_is_silent(sessions, clock):
    sessions.claim(metadata(sessions))
    clock.now += 9
    sessions.identify(metadata(sessions))
    clock.now += 10
    assert refused(sessions.claim, metadata(sessions, session=SECOND)) is Refusal.SESSION_TAKEN
    sessions.identify(metadata(sessions))
    clock.now += 10.5
    sessions.claim(metadata(sessions, session=SECOND))
    assert sessions.identify(metadata(sessions, session=SECOND)) == "w00"
    assert refused(sessions.identify, metadata(sessions)) is Refusal.SESSION_LOST


def test_a_message_of_an_open_stream_is_a_sign_of_life(sessions, clock):
    sessions.claim(metadata(sessions))
    for _ in range(3):
        clock.now += 9
        sessions.touch("w00")
    assert refused(sessions.claim, metadata(sessions, session=SECOND)) is Refusal.SESSION_TAKEN


def test_joining_again_in_the_same_session_changes_nothing(sessions):
    sessions.claim(metadata(sessions))
    assert sessions.claim(metadata(sessions)) == "w00"


def test_a_refused_call_does_not_keep_a_session_alive(sessions, clock):
    sessions.claim(metadata(sessions))
    clock.now += 8
    refused(sessions.identify, metadata(sessions, token="0" * 64))
    clock.now += 8
    assert sessions.claim(metadata(sessions, session=SECOND)) == "w00"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["varangian-worker", "varangian-token", "varangian-session", "x"]),
            st.text(max_size=80) | st.binary(max_size=80),
        ),
        max_size=6,
    )
)
def test_whatever_a_stranger_sends_it_stays_a_stranger(pairs):
    sessions = Sessions(["w00"], SECRET)
    refused(sessions.claim, pairs)
    assert sessions.joined == frozenset()


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\n", "../x", "a" * 64, "\x1b[31m"])
def test_names_that_could_harm_a_log_or_a_path_are_refused(name):
    with pytest.raises(ValueError, match="The name of a worker should be"):
        Sessions([name], SECRET)


def test_names_are_unique():
    with pytest.raises(ValueError, match="unique"):
        Sessions(["a", "a"], SECRET)


def test_a_short_secret_is_refused():
    with pytest.raises(ValueError, match=r"at least 16 bytes\. Found 5"):
        Sessions(["a"], b"short")


def test_a_name_is_free_once_all_connections_of_its_process_are_closed(sessions, clock):
    sessions.claim(metadata(sessions))
    with sessions.calling("w00", persistent=True), sessions.calling("w00"):
        clock.now += 1000
        # Its connection lives, however busy it is: it is there. The name goes by signs of life.
        assert sessions.present == {"w00"}
        sessions.touch("w00")
        assert refused(sessions.claim, metadata(sessions, session=SECOND)) is Refusal.SESSION_TAKEN
    clock.now += RECONNECT_GRACE
    assert sessions.present == {"w00"}
    assert refused(sessions.claim, metadata(sessions, session=SECOND)) is Refusal.SESSION_TAKEN
    clock.now += 0.1
    assert sessions.present == frozenset()
    sessions.claim(metadata(sessions, session=SECOND))
    assert sessions.present == {"w00"}
    assert refused(sessions.identify, metadata(sessions)) is Refusal.SESSION_LOST


def test_a_line_that_breaks_for_a_moment_makes_nobody_absent(sessions, clock):
    sessions.claim(metadata(sessions))
    with sessions.calling("w00", persistent=True):
        pass
    clock.now += RECONNECT_GRACE
    with sessions.calling("w00", persistent=True):
        clock.now += 1000
        assert sessions.present == {"w00"}
    sessions.identify(metadata(sessions))
    clock.now += RECONNECT_GRACE
    assert sessions.present == {"w00"}


def test_a_worker_may_be_waited_for_longer_than_its_name_is_kept(clock):
    sessions = Sessions(["w00"], SECRET, timeout=10.0, absent_after=60.0, clock=clock)
    sessions.claim(metadata(sessions))
    with sessions.calling("w00", persistent=True):
        clock.now += 100
    clock.now += RECONNECT_GRACE + 1
    assert (sessions.present, sessions.connected) == ({"w00"}, set())
    sessions.claim(metadata(sessions, session=SECOND))
    with sessions.calling("w00", persistent=True):
        assert sessions.connected == {"w00"}
    clock.now += 59
    assert (sessions.present, sessions.connected) == ({"w00"}, set())
    clock.now += 2
    assert sessions.present == set()


def test_a_process_that_holds_no_call_open_is_there_until_it_is_silent(sessions, clock):
    sessions.claim(metadata(sessions))
    with sessions.calling("w00"):
        pass
    clock.now += 10
    assert sessions.present == {"w00"}
    clock.now += 0.1
    assert sessions.present == frozenset()


class Told:
    """A run, as far as it hears who is there."""

    def __init__(self):
        self.round, self.first, self.heard = 0, 0, []

    def absent(self, worker):
        self.heard.append(f"{worker} absent")

    def present(self, worker):
        self.heard.append(f"{worker} present")


def test_a_run_hears_once_who_is_gone_and_who_is_back(sessions, clock):
    told = Told()
    presence = Presence(sessions, told)
    sessions.claim(metadata(sessions))
    presence.look()
    assert told.heard == [], "w01 may be started late"
    told.round = told.first + 1
    presence.look()
    presence.look()
    assert told.heard == ["w01 absent"]
    clock.now += 11
    sessions.claim(metadata(sessions, "w01", session=SECOND))
    presence.look()
    presence.look()
    assert told.heard == ["w01 absent", "w00 absent", "w01 present"]


def test_a_run_hears_from_the_first_call_of_a_worker_that_it_is_back(sessions, clock):
    """Not up to half a second later: it has a model by then, and a round might close without it."""
    told = Told()
    presence = Presence(sessions, told)
    sessions.claim(metadata(sessions))
    clock.now += 11
    presence.look()
    presence.note_call(sessions.identify(metadata(sessions)))
    presence.note_call(sessions.identify(metadata(sessions)))
    presence.look()
    assert told.heard == ["w00 absent", "w00 present"]


def test_a_worker_that_is_admitted_may_be_absent_until_it_joins(sessions):
    told = Told()
    presence = Presence(sessions, told)
    sessions.add("w02")
    presence.admit("w02")
    presence.look()
    assert told.heard == [], "a run takes whom it admits for absent"
    presence.note_call("w02")
    assert told.heard == ["w02 present"]


@pytest.mark.parametrize("name", ["", "a b", "../x"])
def test_only_names_of_workers_are_added(sessions, name):
    with pytest.raises(ValueError, match="The name of a worker should be"):
        sessions.add(name)
    assert sessions.names == ("w00", "w01")


def test_members_that_leave_are_told_apart_from_those_that_are_expelled(sessions):
    sessions.claim(metadata(sessions))
    sessions.depart("w00", "it was drained")
    assert (sessions.names, sessions.has_departed("w00")) == (("w01",), True)
    assert sessions.identify(metadata(sessions)) == "w00", "its process may hear of it"
    assert refused(sessions.claim, metadata(sessions, session=SECOND)) is Refusal.EXPELLED
    sessions.expel("w01", "it was expelled")
    sessions.depart("w01", "it was expelled")
    assert (sessions.names, sessions.has_departed("w01")) == ((), False)
    assert sessions.why_expelled("w01").refusal is Refusal.EXPELLED
    sessions.add("w01")
    assert (sessions.names, sessions.why_expelled("w01")) == (("w01",), None)
