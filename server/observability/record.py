"""Round records: one line of JSON for each round."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

from torch import Tensor

from varangian.server.protocol.events import Close, Skip
from varangian.server.training.learner import Step


class LastWeight(NamedTuple):
    """The coefficient of a worker's last row in an aggregate, and the round of that."""

    round: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """The record of one round. A field that does not apply is None."""

    round: int
    fragment: int | None = None
    """The fragment of the parameters that the round was about, from 0; None where they are not split."""
    loss: float | None = None
    """On held-out data after this round; None in rounds without an evaluation."""
    accuracy: float | None = None
    """On the same data, from 0 to 1; None where samples have no classes."""
    ema_loss: float | None = None
    """As the two before, of the average of the model; None in a run without one."""
    ema_accuracy: float | None = None
    metrics: dict[str, float] | None = None
    """Other metrics on held-out data, by name, those of the average with `ema_` before it; None where there
    are none."""
    train_loss: float | None = None
    """As `loss`, on a fixed sample of the training data that the server has; no worker is asked for it."""
    weights: dict[str, float] | None = None
    """The weight of each worker in the update; None when the rule has no weights or there is no update."""
    reference_weight: float = 0.0
    """The weight of the last update in this one."""
    effective: float | None = None
    """The effective number of workers, (sum c)^2 / sum c^2 of the weights c; None where `weights` is."""
    spread: float | None = None
    """Mean squared distance of what took part to the update; None where the rule measured no distance."""
    dropped: dict[str, str]
    """Workers whose vectors were dropped, with the reason."""
    gated: dict[str, float] = dataclasses.field(default_factory=dict[str, float])
    """Workers whose vectors took no part as their steps alone would raise the held-out loss, with the rise;
    null where there is no loss after the step. No proof of a fault, and none of the f is spent."""
    missing: tuple[str, ...]
    """Workers that did not answer in time; of a round given up before its deadline, those absent."""
    waited_for: tuple[str, ...] = ()
    """Missing workers that the round waited for in vain: up to `seconds.wait` after its start."""
    not_waited_for: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Missing workers that it did not wait for, with the reason: absent, or rounds missed in a row."""
    because: str | None = None
    """The reason why the round was closed when it was; None when there is no update."""
    quorum_after: float | None = None
    """Seconds from the start of the round until its quorum had answered; None without one."""
    deadline: float | None = None
    """Seconds from the start of the round to its deadline, if it set itself."""
    declined: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Workers that declined the round, with the reason."""
    revoked: tuple[str, ...] = ()
    """Workers left out as they were expelled, or their certificate revoked; not among the missing."""
    ages: dict[str, int] | None = None
    """The age of each vector's model in rounds; None where all are of this round."""
    details: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Further values that the rule reports of each worker, by name."""
    update_norm: float | None = None
    lr: float | None = None
    skipped: str | None = None
    """The reason why there is no update; None when there is one."""
    pushes: dict[str, str] | None = None
    """The digest of each vector that counts, as it was sent: xxh3-128 in hexadecimal. None where there are
    none, as of vectors on a device of a simulation."""
    parameters: str | None = None
    """The digest of the parameters after the round, likewise. None where they are on a device and nobody
    pulls them."""
    resumed: dict[str, Any] | None = None
    """Of the first round of a run that goes on after a crash or a stop: `round`, from which on the lines
    before this one count no more, `mended`, the bytes of a line that was cut off, and how it goes on."""
    membership: dict[str, Any] | None = None
    """Of the first round with other workers: who was admitted, who is `gone` and how, all `workers` from
    then on, quorum and f, and who has asked for it."""
    seconds: dict[str, float]
    """By phase: wait (for pushes; of virtual time in a simulation), aggregate, step, evaluate."""
    aggregation: dict[str, float] = dataclasses.field(default_factory=dict[str, float])
    """Seconds of the parts of `aggregate`, where they are known: gram, rule."""

    @property
    def scores(self) -> Scores:
        return Scores(
            self.loss, self.accuracy, self.ema_loss, self.ema_accuracy, self.metrics, self.train_loss
        )

    def json(self) -> str:
        """One line of standard JSON: ASCII only, control characters escaped, null for NaN and infinity."""
        return _STANDARD.encode({name: _plain(getattr(self, name)) for name in _FIELDS})


_FIELDS = tuple(field.name for field in dataclasses.fields(RoundRecord))
_STANDARD = json.JSONEncoder(allow_nan=False)


class Scores(NamedTuple):
    """The evaluation of the model on held-out data, and of its average where there is one."""

    loss: float | None = None
    accuracy: float | None = None
    ema_loss: float | None = None
    ema_accuracy: float | None = None
    metrics: dict[str, float] | None = None
    """The others by name, those of the average with `ema_` before it."""
    train_loss: float | None = None

    @classmethod
    def of(
        cls,
        model: Mapping[str, float],
        average: Mapping[str, float] | None = None,
        train_loss: float | None = None,
    ) -> Scores:
        """From metrics by name, of which `loss` and `accuracy` have fields of their own."""
        found = {**model, **{f"ema_{name}": value for name, value in (average or {}).items()}}
        own = {name: found.pop(name, None) for name in ("loss", "accuracy", "ema_loss", "ema_accuracy")}
        return cls(**own, metrics=found or None, train_loss=train_loss)

    @property
    def of_model(self) -> dict[str, float]:
        """Those of the model itself, by name."""
        found = {"loss": self.loss, "accuracy": self.accuracy, **(self.metrics or {})}
        return {
            name: value
            for name, value in found.items()
            if value is not None and not name.startswith("ema_")
        }


Observe: TypeAlias = Callable[[RoundRecord], None]
"""Called once for each round, in order, skipped rounds included. Should return soon."""
Evaluation: TypeAlias = tuple[float, float] | Scores
"""A pair is loss and accuracy."""
Evaluate: TypeAlias = Callable[[Tensor], Evaluation]
"""From the parameters (d,)."""


def scores_of(evaluation: Evaluation) -> dict[str, float]:
    """The scores of the model in an evaluation, by name."""
    found = evaluation if isinstance(evaluation, Scores) else Scores(*evaluation)
    return found.of_model


def record_of_step(
    close: Close,
    step: Step,
    ages: Mapping[str, int] | None = None,
    evaluation: Evaluation | None = None,
    seconds: Mapping[str, float] | None = None,
    parameters: str | None = None,
    gated: Mapping[str, float] | None = None,
) -> RoundRecord:
    """The record of a round that became an update.

    Args:
        close: how the round was closed.
        step: what it did to the model.
        ages: how old the vectors are, where some are.
        evaluation: after it, if held-out data was looked at.
        seconds: phases besides waiting and those of the step.
        parameters: their digest after it.
        gated: workers whose vectors the gate left out, with the rise of the loss by each.
    """
    scores = Scores(*(evaluation or ()))
    return RoundRecord(
        round=close.round,
        loss=scores.loss,
        accuracy=scores.accuracy,
        ema_loss=scores.ema_loss,
        ema_accuracy=scores.ema_accuracy,
        metrics=scores.metrics,
        train_loss=scores.train_loss,
        weights=step.weights,
        reference_weight=step.reference_weight,
        effective=step.effective,
        spread=step.spread,
        dropped=step.dropped,
        gated=dict(gated or {}),
        missing=close.missing,
        waited_for=tuple(worker for worker in close.missing if worker not in close.not_waited_for),
        not_waited_for=dict(close.not_waited_for),
        because=close.because,
        quorum_after=close.quorum_after,
        deadline=close.deadline,
        declined=dict(close.declined),
        revoked=close.revoked,
        ages=None if ages is None else dict(sorted(ages.items())),
        details=step.details,
        update_norm=step.norm,
        lr=step.lr,
        parameters=parameters,
        seconds={**(seconds or {}), "wait": close.waited, **step.seconds},
        aggregation=step.parts,
    )


def record_of_skip(
    skip: Skip,
    evaluation: Evaluation | None = None,
    pushes: Mapping[str, str] | None = None,
    parameters: str | None = None,
) -> RoundRecord:
    """The record of a round that became nothing; `pushes` are the digests of what came all the same."""
    scores = Scores(*(evaluation or ()))
    return RoundRecord(
        round=skip.round,
        loss=scores.loss,
        accuracy=scores.accuracy,
        ema_loss=scores.ema_loss,
        ema_accuracy=scores.ema_accuracy,
        metrics=scores.metrics,
        train_loss=scores.train_loss,
        dropped=dict(skip.faults),
        missing=skip.missing,
        waited_for=tuple(worker for worker in skip.missing if worker not in skip.not_waited_for),
        not_waited_for=dict(skip.not_waited_for),
        quorum_after=skip.quorum_after,
        deadline=skip.deadline,
        declined=dict(skip.declined),
        revoked=skip.revoked,
        skipped=skip.because,
        pushes=None if pushes is None else dict(pushes),
        parameters=parameters,
        seconds={"wait": skip.waited},
    )


def _plain(value: Any) -> Any:
    """The same value with null for the floats that JSON cannot write."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value
