"""The aggregation of a round: models of clients in, one update out, and a record of who took part.

n  models     d  numbers of each
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varangian.aggregators import AggregationError, Aggregator
from varangian.aggregators.base import by_place, uses_reference
from varangian.aggregators.numeric.shares import WeightCap
from varangian.federated.arrays import Arrays, Layout
from varangian.federated.rounds import Round, appender
from varangian.frameworks import ANOTHER, Callbacks, aggregator_of, check_state, generator_of

VERSION = 1
"""Of the state."""
MOST_CLIENTS = 1000
"""Up to so many clients it is found out how many a rule needs."""
NOT_FINITE = "has numbers that are not finite"


class Models:
    """What is settled once about the aggregation, and what is remembered between rounds.

    Args:
        aggregator: by name, as `nnm+trimmed_mean`, as a mapping of a configuration, or an `Aggregator`.
        f: how many clients may be Byzantine; of an `Aggregator` its own counts.
        seed: of mixings that draw at random.
        on_round: called with the record of each round.
        log: a file to which each record is appended as a line of JSON.
        cap: of weights; none by default.

    Raises:
        ConfigError: the aggregator is none.
        ValueError: it names clients by their place, or needs a gradient on data of the server.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        aggregator: str | Mapping[str, object] | Aggregator,
        f: int,
        *,
        seed: int = 0,
        on_round: Callable[[Round], None] | None = None,
        log: str | Path | None = None,
        cap: WeightCap | None = None,
    ) -> None:
        self._cap = cap
        self.aggregator = _checked(aggregator, f)
        self.seed = seed
        self.last: Round | None = None
        """The record of the last round."""
        self.faults: Counter[str] = Counter()
        """Replies of each client that were dropped."""
        self._callbacks = Callbacks()
        self._records = [*([appender(log)] if log is not None else []), *([on_round] if on_round else [])]
        self._refers = any(map(uses_reference, (*self.aggregator.mix, self.aggregator.rule)))
        self._update: Tensor | None = None

    def too_few(self, n: int) -> str | None:
        """Why the rule has no guarantee for n models, and how many it needs; None where it has one."""
        f = self.aggregator.tolerance or 0
        reason = self.aggregator.requires(n, f)
        if reason is None:
            return None
        enough = (m for m in range(n + 1, MOST_CLIENTS) if not self.aggregator.requires(m, f))
        least = next(enough, None)
        advice = "Take another rule" if least is None else f"Have at least {least} clients in a round"
        return f"{reason}. {advice}, or a smaller f."

    def aggregate(
        self,
        number: int,
        layout: Layout,
        models: Mapping[str, Arrays],
        base: Arrays | None,
        *,
        dropped: Mapping[str, str] | None = None,
        absent: Mapping[str, str] | None = None,
        weigh: Mapping[str, float] | None = None,
    ) -> tuple[dict[str, NDArray[Any]] | None, tuple[str, ...]]:
        """One update of the models of a round; order and time of their arrival have no influence.

        Args:
            number: of the round.
            layout: of the models, which have been checked against it; their numbers have not.
            models: by client.
            base: what the clients began with, from which their models are measured and to which the update
                is added; None for models that are differences already.
            dropped: clients whose reply cannot be used, and why.
            absent: clients that sent no model, and why.
            weigh: how much each of those that sent one weighs, on any scale; all the same by default.

        Returns:
            The aggregated arrays, None where there is no update, and the clients that took part.
        """
        clients = sorted(models, key=lambda client: (len(client), client))
        bad = dict(dropped or {})
        rows = torch.empty(len(clients), layout.d, dtype=layout.dtype, device="cpu")
        for row, client in zip(rows, clients, strict=True):
            layout.write(row, models[client], base)
        reference = self._update if self._refers else None
        if reference is not None and (reference.shape != rows.shape[1:] or reference.dtype != rows.dtype):
            reference = None
        error, weights, spread = "no client sent a model that can be used.", None, None
        kept: tuple[str, ...] = ()
        arrays: dict[str, NDArray[Any]] | None = None
        if clients:
            try:
                found = self.aggregator(
                    rows,
                    reference,
                    generator_of(self.seed, number),
                    faults=len(bad),
                    blocks=layout.blocks,
                    weights=None
                    if weigh is None
                    else self._capped([weigh[one] for one in (*clients, *bad)]),
                )
            except AggregationError as why:
                bad.update(dict.fromkeys(_not_finite(clients, rows), NOT_FINITE))
                error = str(why)
            else:
                bad.update({clients[at]: NOT_FINITE for at in found.dropped})
                kept = tuple(client for client in clients if client not in bad)
                arrays = layout.read(found.vector, base)
                if found.weights is not None:
                    weights = dict(zip(clients, found.weights.tolist(), strict=True))
                spread, error = found.spread, ""
                if all(np.isfinite(array).all() for array in arrays.values()):
                    self._update = found.vector.clone() if self._refers else None
                    arrays.update(layout.medians([models[client] for client in kept]))
                else:
                    arrays, weights, error = None, None, "numbers of the new model are not finite."
        self.faults.update([*bad])
        names = kept if arrays is not None else ()
        self.last = Round(number, names, bad, dict(absent or {}), weights, spread, error or None)
        return arrays, names

    def _capped(self, weights: Sequence[float]) -> Sequence[float]:
        """The weights, none above the cap.

        Raises:
            AggregationError: the clients are too few for it.
        """
        if self._cap is None:
            return weights
        capped = self._cap.capped(weights, self.aggregator.tolerance or 0)
        if capped is None:
            raise AggregationError(
                f"The heaviest of {len(weights)} clients cannot have so little as "
                f"{self._cap.alpha_star} of the weight."
            )
        return capped

    def report(self) -> None:
        """Hand the record of the last round on; an error there is logged, once, and the run goes on."""
        for record in self._records:
            if self.last is not None:
                self._callbacks.call("on_round", record, self.last)

    def state_dict(self) -> dict[str, Any]:
        """What the next rounds depend on: plain values and tensors."""
        return {
            "version": VERSION,
            "seed": self.seed,
            "round": self.last.round if self.last is not None else 0,
            "update": None if self._update is None else self._update.clone(),
            "faults": dict(self.faults),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> int:
        """Go on from what `state_dict` gave.

        Returns:
            The number of its last round.

        Raises:
            ValueError: it is no such state, or was made with another seed.
        """
        check_state(state, {"round", "update", "faults"}, VERSION, self.seed)
        update = state["update"]
        self._update = update.detach().clone() if isinstance(update, Tensor) else None
        self.faults = Counter({str(client): int(count) for client, count in state["faults"].items()})
        return int(state["round"])


def _not_finite(clients: list[str], rows: Tensor) -> list[str]:
    return [client for client, row in zip(clients, rows, strict=True) if not row.isfinite().all()]


def _checked(aggregator: str | Mapping[str, object] | Aggregator, f: int) -> Aggregator:
    built = aggregator_of(aggregator, f, "the server trusts")
    for part in (*built.mix, built.rule):
        if by_place(part):
            raise ValueError(
                f"aggregator: {part!r} names clients by their place, and here they have none. {ANOTHER}"
            )
    return built
