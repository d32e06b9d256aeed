"""Checkpointing: what a server keeps of its run between two rounds, to go on from it in another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from varangian.server.observability.record import RoundRecord
from varangian.server.protocol.events import Close, Worker
from varangian.server.protocol.machine import Machine
from varangian.server.protocol.state import RunPolicy, RunState, dump_state
from varangian.server.rows.source import RowSource, StepInput
from varangian.server.training.learner import Learner
from varangian.server.training.parameters import Version

Plain: TypeAlias = Mapping[str, Any]
"""A tree of mappings and sequences with tensors and what JSON has, by name."""
KeepRows: TypeAlias = Callable[[Close, StepInput, Plain], None]
"""Keeps the input of a step, and the state of the learner before it; called in the compute thread."""


@dataclass(frozen=True)
class ServerState:
    """State of a server at the border of a round: after the one before it, before anything of it counts.

    Its tensors are views, of use until `Keeper.keep` returns.
    """

    round: int
    """The round that begins with it."""
    machine: Plain
    """As `Machine.dump` gives it."""
    learner: Plain
    """As `Learner.state` gives it."""
    version: Version
    """The parameters in it, whose memory is left alone as long as this is held: they need no copy."""
    rows: Plain
    """As `RowSource.state` gives it."""
    held: Mapping[Worker, Tensor]
    """Vectors that wait for the round that uses them, as they are stored."""
    given: int
    """The last round whose rows were given to the rule, whatever came of it."""
    members: Plain
    """The workers of the run, the quorum and f, as JSON has them."""

    @property
    def tree(self) -> Plain:
        """The state as a tree, from which `Coordinator` goes on."""
        return {
            "round": self.round,
            "machine": self.machine,
            "learner": self.learner,
            "rows": self.rows,
            "held": self.held,
            "given": self.given,
            "members": self.members,
        }


class Keeper(Protocol):
    """Keeper of checkpoints."""

    def due(self, following: int, record: RoundRecord, /) -> bool:
        """Whether the state at the border of the following round is to be kept.

        Asked on the event loop after every round, the last one included, whose following round is that
        after the last.

        Args:
            following: the round that begins at the border.
            record: of the round before it.
        """
        ...

    def keep(self, state: ServerState, more: Plain, /) -> None:
        """Copy a state, to be written after this returns. Called in the compute thread.

        Args:
            state: of the server.
            more: what else belongs to the run, by name.
        """
        ...

    def wait(self) -> None:
        """Wait until the states that were handed over are written, or have failed. Called in any thread."""
        ...


class Checkpointing:
    """The states of one run that its keeper is given, and the one that it goes on from.

    Vectors that count in later rounds belong to a state as they are when it is taken. Where vectors count
    in their own round alone it is that in which the open round began: nothing of that round belongs to it.

    Args:
        machine: the protocol of the run.
        learner: the parameters and the rule.
        row_source: of the rows that the rule sees.
        keeper: None keeps nothing.
        connected: whether the workers and the clock are kept and go on with the server, as in a
            simulation. Then a state is exact: it is that of the moment in which it is taken, and whoever
            lets the workers go on takes it when `due`.
    """

    def __init__(
        self,
        machine: Machine,
        learner: Learner,
        row_source: RowSource,
        keeper: Keeper | None,
        connected: bool,
    ) -> None:
        self._machine, self._learner, self._row_source = machine, learner, row_source
        self.keeper, self.connected = keeper, connected
        self.due = False
        """Whether the state of a run with its workers is to be kept, as soon as none of them works."""
        self._border = machine.state
        """The state in which the open round began."""

    def restore(self, state: Plain, put_back: Callable[[Worker, Tensor], None]) -> int:
        """Go on from the tree of a `ServerState`; returns the last round whose rows the rule was given.

        Args:
            state: as it was kept.
            put_back: stores a vector that is held.

        Raises:
            ValueError: it is of other workers, or of another model.
        """
        self._machine.restore(state["machine"], connected=self.connected)
        self._learner.restore(state["learner"])
        self._row_source.restore(state["rows"])
        self._border = self._machine.state
        for worker in self._machine.state.held:
            put_back(worker, state["held"][worker])
        return int(state["given"])

    def begin_with(self, state: RunState) -> None:
        """The machine begins with this state, in place of the one that was restored."""
        self._border = state

    def note_open(self) -> None:
        """The machine may have opened another round."""
        if self._machine.state.round > self._border.round:
            self._border = self._machine.state

    def note(self, record: RoundRecord) -> bool:
        """Note the record of a round, and say whether the state after it is to be kept now."""
        following = record.round + 1
        if self.keeper is None:
            return False
        due = self.keeper.due(following, record)
        # Workers elsewhere leave when they hear of the end, so it has to be on the disk before that.
        if not (due or (self.at_the_end and not self.connected)):
            return False
        if self.connected:
            self.due = True
            return False
        # Rounds that are skipped may end at once: then the open one is later, and has no record before it.
        return self.state.round == following

    @property
    def at_the_end(self) -> bool:
        """Whether all rounds of the run are done."""
        return self._machine.state.round >= self._machine.policy.rounds

    @property
    def state(self) -> RunState:
        """The state of the protocol to be kept."""
        exact = self.connected or not self._machine.policy.selection.fresh_only
        return self._machine.state if exact else self._border

    def copy(
        self, state: RunState, policy: RunPolicy, held: Mapping[Worker, Tensor], given: int, more: Plain
    ) -> None:
        """Let the keeper copy a state of the protocol with all else that later rounds depend on.

        For the compute thread.

        Args:
            state: of the protocol.
            policy: of its round.
            held: vectors that it speaks of.
            given: as of `ServerState`.
            more: as of `Keeper.keep`.
        """
        assert self.keeper is not None
        self.due = False
        kept = ServerState(
            state.round,
            dump_state(state),
            self._learner.state(),
            self._learner.version,
            self._row_source.state(),
            held,
            given,
            {"workers": list(policy.workers), "quorum": policy.quorum, "f": policy.f},
        )
        self.keeper.keep(kept, more)
