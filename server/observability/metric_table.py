"""Table of metrics: name, kind, labels and meaning of each that a server exposes.

The page of the documentation is printed from it, and the dashboard and alert rules are checked against it.
Names follow the conventions of Prometheus: base units, `_total` for counters. Plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of the buckets of a histogram, in seconds."""


SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
WORKER = ("worker",)

TOPICS: Mapping[str, tuple[Metric, ...]] = {
    "Run": (
        Metric(
            "varangian_build_info",
            "gauge",
            "1; its labels are the versions of this server.",
            ("version", "python", "torch"),
        ),
        Metric(
            "varangian_run_info",
            "gauge",
            "1; its labels are the name of the run folder and the number of this start of the server.",
            ("run", "epoch"),
        ),
        Metric("varangian_round", "gauge", "The open round, of which workers pull the model."),
        Metric("varangian_first_round", "gauge", "The round that this server began with."),
        Metric("varangian_rounds", "gauge", "The number of rounds of the run if it is not stopped."),
        Metric("varangian_run_finished", "gauge", "1 once the run is finished, before that 0."),
        Metric(
            "varangian_rounds_total",
            "counter",
            "Rounds that have ended since this server started: with an `update`, or `skipped`.",
            ("outcome",),
        ),
        Metric(
            "varangian_model_version",
            "gauge",
            "The number of updates that the model has had, also before this server started.",
        ),
        Metric(
            "varangian_last_round_timestamp_seconds",
            "gauge",
            "The time at which the last round ended, in seconds since 1970; before the first, that of the "
            "start of this server.",
        ),
        Metric("varangian_quorum", "gauge", "The declared quorum."),
        Metric("varangian_f", "gauge", "The number of workers that may be Byzantine."),
        Metric(
            "varangian_deadline_seconds",
            "gauge",
            "From the start of the open round to its deadline.",
        ),
    ),
    "Time": (
        Metric(
            "varangian_round_seconds",
            "histogram",
            "The phases of each round: `wait` for vectors, `gate`, `aggregate`, `step`, `evaluate`; `gram` "
            "and `rule` are parts of `aggregate`.",
            ("phase",),
            buckets=SECONDS,
        ),
        Metric(
            "varangian_quorum_wait_seconds",
            "histogram",
            "From the start of each round until its quorum had answered.",
            buckets=SECONDS,
        ),
    ),
    "Model": (
        Metric("varangian_loss", "gauge", "The last evaluation: loss on held-out data."),
        Metric("varangian_accuracy", "gauge", "The last evaluation: accuracy on held-out data, 0 to 1."),
        Metric("varangian_train_loss", "gauge", "The last evaluation: loss on a sample of training data."),
        Metric("varangian_ema_loss", "gauge", "As `varangian_loss`, of the average of the model."),
        Metric("varangian_ema_accuracy", "gauge", "As `varangian_accuracy`, of the average of the model."),
        Metric(
            "varangian_score",
            "gauge",
            "The last evaluation: other metrics of the run, by name.",
            ("metric",),
        ),
        Metric("varangian_evaluated_round", "gauge", "The round after which the last evaluation was."),
        Metric("varangian_update_norm", "gauge", "The Euclidean norm of the last aggregate."),
        Metric("varangian_learning_rate", "gauge", "The learning rate of the last update."),
        Metric(
            "varangian_spread",
            "gauge",
            "The mean squared distance of vectors to the last aggregate, where the rule measures it.",
        ),
    ),
    "Workers": (
        Metric("varangian_workers", "gauge", "Workers of the run."),
        Metric("varangian_connected_workers", "gauge", "Workers with a connected process."),
        Metric("varangian_counted_workers", "gauge", "Workers with a vector in the open round."),
        Metric("varangian_awaited_workers", "gauge", "Workers that were asked and have not answered yet."),
        Metric("varangian_faulty_workers", "gauge", "Workers that proved faulty in the open round."),
        Metric(
            "varangian_effective_workers",
            "gauge",
            "The effective number of workers in the last update: (sum c)^2 / sum c^2 of its weights c.",
        ),
        Metric(
            "varangian_worker_weight",
            "gauge",
            "The weight of the worker in the last update with a vector of it; 0 if dropped or gated.",
            WORKER,
        ),
        Metric(
            "varangian_worker_unweighted_rounds",
            "gauge",
            "Its last vectors in a row of which each had less than a hundredth of an equal weight.",
            WORKER,
        ),
        Metric(
            "varangian_worker_last_seen_seconds",
            "gauge",
            "Seconds since a process of the worker was known to be there; none before it has joined.",
            WORKER,
        ),
        Metric("varangian_worker_connected", "gauge", "1 while its process is connected, else 0.", WORKER),
        Metric(
            "varangian_worker_age_rounds",
            "gauge",
            "The age of the model that its last vector was made for, where vectors may be of older ones.",
            WORKER,
        ),
        Metric("varangian_worker_vectors_total", "counter", "Rounds in which its vector counted.", WORKER),
        Metric("varangian_worker_missing_total", "counter", "Rounds that it missed.", WORKER),
        Metric(
            "varangian_worker_waited_for_total",
            "counter",
            "Those of them that waited for it, in vain.",
            WORKER,
        ),
        Metric("varangian_worker_declined_total", "counter", "Rounds that it declined.", WORKER),
        Metric(
            "varangian_worker_dropped_total",
            "counter",
            "Rounds in which its vector was dropped, as not finite or another proven fault.",
            WORKER,
        ),
        Metric(
            "varangian_worker_gated_total",
            "counter",
            "Rounds in which its vector was left out as its step would have raised the held-out loss.",
            WORKER,
        ),
        Metric(
            "varangian_membership_changes_total",
            "counter",
            "Workers that were `admitted` to the run or are `gone` from it since this server started.",
            ("change",),
        ),
    ),
    "Calls and bytes": (
        Metric(
            "varangian_pushes_total",
            "counter",
            "Pushes by outcome: `counted`, `duplicate`, `refused`, `fault`, or `cut` by the other end. The "
            "reason is the code of the [refusal](refusals.md), else empty.",
            ("outcome", "reason"),
        ),
        Metric(
            "varangian_refusals_total",
            "counter",
            "Refused calls and closed connections by [code](refusals.md).",
            ("code",),
        ),
        Metric(
            "varangian_received_bytes_total",
            "counter",
            "Bytes of pushed vectors, by way: `grpc`, or `data` for the connections beside it.",
            ("channel",),
        ),
        Metric(
            "varangian_sent_bytes_total",
            "counter",
            "Bytes of the parameters in pulls, by way.",
            ("channel",),
        ),
        Metric("varangian_rows_bytes", "gauge", "Memory of the vectors of a round."),
    ),
    "Checkpoints and certificates": (
        Metric("varangian_checkpoint_round", "gauge", "The round of the newest checkpoint."),
        Metric("varangian_checkpoint_age_seconds", "gauge", "Seconds since it was complete."),
        Metric(
            "varangian_certificate_expiry_seconds",
            "gauge",
            "Seconds until a certificate ends: that of the `server`, and that of the last call of each "
            "`worker`. Negative once it has ended.",
            ("role", "who"),
        ),
        Metric("varangian_revoked_certificates", "gauge", "Certificates on the list of the server."),
    ),
}
METRICS: Mapping[str, Metric] = {metric.name: metric for metrics in TOPICS.values() for metric in metrics}
"""By name."""


def as_markdown() -> str:
    """The tables of the documentation."""
    parts: list[str] = []
    for topic, metrics in TOPICS.items():
        parts += [f"## {topic}", "", "| name | kind | labels | meaning |", "|---|---|---|---|"]
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            parts.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |")
        parts.append("")
    return "\n".join(parts)
