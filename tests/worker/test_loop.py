import asyncio
import logging

import pytest
import torch

from varangian.protos.contract import Terms
from varangian.worker.loop import work
from varangian.worker.transport.client import ClientError, Finished, Pulled, Receipt
from varangian.worker.transport.results import Declined


class FakeClient:
    """Rounds to hand out, receipts to hand back, and a diary."""

    name, run, terms = "w00", "run-1", Terms()

    def __init__(self, rounds, receipts=()):
        self.rounds, self.receipts, self.diary = list(rounds), list(receipts), []

    async def join(self):
        self.diary.append("join")
        return 0

    async def pull(self, after):
        self.diary.append(("pull", after))
        if not self.rounds:
            return Finished("all done")
        round = self.rounds.pop(0)
        if isinstance(round, Exception):
            raise round
        return Pulled(round, torch.full((2,), float(round)))

    async def push(self, round, vector):
        self.diary.append(("push", round, vector.tolist()))
        return self.receipts.pop(0) if self.receipts else Receipt(True, round=round)

    async def decline(self, round, reason):
        self.diary.append(("decline", round, reason))


async def doubled(round, parameters):
    return 2 * parameters


def test_it_serves_every_round_that_it_is_given_until_the_end():
    client = FakeClient([0, 1, 5])
    assert asyncio.run(work(client, doubled)) == "all done"
    assert client.diary == [
        "join",
        ("pull", -1),
        ("push", 0, [0.0, 0.0]),
        ("pull", 0),
        ("push", 1, [2.0, 2.0]),
        ("pull", 1),
        ("push", 5, [10.0, 10.0]),
        ("pull", 5),
    ]


def test_it_is_away_until_its_turn():
    """The server has the worker wait: it is asked for a round after the last one that is another's."""
    client = FakeClient([3, 7])
    odd = {0: 3, 4: 7, 8: 11}
    assert asyncio.run(work(client, doubled, next_round=odd.__getitem__)) == "all done"
    assert client.diary == [
        "join",
        ("pull", 2),
        ("push", 3, [6.0, 6.0]),
        ("pull", 6),
        ("push", 7, [14.0, 14.0]),
        ("pull", 10),
    ]


class RestartedClient(FakeClient):
    """Before some pulls its server is started again, with other terms or another run."""

    def __init__(self, rounds, starts, receipts=()):
        super().__init__(rounds, receipts)
        self.starts = starts

    async def pull(self, after):
        self.run, self.terms = self.starts.get(len(self.rounds), (self.run, self.terms))
        return await super().pull(after)


def rewinding(found=()):
    """A history that notes to which rounds it goes back, and what was not confirmed then."""
    heard, found = [], list(found)

    async def rewind(round):
        heard.append(round)
        return found.pop(0) if found else None

    return heard, rewind


def test_it_goes_back_with_each_start_of_the_server(caplog):
    heard, rewind = rewinding()
    starts = {3: ("run-1", Terms(epoch=1)), 1: ("run-2", Terms())}
    client = RestartedClient([3, 4, 0, 1, 5, 7], starts)
    assert asyncio.run(work(client, doubled, rewind=rewind)) == "all done"
    assert heard == [3, 0, 1, 7], "first, a round that was served, another epoch, and another run"
    assert "w00 starts again with round 0: its server was restarted" in caplog.text


def test_a_vector_that_may_have_counted_is_pushed_before_the_next_one():
    counted, lost = [], torch.ones(2)
    heard, rewind = rewinding([(4, lost)])
    client = FakeClient([6, 7])
    assert asyncio.run(work(client, doubled, on_counted=counted.append, rewind=rewind)) == "all done"
    pushed = [entry[1:] for entry in client.diary if entry[0] == "push"]
    assert pushed == [(4, [1.0, 1.0]), (6, [12.0, 12.0]), (7, [14.0, 14.0])]
    assert counted == [4, 6, 7]
    assert heard == [6]


def test_a_vector_of_the_round_at_hand_is_not_pushed_twice():
    _, rewind = rewinding([(6, torch.ones(2))])
    client = FakeClient([6])
    asyncio.run(work(client, doubled, rewind=rewind))
    assert [entry[1] for entry in client.diary if entry[0] == "push"] == [6]


def test_what_was_computed_for_an_earlier_start_is_not_pushed():
    async def restarted_meanwhile(round, parameters):
        if client.terms.epoch == 0:
            client.terms = Terms(epoch=1)
        return 2 * parameters

    heard, rewind = rewinding()
    client = FakeClient([5, 5, 6])
    assert asyncio.run(work(client, restarted_meanwhile, rewind=rewind)) == "all done"
    assert [entry[1] for entry in client.diary if entry[0] == "push"] == [5, 6]
    assert heard == [5, 5]


def test_it_sends_nothing_when_there_is_nothing_to_send():
    async def only_odd(round, parameters):
        return parameters if round % 2 else None

    client = FakeClient([0, 1, 2])
    assert asyncio.run(work(client, only_odd)) == "all done"
    assert client.diary == [
        "join",
        ("pull", -1),
        ("pull", 0),
        ("push", 1, [1.0, 1.0]),
        ("pull", 1),
        ("pull", 2),
    ]


def test_a_vector_that_is_not_counted_is_logged_once_for_each_code(caplog):
    receipts = [
        Receipt(False, code, "a sentence", 7) for code in ("UNSOUND", "UNSOUND", "STALE", "UNSOUND")
    ]
    client = FakeClient(range(4), receipts)
    with caplog.at_level(logging.WARNING, "varangian.worker.loop"):
        assert asyncio.run(work(client, doubled)) == "all done"
    assert caplog.messages == ["w00, round 0: UNSOUND a sentence", "w00, round 2: STALE a sentence"]
    assert [entry[1] for entry in client.diary if entry[0] == "push"] == [0, 1, 2, 3]


def test_a_round_that_is_declined_is_over_for_this_worker_and_each_reason_a_warning_once(caplog):
    async def failing(round, parameters):
        if round < 2:
            raise Declined("data:load raised KeyError")
        return parameters

    client = FakeClient([0, 1, 2])
    with caplog.at_level(logging.WARNING, "varangian.worker.loop"):
        assert asyncio.run(work(client, failing)) == "all done"
    assert caplog.messages == ["w00 sends nothing in round 0: data:load raised KeyError"]
    assert [entry for entry in client.diary if entry[0] in ("decline", "push")] == [
        ("decline", 0, "data:load raised KeyError"),
        ("decline", 1, "data:load raised KeyError"),
        ("push", 2, [2.0, 2.0]),
    ]


def test_what_cannot_be_mended_ends_it():
    with pytest.raises(ClientError, match="gone"):
        asyncio.run(work(FakeClient([0, ClientError("gone")]), doubled))


def test_an_error_of_the_computation_ends_it():
    async def broken(round, parameters):
        raise ZeroDivisionError

    client = FakeClient([0])
    with pytest.raises(ZeroDivisionError):
        asyncio.run(work(client, broken))
    assert client.diary[-1] == ("pull", -1)


async def test_a_long_computation_shows_signs_of_life():
    client, joined = FakeClient([0]), asyncio.Event()

    async def until_seen(round, parameters):
        while client.diary.count("join") < 4:
            await asyncio.sleep(0.005)
        joined.set()
        return parameters

    assert await work(client, until_seen, sign_of_life=0.01) == "all done"
    assert joined.is_set()
    assert client.diary[-2] == ("push", 0, [0.0, 0.0])


async def test_a_computation_ends_when_its_worker_is_cancelled():
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(round, parameters):
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    task = asyncio.create_task(work(FakeClient([0]), endless))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await cancelled.wait()


def test_it_says_which_of_its_vectors_counted():
    refused = [Receipt(False, code, "no", 1) for code in ("NOT_INVITED", "TOO_OLD")]
    client = FakeClient([0, 1, 2, 3], [Receipt(True, round=0), *refused])
    counted = []
    assert asyncio.run(work(client, doubled, on_counted=counted.append)) == "all done"
    assert counted == [0, 3]
    assert [entry[1] for entry in client.diary if entry[0] == "pull"] == [-1, 0, 1, 2, 3]
