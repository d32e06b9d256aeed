"""What attacks on the protocol cost the server: time, missed rounds, refusals and proven faults."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from varangian.experiments.results.cases import Case
from varangian.experiments.results.run import Run


def costs(cases: Sequence[Case], metric: str) -> Iterator[dict[str, Any]]:
    """A row for each rule under each attack; without an attack, what an honest worker costs."""
    for case in cases:
        if not case.runs:
            continue
        scores = [score for score in case.scores(metric) if score is not None]
        yield {
            "aggregator": case.rule,
            "attack": case.attack,
            metric: round(statistics.fmean(scores), 4) if scores else None,
            **_mean([_of_run(run) for run in case.runs]),
            "refused": _refused(case.runs),
        }


def _of_run(run: Run) -> dict[str, float]:
    """Seconds per round, shares of rounds in which workers were missing, and proven faults."""
    workers, count = run.config["workers"], run.config["byzantine"]["count"]
    attackers = {f"w{i:02}" for i in range(workers - count, workers)}
    records = run.rounds
    missing = [worker for record in records for worker in record["missing"]]
    missed = sum(worker in attackers for worker in missing)
    seconds = [sum(record["seconds"].values()) for record in records]
    return {
        "seconds_per_round": statistics.fmean(seconds),
        "median_seconds": statistics.median(seconds),
        "attackers_missed": missed / len(records) / max(1, count),
        "honest_missed": (len(missing) - missed) / len(records) / (workers - count),
        "proven_faults": float(sum(len(record["dropped"]) for record in records)),
    }


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over runs of each number."""
    return {name: round(statistics.fmean(one[name] for one in found), 4) for name in found[0]}


def _refused(runs: Sequence[Run]) -> dict[str, float]:
    """The mean over runs of refused calls and connections, by code."""
    total = Counter[str]()
    for run in runs:
        total.update((run.result or {}).get("refused") or {})
    return {code: round(count / len(runs), 1) for code, count in sorted(total.items())}
