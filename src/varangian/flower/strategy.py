"""A strategy of Flower around another one, which gets one model: that of a robust rule."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from varangian.aggregators import Aggregator
from varangian.federated.arrays import Layout, median_metrics
from varangian.federated.claims import checked_cap, read_claims
from varangian.federated.models import Models
from varangian.federated.rounds import Round
from varangian.flower.memory import arrays_of, recalled, record_of, remembered, tensors_of
from varangian.flower.replies import Replies, read_replies

logger = logging.getLogger("flwr.varangian")  # below Flower's own, so that it is shown with it

NOT_ONE_MESSAGE = {
    "Bulyan": "it needs several models, and this one is the rule `bulyan` of Varangian",
    "QFedAvg": "it weighs every client by its loss",
    "FedXgbBagging": "its model is made of trees",
    "FedXgbCyclic": "its model is made of trees",
    **dict.fromkeys(
        (
            "DifferentialPrivacyServerSideFixedClipping",
            "DifferentialPrivacyServerSideAdaptiveClipping",
            "DifferentialPrivacyClientSideFixedClipping",
            "DifferentialPrivacyClientSideAdaptiveClipping",
        ),
        "it has to see every reply: put it outside, around Robust",
    ),
}
"""Strategies of Flower that cannot go on with one message, and why."""
METRICS, WEIGHT = "metrics", "num-examples"
"""Names that Flower gives to the record of metrics, and to the weight of a client."""


class Robust(Strategy):
    """A robust rule in front of a strategy of Flower.

    Each reply is compared with the model that was sent; a reply that cannot be used is dropped and counted,
    and never raises. The rule makes one model of the others, and the inner strategy gets it as the only
    reply, with the median of each metric and the weight 1: so FedAvgM, FedAdam, FedYogi, FedAdagrad and
    strategies of your own go on as they are. How many examples a client claims to have has no influence,
    unless `weights` says so.

    Args:
        inner: decides who is asked, and what becomes of the model.
        aggregator: by name, as `nnm+trimmed_mean`, as a mapping of a configuration, or an `Aggregator`.
        f: how many clients of a round may be Byzantine; of an `Aggregator` its own counts.
        seed: of mixings that draw at random.
        on_round: called with the record of each round, when the round is over.
        log: a file to which each record is appended as a line of JSON.
        weights: the metric that says how much a client weighs, as "num-examples"; all weigh the same by
            default. It is a claim: a client whose value is no positive number weighs as little as any.
        weights_cap: the share of the weight that the f heaviest clients have at most, whatever they claim.

    Raises:
        ConfigError: the aggregator is none.
        ValueError: the inner strategy needs every reply, or the rule cannot be used here.
    """

    def __init__(
        self,
        inner: Strategy,
        aggregator: str | Mapping[str, object] | Aggregator = "nnm+trimmed_mean",
        f: int = 1,
        *,
        seed: int = 0,
        on_round: Callable[[Round], None] | None = None,
        log: str | Path | None = None,
        weights: str | None = None,
        weights_cap: float = 0.4,
    ) -> None:
        if not isinstance(inner, Strategy):
            raise ValueError(f"inner: should be a strategy of Flower. Found {type(inner).__name__}.")
        for name, why in NOT_ONE_MESSAGE.items():
            if isinstance(inner, getattr(strategy, name, ())):
                raise ValueError(f"inner: should go on with one model. Found {name}: {why}.")
        self.inner = inner
        self._models = Models(
            aggregator,
            f,
            seed=seed,
            on_round=on_round,
            log=log,
            cap=checked_cap(weights_cap, "weights_cap"),
        )
        self._weights = weights
        self._base: dict[str, NDArray[Any]] = {}
        self._layout: Layout | None = None
        self._asked: dict[str, list[int]] = {}
        self._before = 0
        self._checked = False
        self._arrays: ArrayRecord | None = None
        self._round = 0

    @property
    def aggregator(self) -> Aggregator:
        return self._models.aggregator

    @property
    def last(self) -> Round | None:
        """The record of the last round."""
        return self._models.last

    @property
    def faults(self) -> Counter[str]:
        """How many replies of each node were dropped."""
        return self._models.faults

    @property
    def arrays(self) -> ArrayRecord | None:
        """The model after the last round."""
        return self._arrays

    @property
    def round(self) -> int:
        """The number of the last round."""
        return self._round

    def summary(self) -> None:
        logger.info("\t├──> Robust settings:")
        logger.info("\t│\t├── Aggregator: %s", self.aggregator.rule)
        for mixing in self.aggregator.mix:
            logger.info("\t│\t├── after: %s", mixing)
        logger.info("\t│\t└── Byzantine clients: %s", self.aggregator.tolerance)
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What the inner strategy sends; the model is kept, to compare replies with it.

        Raises:
            ValueError: the model has an array that cannot be aggregated; or the rule has no guarantee for
                the clients of the first round.
        """
        server_round += self._before
        self._base, self._arrays = {name: array.numpy() for name, array in arrays.items()}, arrays
        self._layout = Layout.of(self._base)
        messages = [*self.inner.configure_train(server_round, arrays, config, grid)]
        self._asked["train"] = [message.metadata.dst_node_id for message in messages]
        if messages and not self._checked and (reason := self._models.too_few(len(messages))):
            raise ValueError(
                f"aggregator: has no guarantee for {len(messages)} clients in a round. {reason} The inner "
                "strategy says how many there are: fraction_train, min_train_nodes, min_available_nodes."
            )
        self._checked = self._checked or bool(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the inner strategy makes of one model, that of the rule; nothing where the rule has none."""
        server_round += self._before
        asked = self._asked.pop("train", [])
        if not asked:
            return self.inner.aggregate_train(server_round, [])
        if self._layout is None:
            raise ValueError("aggregate_train: should be called after configure_train.")
        found = read_replies(replies, asked, self._layout)
        arrays, clients = self._models.aggregate(
            server_round,
            self._layout,
            found.models,
            self._base,
            dropped=found.dropped,
            absent=found.absent,
            weigh=self._claimed(found),
        )
        answer: tuple[ArrayRecord | None, MetricRecord | None] = (None, None)
        if arrays is not None:
            message = self._message(MessageType.TRAIN, found, clients, arrays)
            new, metrics = self.inner.aggregate_train(server_round, [message])
            answer = (None if new is None else self._typed(new, arrays), metrics)
        if answer[0] is not None:
            self._arrays = answer[0]
            self._base = {name: array.numpy() for name, array in answer[0].items()}
        self._round = server_round
        record = self._models.last
        if record is not None:
            level = logging.WARNING if record.dropped or record.error else logging.INFO
            logger.log(level, "aggregate_train: %s", record)
        self._models.report()
        return answer

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = [*self.inner.configure_evaluate(server_round + self._before, arrays, config, grid)]
        self._asked["evaluate"] = [message.metadata.dst_node_id for message in messages]
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """What the inner strategy makes of the median of each metric."""
        server_round += self._before
        found = read_replies(replies, self._asked.pop("evaluate", []), None)
        if not found.metrics:
            return self.inner.aggregate_evaluate(server_round, [])
        message = self._message(MessageType.EVALUATE, found, tuple(found.metrics), None)
        return self.inner.aggregate_evaluate(server_round, [message])

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        first_round: int = 1,
    ) -> Result:
        """Flower's loop, as of any strategy, over the rounds `first_round` to `num_rounds`.

        To go on after a crash: `load_state_dict`, then
        `start(grid, robust.arrays, num_rounds, first_round=robust.round + 1)`.
        """
        if first_round < 1:
            raise ValueError(f"first_round: should be a positive integer. Found {first_round}.")
        before = first_round - 1

        def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            return None if evaluate_fn is None else evaluate_fn(number + before, arrays)

        self._before = before
        try:
            result = super().start(
                grid,
                initial_arrays,
                max(0, num_rounds - before),
                timeout,
                train_config,
                evaluate_config,
                None if evaluate_fn is None else evaluate,
            )
        finally:
            self._before = 0
        for name in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"):
            setattr(
                result, name, {number + before: value for number, value in getattr(result, name).items()}
            )
        if not result.arrays:  # no round had an update
            result.arrays = initial_arrays
        return result

    def state_dict(self) -> dict[str, Any]:
        """What the next rounds depend on, with the model and what the inner strategy remembers.

        Plain values and tensors, as torch loads them with `weights_only=True`. Call it in `on_round` or
        between rounds.
        """
        return {
            **self._models.state_dict(),
            "round": self._round,
            "arrays": tensors_of(self._base),
            "inner": remembered(self.inner),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, with the same bits where the same clients reply the same.

        Raises:
            ValueError: it is no such state, or was made with another seed or inner strategy.
        """
        missing = {"arrays", "inner"} - {*state}
        if missing:
            raise ValueError(
                f"state: should be what state_dict() returned. It lacks {', '.join(sorted(missing))}."
            )
        self._round = self._models.load_state_dict(state)
        recalled(self.inner, state["inner"])
        self._base = arrays_of(state["arrays"])
        self._arrays = record_of(self._base) if self._base else None

    def _claimed(self, found: Replies) -> dict[str, float] | None:
        """What each client says that it weighs; None where that has no influence."""
        if self._weights is None:
            return None
        clients = (*found.models, *found.dropped)
        return read_claims({client: found.metrics.get(client, {}).get(self._weights) for client in clients})

    def _message(
        self,
        kind: str,
        found: Replies,
        clients: tuple[str, ...],
        arrays: Mapping[str, NDArray[Any]] | None,
    ) -> Message:
        """The one reply that the inner strategy gets."""
        metrics = median_metrics([found.metrics[client] for client in clients if client in found.metrics])
        metrics[getattr(self.inner, "weighted_by_key", WEIGHT)] = 1.0
        names = Counter(found.records[client] for client in clients if client in found.records)
        usual, count = max(names.items(), key=lambda item: (item[1], item[0]), default=(METRICS, 0))
        model = getattr(self.inner, "arrayrecord_key", "arrays")
        key = usual if 2 * count > len(clients) and usual != model else METRICS
        content = RecordDict({key: MetricRecord(dict(metrics))})
        if arrays is not None:
            content[model] = record_of(arrays)
        return Message(content, dst_node_id=0, message_type=kind)

    def _typed(self, new: ArrayRecord, arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
        """The answer of the inner strategy in the types of the model; integers are those of the rule."""
        if self._layout is None or {*new.keys()} != {*self._layout.by_name}:
            return new
        for field in self._layout.fields:
            if not field.is_float:
                new[field.name] = Array(np.asarray(arrays[field.name]))
            elif new[field.name].dtype != field.dtype.name:
                new[field.name] = Array(np.asarray(new[field.name].numpy(), dtype=field.dtype))
        return new
