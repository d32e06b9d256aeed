"""Metrics of a server in the text format of Prometheus.

What a server knows at any time is read when somebody asks; a round adds what only its record has. So
metrics cost a round some dictionary operations for each worker, and nothing where there is no metrics port.
Labels are names of the run's workers and codes of the tables alone: nothing that somebody else can choose.
"""

from __future__ import annotations

import platform
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from varangian import __version__
from varangian.protos.refusals import REFUSALS
from varangian.server.identity.sessions import Sessions
from varangian.server.identity.tls import Security
from varangian.server.observability.metric_table import METRICS
from varangian.server.observability.record import RoundRecord
from varangian.server.observability.status import Status
from varangian.server.observability.traffic import Channel, Traffic
from varangian.server.protocol.machine import Machine

__all__ = ["CONTENT_TYPE", "Facts", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""The type of what `Metrics.exposition` returns."""
FRESH = 0.5
"""Seconds for which an exposition is used again, however many ask for it."""
SHARE = 0.02
"""Of the time of the event loop that expositions may take, so with many workers they are older."""
WAYS: tuple[Channel, ...] = ("grpc", "data")
PUSHES: Mapping[tuple[str, ...], float] = {
    **{(outcome, ""): 0.0 for outcome in ("counted", "duplicate", "cut")},
    **{("fault", code): 0.0 for code, refusal in REFUSALS.items() if refusal.spends_f},
}
NEARLY_NOTHING = 0.01
"""Of an equal weight; less counts as none."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The sources of what metrics read when they are asked for."""

    run: str
    """The name of the run folder."""
    machine: Machine
    sessions: Sessions
    refused: Mapping[str, int]
    """Refused calls and closed connections by code."""
    traffic: Traffic
    now: Callable[[], float] = time.monotonic
    """The clock of the machine."""
    row_bytes: Callable[[], int] = int
    """Memory of the vectors of a round."""
    checkpoint: Callable[[], tuple[int, float] | None] = lambda: None
    """The round of the newest checkpoint, and when it was complete in seconds since 1970."""
    security: Security | None = None
    epoch: int = 0
    """How often the run went on before this start of the server."""
    updates: int = 0
    """The number of updates before it."""
    wall: Callable[[], float] = time.time
    """Seconds since 1970."""


@dataclass
class _Histogram:
    """Counts of values by bucket."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list[int])
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """The number of values up to each bound."""
        below, found = 0, list[tuple[str, float]]()
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            found.append(("+Inf" if bound == float("inf") else repr(bound), below))
        return found


@dataclass
class _Worker:
    """What the records of rounds said of one worker."""

    weight: float | None = None
    unweighted: int = 0
    age: int | None = None
    counts: Counter[str] = field(default_factory=Counter[str])
    """Rounds by what it did in them: the names of the counters between `varangian_worker_` and `_total`."""


class Metrics(Collector):
    """The metrics of one server. For its event loop.

    Args:
        facts: their sources.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)
        self._rounds, self._membership = Counter[str](), Counter[str]()
        self._updates = facts.updates
        self._phases: dict[str, _Histogram] = {}
        self._quorum_wait = _Histogram(METRICS["varangian_quorum_wait_seconds"].buckets)
        self._workers: dict[str, _Worker] = {}
        self._last: dict[str, float] = {"varangian_last_round_timestamp_seconds": facts.wall()}
        """The newest values that are in no place but the records of rounds, by metric."""
        self._scores: dict[str, float] = {}
        self._made: tuple[float, bytes] | None = None
        """The last exposition, and until when it is used again."""

    def observe(self, record: RoundRecord) -> None:
        """Take what the record of a round says."""
        updated = record.skipped is None
        self._rounds["update" if updated else "skipped"] += 1
        self._updates += updated
        self._note("last_round_timestamp_seconds", self._facts.wall())
        for phase, seconds in {**record.seconds, **record.aggregation}.items():
            if phase not in self._phases:
                self._phases[phase] = _Histogram(METRICS["varangian_round_seconds"].buckets)
            self._phases[phase].add(seconds)
        if record.quorum_after is not None:
            self._quorum_wait.add(record.quorum_after)
        self._note("update_norm", record.update_norm)
        self._note("learning_rate", record.lr)
        self._note("spread", record.spread)
        self._note("effective_workers", record.effective)
        self._observe_scores(record)
        self._observe_workers(record)
        if record.membership is not None:
            self._membership["admitted"] += len(record.membership["admitted"])
            self._membership["gone"] += len(record.membership["gone"])

    def exposition(self) -> bytes:
        """All metrics, in the text format of Prometheus, version 0.0.4; at most a moment old."""
        began = time.monotonic()
        if self._made is None or began >= self._made[0]:
            text = generate_latest(self._registry)
            took = time.monotonic() - began
            self._made = began + max(FRESH, took / SHARE), text
        return self._made[1]

    def collect(self) -> Iterator[Family]:
        """The families of metrics that have a value now, in the order of the table."""
        found = self._families()
        for name in METRICS:
            if (family := found.get(name)) is not None and family.samples:
                yield family

    def describe(self) -> Iterator[Family]:
        """Nothing, for the registry, which would ask for all of them to know their names."""
        return iter(())

    def _note(self, name: str, value: float | None) -> None:
        if value is not None:
            self._last[f"varangian_{name}"] = value

    def _observe_scores(self, record: RoundRecord) -> None:
        self._note("loss", record.loss)
        self._note("accuracy", record.accuracy)
        self._note("train_loss", record.train_loss)
        self._note("ema_loss", record.ema_loss)
        self._note("ema_accuracy", record.ema_accuracy)
        self._scores |= record.metrics or {}
        if record.loss is not None:
            self._note("evaluated_round", record.round)

    def _observe_workers(self, record: RoundRecord) -> None:
        for name in record.pushes or ():
            self._worker(name).counts["vectors"] += 1
        for kind, names in (
            ("missing", record.missing),
            ("waited_for", record.waited_for),
            ("declined", record.declined),
            ("dropped", record.dropped),
            ("gated", record.gated),
        ):
            for name in names:
                self._worker(name).counts[kind] += 1
        for name, age in (record.ages or {}).items():
            self._worker(name).age = age
        if record.weights is None:
            return
        weights = {**record.weights, **dict.fromkeys((*record.dropped, *record.gated), 0.0)}
        least = NEARLY_NOTHING * sum(map(abs, weights.values())) / max(1, len(weights))
        for name, weight in weights.items():
            worker = self._worker(name)
            worker.weight = weight
            worker.unweighted = worker.unweighted + 1 if abs(weight) <= least else 0

    def _worker(self, name: str) -> _Worker:
        return self._workers.setdefault(name, _Worker())

    def _families(self) -> dict[str, Family]:
        found: dict[str, Family] = {}
        for name, value in self._values().items():
            found[name] = _family(name, {(): value})
        for name, samples in self._samples().items():
            found[name] = _family(name, samples)
        phases = {(phase,): histogram for phase, histogram in self._phases.items()}
        for name, histograms in (
            ("varangian_round_seconds", phases),
            ("varangian_quorum_wait_seconds", {(): self._quorum_wait}),
        ):
            family = HistogramMetricFamily(name, _help(name), labels=METRICS[name].labels)
            for labels, histogram in histograms.items():
                family.add_metric(labels, histogram.buckets(), histogram.total)
            found[name] = family
        return found

    def _values(self) -> dict[str, float]:
        """The metrics without labels."""
        facts = self._facts
        policy, state = facts.machine.policy, facts.machine.state
        status = Status.of(facts.machine, facts.now())
        found = {
            **self._last,
            "varangian_round": status.round,
            "varangian_first_round": state.first,
            "varangian_rounds": status.rounds,
            "varangian_run_finished": status.finished,
            "varangian_model_version": self._updates,
            "varangian_quorum": policy.quorum,
            "varangian_f": policy.f,
            "varangian_deadline_seconds": policy.deadline_of(state),
            "varangian_workers": len(facts.sessions.names),
            "varangian_connected_workers": len(facts.sessions.connected),
            "varangian_counted_workers": len(status.counted),
            "varangian_awaited_workers": len(status.missing),
            "varangian_faulty_workers": len(status.faulty),
            "varangian_rows_bytes": facts.row_bytes(),
        }
        if (checkpoint := facts.checkpoint()) is not None:
            found["varangian_checkpoint_round"] = checkpoint[0]
            found["varangian_checkpoint_age_seconds"] = facts.wall() - checkpoint[1]
        if facts.security is not None:
            found["varangian_revoked_certificates"] = len(facts.security.revoked)
        return found

    def _samples(self) -> dict[str, Mapping[tuple[str, ...], float]]:
        """The metrics with labels, histograms apart."""
        facts = self._facts
        refused = facts.refused
        others = [code for code in refused if code not in REFUSALS]  # errors of the system
        versions = (__version__, platform.python_version(), torch.__version__)
        return {
            "varangian_build_info": {versions: 1},
            "varangian_run_info": {(facts.run, str(facts.epoch)): 1},
            "varangian_rounds_total": {(kind,): self._rounds[kind] for kind in ("update", "skipped")},
            "varangian_score": {(name,): value for name, value in self._scores.items()},
            "varangian_membership_changes_total": {
                (kind,): self._membership[kind] for kind in ("admitted", "gone")
            },
            # From zero on: what appears with a first one has never increased.
            "varangian_pushes_total": {**PUSHES, **dict(facts.traffic.pushes.items())},
            "varangian_refusals_total": {(code,): refused.get(code, 0) for code in (*REFUSALS, *others)},
            "varangian_received_bytes_total": {(way,): facts.traffic.received[way] for way in WAYS},
            "varangian_sent_bytes_total": {(way,): facts.traffic.sent[way] for way in WAYS},
            "varangian_certificate_expiry_seconds": self._certificates(),
            **self._of_workers(),
        }

    def _of_workers(self) -> dict[str, Mapping[tuple[str, ...], float]]:
        """The metrics of each worker that is one of the run now."""
        sessions = self._facts.sessions
        names, connected, silence = sessions.names, sessions.connected, sessions.silences()
        workers = {name: self._workers.get(name, _Worker()) for name in names}
        counters = ("vectors", "missing", "waited_for", "declined", "dropped", "gated")
        return {
            "varangian_worker_weight": {
                (name,): worker.weight for name, worker in workers.items() if worker.weight is not None
            },
            "varangian_worker_unweighted_rounds": {
                (name,): worker.unweighted for name, worker in workers.items() if worker.weight is not None
            },
            "varangian_worker_last_seen_seconds": {
                (name,): silence[name] for name in names if name in silence
            },
            "varangian_worker_connected": {(name,): name in connected for name in names},
            "varangian_worker_age_rounds": {
                (name,): worker.age for name, worker in workers.items() if worker.age is not None
            },
            **{
                f"varangian_worker_{kind}_total": {
                    (name,): worker.counts[kind] for name, worker in workers.items()
                }
                for kind in counters
            },
        }

    def _certificates(self) -> dict[tuple[str, ...], float]:
        facts, now = self._facts, self._facts.wall()
        if facts.security is None:
            return {}
        ends = facts.sessions.certificate_ends()
        return {
            ("server", facts.security.bundle.name): facts.security.renewal.bundle.ends - now,
            **{("worker", name): ends[name] - now for name in facts.sessions.names if name in ends},
        }


def _help(name: str) -> str:
    """The meaning of a metric without links."""
    return re.sub(r"\[(.+?)\]\(.+?\)", r"\1", METRICS[name].meaning)


def _family(name: str, samples: Mapping[tuple[str, ...], float]) -> Family:
    metric = METRICS[name]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, _help(name), labels=metric.labels)
    for labels, value in samples.items():
        family.add_metric(labels, value)
    return family
