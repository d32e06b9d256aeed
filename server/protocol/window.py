"""Streaming aggregation, without I/O: the uploads of a round that is reduced in blocks (`memory: window`).

Time comes in with each event, and `wake_at` says when the next `tick` is due, as in `machine`.

Theory of operation. Only the next few blocks of columns of each row are kept. A block is reduced to
columns of the update as soon as every member has sent it, and then forgotten, so whoever is ahead has to
wait. Since nothing can be taken back from what is forgotten, the members of a round are fixed before the
first block is reduced: when everyone who may come is there, or after a while when a quorum is; and only if
the condition of the rule holds for them. From then on

    all of them complete    -> the round is settled, and all of them count at once
    one of them fails       -> what was done is thrown away, and the others send all again, without it

so nobody is told that its vector counts before all of them do. To fail is to die, to send a wrong digest
or a number that is not finite, to prove faulty, or to keep the others waiting for too long. Who has failed
is left out until the round is over: each worker can cost the others one attempt. Only when too few for a
quorum would be left may all of them come again.

A number that is not finite proves a fault only if the digest of the whole vector is right. A fault changes
what the rule does with the other rows, so the members are not fixed before that upload has ended; but the
others wait no longer for it than for a worker that is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from varangian.protos.refusals import Refusal
from varangian.server.protocol.events import Seconds, Worker
from varangian.server.protocol.state import RunPolicy


class Window:
    """The members of a windowed round, and how far each of their rows has come.

    Args:
        policy: who may come, and how many are a quorum.
        d: columns of each row.
        block: columns that are reduced at once.
        blocks: how many of them are kept.
        patience: seconds to wait for those who are not there yet, and for the slowest of the members.
    """

    def __init__(self, policy: RunPolicy, d: int, block: int, blocks: int, patience: Seconds) -> None:
        self._policy = policy
        self._d = d
        self._block = block
        self._kept = block * blocks
        self._patience = patience
        self.attempt = 0
        """Number of the attempt at a round, unique in the run: uploads of an earlier one do not count."""
        self.begin(-1)

    def begin(self, round: int, patience: Seconds | None = None) -> None:
        """Go to this round; with another patience from now on, if there is one."""
        self.round = round
        self._patience = self._patience if patience is None else patience
        self.faulty: Set[Worker] = frozenset()
        self.aside: Set[Worker] = frozenset()
        """Workers that are not waited for: they have declined, are absent or passed over."""
        self._excluded = set[Worker]()
        self._suspects = set[Worker]()
        """Whose vector is not finite and still on its way: its digest will say whether that is a fault."""
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        self.attempt += 1
        self.columns: dict[Worker, int] = {}
        """Columns that have come of each row; its workers are the members once these are fixed."""
        self.fixed = False
        """Whether no other worker can become a member."""
        self.settled = False
        """Whether all members are complete and reduced: all of them count."""
        self.base = 0
        """Columns that are reduced and forgotten."""
        self._complete = set[Worker]()
        self._since: Seconds | None = None
        self._overdue = False

    @property
    def wake_at(self) -> Seconds | None:
        """The time at which the next `tick` is due; None when nothing depends on time."""
        if self._since is None or self.settled or self._overdue:
            return None
        return self._since + self._patience

    @property
    def limit(self) -> int:
        """Columns of a row that there is room for by now."""
        return min(self._d, self.base + self._kept)

    @property
    def ready(self) -> int:
        """Columns that are reduced, or can be: whole blocks that have come of every member."""
        if not self.fixed:
            return self.base
        least = min(self.columns.values())
        return least if least == self._d else least - least % self._block

    def refuses(self, worker: Worker) -> Refusal | None:
        """Why this worker cannot take part in the round any more, or not in this attempt."""
        if self.settled:
            return None  # the round is closed, and says so itself
        if worker in self._excluded or (self.fixed and worker not in self.columns):
            return Refusal.STALE
        return None

    def offer(self, worker: Worker, at: Seconds) -> None:
        """An upload begins."""
        self.columns[worker] = 0
        self._since = at if self._since is None else self._since
        self._fix(at)

    def receive(self, worker: Worker, columns: int) -> None:
        """Note that so many columns of a worker's row have arrived."""
        if worker in self.columns:
            self.columns[worker] = columns

    def complete(self, worker: Worker) -> None:
        """All of its row has come, finite and with the right digest."""
        if worker in self.columns:
            self._complete.add(worker)
            self._settle()

    def lose(self, worker: Worker, at: Seconds) -> None:
        """Note that the upload of a worker will not be completed."""
        if worker not in self.columns or self.settled:
            return
        if self.fixed:
            self.restart({worker}, at)
        else:
            del self.columns[worker]
            self._complete.discard(worker)

    def fail(self, worker: Worker, at: Seconds) -> None:
        """Note that a worker's row is not finite; `convict` or `clear` follows when its upload ends."""
        if worker not in self.columns or self.settled:
            return
        self._suspects.add(worker)
        if self.fixed:
            self.restart({worker}, at)
        else:
            del self.columns[worker]
            self._excluded.add(worker)

    def clear(self, worker: Worker, at: Seconds) -> None:
        """Note that the upload of a worker has ended without proving a fault."""
        self._suspects.discard(worker)
        self._fix(at)

    def convict(self, faulty: Iterable[Worker], at: Seconds) -> None:
        """These workers have proved faulty in this round."""
        self.faulty = frozenset(faulty)
        self._suspects -= self.faulty
        for worker in self.faulty & self.columns.keys():
            self.lose(worker, at)
        self._fix(at)

    def set_aside(self, aside: Set[Worker], at: Seconds) -> None:
        """Wait no longer for these workers."""
        self.aside = frozenset(aside)
        self._fix(at)

    def reduce_to(self, to: int, at: Seconds) -> None:
        """The columns before `to` have become columns of the update."""
        self.base, self._since = to, at
        self._settle()

    def tick(self, at: Seconds) -> None:
        """Time has passed; due at `wake_at`."""
        due = self.wake_at
        if due is None or at < due:
            return
        if not self.fixed:
            self._overdue = True
            self._fix(at)
        elif slow := self._slow():
            self.restart(slow, at)
        else:
            self._since = at

    def restart(self, failed: Set[Worker], at: Seconds) -> None:
        """Begin another attempt without these workers."""
        self._excluded |= failed
        left = {*self._policy.workers} - self._excluded - self.faulty
        if self._policy.shortage(left, self.faulty):
            self._excluded.clear()
        self._begin_attempt()

    def _fix(self, at: Seconds) -> None:
        known = self.columns.keys() | self.faulty | self._excluded | self.aside
        everyone = len(known) == len(self._policy.workers) and not self._suspects
        if self.fixed or not self.columns or not (everyone or self._overdue):
            return
        if not self._policy.shortage(self.columns, self.faulty):
            self.fixed, self._since, self._overdue = True, at, False

    def _settle(self) -> None:
        self.settled = self.fixed and self.base == self._d and self._complete == self.columns.keys()

    def _slow(self) -> set[Worker]:
        """The stragglers that the others wait for; none when they wait for the server."""
        if self.base == self._d:
            return set(self.columns) - self._complete
        needed = min(self._d, self.base + self._block)
        return {worker for worker, columns in self.columns.items() if columns < needed}
