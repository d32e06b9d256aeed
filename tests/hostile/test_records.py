"""TLS records without a byte of payload, and questions that TLS answers by itself: neither has an end."""

import contextlib
import ssl

import pytest

from varangian.protos.secured import Secured


class Endless:
    """A socket on which something comes all the time, and that takes nothing."""

    def __init__(self):
        self.came = 0

    def recv_into(self, memory):
        self.came += len(memory)
        return len(memory)

    def send(self, data):
        raise BlockingIOError


class Records:
    """TLS that finds no payload in what comes, and has an answer to each byte of it."""

    def __init__(self, questions, answers, found=b""):
        self.questions, self.answers, self.found = questions, answers, found

    def read(self, size, memory):
        if self.found:
            memory[: len(self.found)] = self.found
            count, self.found = len(self.found), b""
            return count
        asked = self.questions.read()
        if self.answers is not None:
            self.answers.write(asked)
        raise ssl.SSLWantReadError


def secured(answers=False, found=b""):
    connection = Endless()
    made = Secured(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), connection)
    made._tls = Records(made._in, made._out if answers else None, found)
    return made, connection


def test_a_turn_ends_though_records_do_not():
    made, connection = secured()
    memory = memoryview(bytearray(1 << 20))
    with pytest.raises(ssl.SSLWantReadError):
        made.recv_into(memory)
    assert connection.came <= 2 * len(memory)


def test_what_was_found_before_them_is_passed_on():
    made, _ = secured(found=b"payload")
    memory = memoryview(bytearray(1 << 20))
    assert made.recv_into(memory) == 7
    assert memory[:7] == b"payload"


def test_who_asks_without_end_is_left():
    made, connection = secured(answers=True)
    memory = memoryview(bytearray(1 << 20))
    with contextlib.suppress(ssl.SSLWantReadError):
        made.recv_into(memory)
    with pytest.raises(ssl.SSLError, match="carries nothing"):
        made.recv_into(memory)
    assert connection.came <= 4 << 20
