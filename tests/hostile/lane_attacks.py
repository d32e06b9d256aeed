"""Attacks of peers on the lane beside gRPC. Each attack lets go of everything when it is over.

`siege` is a server with several workers, of which w02 and those after it are nobody's friends.
"""

import contextlib
import random
import secrets
import socket
import threading
import time

from tests.extent import patience
from tests.hostile.http2 import HungUp
from tests.hostile.rogue import BAD, BUSY, GOOD, Rogue, hung_up, received, reset, sent

from varangian.protos.data_channel.connection import TICKET
from varangian.protos.payloads.chunks import encode_chunk
from varangian.protos.payloads.encoding import encode_vector, payload_digest

STRANGERS = 64
"""Connections without a ticket that the server puts up with."""
CROWD = 200
OTHERS = ("w03", "w04")
"""More workers of the run that may send what they like, if there are any."""
CUT = ("LANE", "TOO_FEW_BYTES", *BUSY)
"""Where less came than was promised."""
TAKEN = ("", *BUSY)
"""Where all of it came, to a machine with other things to do perhaps."""


def worker_group(stack, rogue, count=CROWD, first=b""):
    """So many connections that have said this; those that the server has ended at once are left out."""
    lines = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            lines.append(stack.enter_context(rogue.dial()))
            lines[-1].sendall(first)
    return lines


def heard(attempt):
    """What becomes of a call, tried again while the server says that it was too slow, or too late."""
    for _ in range(10):
        if (found := attempt()) not in BUSY:
            break
    return found


def alive(lines):
    """Those that the server has not ended yet."""
    return [line for line in lines if not hung_up(line, 0.001)]


# strangers


def strangers(siege):
    """They say nothing, or most of a ticket, or a byte now and then, which is no sign of life."""
    with Rogue(siege) as rogue, contextlib.ExitStack() as stack:
        lines = [line for i in range(3) for line in worker_group(stack, rogue, CROWD // 3, bytes(8 * i))]
        yield
        assert len(alive(lines)) <= STRANGERS
        yield
        for _ in range(round(patience(40))):
            lines = [line for i, line in enumerate(alive(lines)) if i % 2 or sent(line, b"\0")]
            if not lines:
                break
            time.sleep(0.5)
        assert not lines


def noise(siege):
    """What is no ticket ends the connection, however much there is of it."""
    source = random.Random(3)
    with Rogue(siege) as rogue:
        for _ in range(40):
            line = rogue.dial()
            sent(line, source.randbytes(source.randrange(TICKET, 1 << 16)))
            assert hung_up(line)


def guesses(siege):
    """With a push that waits for its payload, and near to its ticket."""
    with Rogue(siege) as rogue:
        stream, ticket = rogue.offers()
        tries = [bytes(16), ticket[:-1] + bytes([ticket[-1] ^ 1]), ticket.hex()[:16].encode(), ticket[::-1]]
        for guess in (*tries, *(secrets.token_bytes(TICKET) for _ in range(20))):
            line = rogue.dial()
            sent(line, guess)
            assert hung_up(line)
        data = rogue.payload(GOOD)
        delivered = sent(rogue.dial(), ticket + data)
        rogue.seal(stream, payload_digest(data))
        found = rogue.code(stream)
        assert found in TAKEN, "a wrong ticket takes nothing from who has the right one"
        assert delivered or found in BUSY


def connection_flood(siege):
    """Hundreds of connections, with and without good manners."""
    with Rogue(siege) as rogue:
        for i in range(300):
            line = socket.create_connection((siege.host, rogue.port), 10)
            (reset if i % 2 else socket.socket.close)(line)


# tickets


def old_tickets(siege):
    """A ticket is good for one connection, and for one time; also while its call lasts."""
    with Rogue(siege) as rogue:
        stream, ticket = rogue.offers()
        line, data = rogue.dial(), rogue.payload(GOOD)
        said = ticket + data
        delivered = sent(line, said[:1000])
        _refused(rogue, ticket)
        delivered &= sent(line, said[1000:])
        _refused(rogue, ticket)
        rogue.seal(stream, payload_digest(data))
        found = rogue.code(stream)
        assert found in TAKEN
        assert delivered or found in BUSY
        _refused(rogue, ticket)
        sent(line, ticket)
        assert hung_up(line)


def _refused(rogue, ticket):
    line = rogue.dial()
    sent(line, ticket)
    assert hung_up(line)


def crossed_tickets(siege):
    """Each of two workers shows the ticket of the other one: nothing else says whose payload it is."""
    with Rogue(siege) as one, Rogue(siege, OTHERS[0]) as two:
        calls = [rogue.offers() for rogue in (one, two)]
        lines = [one.dial(), two.dial()]
        for line, (_, ticket), value in zip(lines, reversed(calls), (5.0, 4.0), strict=True):
            sent(line, ticket + one.payload(value))
        for rogue, (stream, _), value in zip((one, two), calls, (4.0, 5.0), strict=True):
            rogue.seal(stream, payload_digest(rogue.payload(value)))
            assert rogue.code(stream) in TAKEN


def one_ticket_behind_another(siege):
    """Two calls of one worker, whose payloads come on one line, and whose tickets on two."""
    with Rogue(siege) as rogue:
        push, first = rogue.offers()
        pull, second = rogue.wants()
        line, other, data = rogue.dial(), rogue.dial(), rogue.payload(GOOD)
        delivered = sent(line, first + data + second)
        sent(other, second)
        rogue.seal(push, payload_digest(data))
        code = rogue.code(push)
        assert code in TAKEN
        assert delivered or code in BUSY
        found = [len(received(line, len(data))), len(received(other, len(data)))]
        assert found.count(0) >= 1
        rogue.end(pull)


def shown_and_cancelled(siege):
    """Calls that end in the moment in which their line has come."""
    with Rogue(siege) as rogue:
        for i in range(14):
            stream, ticket = (rogue.wants if i % 5 == 4 else rogue.offers)()
            line = rogue.dial()
            sent(line, ticket + bytes(i % 3 * 100_000))
            rogue.cancel(stream)
            assert hung_up(line) or i % 5 == 4  # what a pull has sent by then is read by nobody


def never_shown(siege):
    """Two calls with tickets that nobody shows."""
    with Rogue(siege) as rogue:
        push, _ = rogue.offers()
        pull, _ = rogue.wants()
        yield
        assert rogue.code(push) in CUT
        assert rogue.code(pull) in CUT


# payloads that are less, more or other than what was promised


def midway(siege):
    """They stop, and their lines stay open."""
    with contextlib.ExitStack() as stack:
        rogues = [stack.enter_context(Rogue(siege, name)) for name in (None, *OTHERS)]
        calls = []
        for rogue, part in zip(rogues, (3, 1 << 20, 4 * siege.numel - 1), strict=True):
            stream, ticket = rogue.offers()
            line = rogue.dial()
            sent(line, ticket + rogue.payload(BAD)[:part])
            calls.append((rogue, stream, line))
        for rogue, stream, line in calls:
            assert rogue.code(stream) in CUT
            assert hung_up(line)


def cut(siege):
    """It stops, and the line ends: well or not, and with a seal before that or without."""
    with Rogue(siege) as rogue:
        data = rogue.payload(BAD)
        for i in range(8):
            stream, ticket = rogue.offers()
            line = rogue.dial()
            sent(line, ticket + data[: (0, 5, 1 << 20, len(data) - 1)[i % 4]])
            if i % 3 == 0:
                rogue.seal(stream, payload_digest(data))
            (reset if i % 2 else socket.socket.close)(line)
            assert rogue.code(stream) in CUT


def too_little_and_a_seal(siege):
    with Rogue(siege) as rogue:
        data = rogue.payload(BAD)[:-4]
        stream, ticket = rogue.offers()
        line = rogue.dial()
        sent(line, ticket + data)
        rogue.seal(stream, payload_digest(data))
        assert rogue.code(stream) in CUT
        assert hung_up(line)


def too_much(siege):
    """What follows a payload is another ticket, and a bad one; the payload was good."""
    with Rogue(siege) as rogue:
        data = rogue.payload(GOOD)
        for more in (1, TICKET, 1 << 20):

            def pushed(more=more):
                stream, ticket = rogue.offers()
                line = rogue.dial()
                sent(line, ticket + data + bytes(more))
                rogue.seal(stream, payload_digest(data))
                found = rogue.code(stream)
                assert more < TICKET or hung_up(line)
                return found

            assert heard(pushed) == ""
            yield


def _pushed(rogue, data, before=b"", after=None):
    """What becomes of a push with these digests in its manifest and its seal."""
    stream, ticket = rogue.offers(before)
    sent(rogue.dial(), ticket + data)
    if after is None:
        rogue.line.data(stream, b"", end=True)
    else:
        rogue.seal(stream, after)
    return rogue.code(stream)


def wrong_digests(siege):
    with Rogue(siege) as rogue:
        data = rogue.payload(BAD)
        for digest in (bytes(16), payload_digest(data[:-1])):
            assert heard(lambda digest=digest: _pushed(rogue, data, after=digest)) == "DIGEST"
            assert heard(lambda digest=digest: _pushed(rogue, data, before=digest)) == "DIGEST"


def no_seal(siege):
    """It is said neither before nor after the payload what that should hash to; or twice."""
    with Rogue(siege) as rogue:
        data = rogue.payload(BAD)
        digest = payload_digest(data)
        assert heard(lambda: _pushed(rogue, data)) == "DIGEST_SIZE"
        assert heard(lambda: _pushed(rogue, data, digest, digest)) == "MALFORMED"


def chunks_all_the_same(siege):
    """Chunks over gRPC in a call that has a ticket: before the payload, beside it and after it."""
    with contextlib.ExitStack() as stack:
        rogues = [stack.enter_context(Rogue(siege, name)) for name in (None, *OTHERS)]
        data = rogues[0].payload(BAD)
        chunk = encode_chunk(0, data[: 1 << 20])
        for rogue, shown in zip(rogues, (b"", data[: 1 << 20], data), strict=True):
            stream, ticket = rogue.offers()
            line = rogue.dial()
            with contextlib.suppress(HungUp):
                rogue.line.message(stream, chunk)
                sent(line, ticket + shown if shown else b"")
                while rogue.line.message(stream, chunk):
                    pass
            assert rogue.code(stream) in (*CUT, "TOO_MANY_BYTES", "ORDER", "MALFORMED")
            assert shown != data[: 1 << 20] or hung_up(line)


# slow and stubborn ones


def slow_loris(siege):
    """Every worker that is no friend sends a few bytes now and then, on as many calls as it may have."""
    with contextlib.ExitStack() as stack:
        rogues = [stack.enter_context(Rogue(siege, name)) for name in (None, *OTHERS)]
        lines = []
        for rogue in rogues:
            (_, push), (_, pull) = rogue.offers(), rogue.wants()
            lines += [rogue.dial(), rogue.dial(room=4096)]
            sent(lines[-2], push)
            sent(lines[-1], pull)
        worker_group(stack, rogues[0])
        while True:
            for _ in range(10):
                for line in lines:
                    sent(line, b"\0")
                time.sleep(0.02)
            yield


def drip(siege):
    """A byte each millisecond: just enough for something to be there all the time."""
    over = threading.Event()

    def dripping(lines):
        while not over.wait(0.001):
            for push, pull in lines:
                sent(push, b"\0")
                received(pull, 1)

    with contextlib.ExitStack() as stack:
        lines = []
        for name in (None, *OTHERS):
            rogue = stack.enter_context(Rogue(siege, name))
            (_, push), (_, pull) = rogue.offers(), rogue.wants()
            lines.append((rogue.dial(), rogue.dial(room=4096)))
            for line, ticket in zip(lines[-1], (push, pull), strict=True):
                sent(line, ticket)
        thread = threading.Thread(target=dripping, args=(lines,))
        thread.start()
        try:
            for _ in range(3):
                yield
        finally:
            over.set()
            thread.join()


def never_read(siege):
    """Models that are asked for and not taken in; others are taken in a byte at a time."""
    with contextlib.ExitStack() as stack:
        rogues = [stack.enter_context(Rogue(siege, name)) for name in (None, *OTHERS)]
        calls, slow = [], []
        for rogue in rogues:
            for _ in range(2):
                stream, ticket = rogue.wants()
                line = rogue.dial(room=4096)
                sent(line, ticket)
                calls.append((rogue, stream))
                slow.append(line)
        for _ in range(2):
            for line in slow[::2]:
                with contextlib.suppress(OSError):
                    line.recv(1)
            yield
        for rogue, stream in calls:
            assert rogue.code(stream) in CUT


def overlapping(siege):
    """A push is given up while its bytes land, and another one of the same worker takes its place."""
    with Rogue(siege) as rogue:
        bad, good = rogue.payload(BAD), rogue.payload(GOOD)
        for i in range(5):
            senders = []
            for pause in (0.001 * i, 0.01):
                stream, ticket = rogue.offers()
                senders.append(threading.Thread(target=sent, args=(rogue.dial(), ticket + bad[:-1])))
                senders[-1].start()
                time.sleep(pause)
                rogue.cancel(stream)
            assert rogue.gives(good) == ""
            for sender in senders:
                sender.join()
            yield


# what was not encrypted with the key of its call, for its transfer


def _not_taken(rogue, forged):
    """What `forged` makes of a ticket ends its line and its call, and proves nothing about anybody."""

    def pushed():
        stream, ticket = rogue.offers()
        line, data = rogue.dial(), rogue.payload(BAD)
        sent(line, bytes(ticket) + forged(ticket, data))
        rogue.seal(stream, payload_digest(data))
        found = rogue.code(stream)
        assert hung_up(line)
        return found

    assert heard(pushed) == "LANE"


def _other(records, at):
    """With another bit in one record."""
    return b"".join(bytes([record[0] ^ (i == at), *record[1:]]) for i, record in enumerate(records))


def unsealed(siege):
    """In clear text, with another key, for another transfer, changed, moved, repeated or left out."""
    with Rogue(siege) as rogue, Rogue(siege, OTHERS[0]) as other:
        stream, theirs = other.offers()
        forgeries = (
            lambda ticket, data: data,
            lambda ticket, data: b"".join(theirs.records(data)),
            lambda ticket, data: _other(ticket.records(data), 0),
            lambda ticket, data: _other(ticket.records(data), len(ticket.records(data)) - 1),
            lambda ticket, data: b"".join(reversed(ticket.records(data))),
            lambda ticket, data: ticket.records(data)[0] * 99,
            lambda ticket, data: b"".join(ticket.records(data)[1:]) + bytes(1 << 20),
            lambda ticket, data: b"".join(ticket.records(data, direction="pull")),
            lambda ticket, data: b"".join(ticket.records(data, round=ticket.transfer.round + 1)),
            lambda ticket, data: b"".join(ticket.records(data, worker=OTHERS[0])),
        )
        for forged in forgeries:
            _not_taken(rogue, forged)
            yield
        other.cancel(stream)
        assert not any(rogue.name in record["dropped"] for record in siege.rounds)


def stolen_tickets(siege):
    """Whoever has seen a ticket can end its call; what comes can be read in clear text only."""
    with Rogue(siege) as rogue, Rogue(siege, OTHERS[0]) as thief:
        found = b""
        while len(found) < 1 << 20:
            stream, ticket = rogue.wants()
            line = thief.dial()
            sent(line, bytes(ticket))
            found = received(line, 1 << 20)
            assert len(found) == 1 << 20 or rogue.code(stream) in BUSY
        model = bytes(encode_vector(rogue.takes()[:64]))
        assert (model in found) == (siege.certs is None)
        rogue.end(stream)


ATTACKS = (
    strangers,
    noise,
    guesses,
    connection_flood,
    old_tickets,
    crossed_tickets,
    one_ticket_behind_another,
    shown_and_cancelled,
    never_shown,
    midway,
    cut,
    too_little_and_a_seal,
    too_much,
    wrong_digests,
    no_seal,
    chunks_all_the_same,
    slow_loris,
    drip,
    never_read,
    overlapping,
    stolen_tickets,
)
SEALED = (unsealed,)
