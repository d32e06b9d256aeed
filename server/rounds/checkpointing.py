"""Checkpointing: what the server keeps of a run between two rounds, and the keeper that is given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from varangian.server.observability.record import RoundRecord
from varangian.server.protocol.events import Worker

Plain: TypeAlias = Mapping[str, Any]
"""A tree of mappings and sequences with tensors and what JSON has, by name."""


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
    rows: Plain
    """As `RowSource.state` gives it."""
    held: Mapping[Worker, Tensor]
    """Vectors that wait for the round that uses them, as they are stored."""
    given: int
    """The last round whose rows were given to the rule, whatever came of it."""

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
