"""The first difference of two runs that should have the same bits, from their records.

A round begins with parameters, workers push vectors made from them, and the server steps along what its
rule makes of these. So what is the first not to be the same says where to look: at who counted, at workers,
or at the server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from varangian.experiments.results.labels import flatten
from varangian.experiments.results.run import Run

ELSEWHERE = ("output", "backend", "trackers", "server.port", "server.metrics_port")
"""Settings that change no bit, and differ between most runs."""
FACTS = ("varangian", "git", "python", "packages", "threads", "kernels", "instructions", "own_code")
"""Entries of a manifest on which bits may depend."""
OF_RULE = ("dropped", "gated", "weights", "reference_weight", "ages")
"""What is known of the rule before the step."""
SHOWN = 5
"""Most names in a sentence."""


def first_difference(run: Run, other: Run) -> str | None:
    """A sentence about the first round that is not the same to the bit; None where all rounds are.

    Raises:
        ResultsError: the record of one of them is damaged.
    """
    for mine, theirs in zip_longest(run.records(), other.records()):
        if mine is None or theirs is None:
            ended, which, next_one = (
                (run, "this run", theirs) if mine is None else (other, "the other one", mine)
            )
            why = ended.reason or str((ended.result or {}).get("reason") or "")
            before = f"all rounds before {(next_one or {}).get('round')} have the same bits"
            return f"{before}, and {which} ends there" + (f" ({why})" if why else "")
        if (found := _of_round(mine, theirs)) is not None:
            return found
    ends = {(one.result or {}).get("digest") for one in (run, other)} - {None}
    return "the final parameters differ, and no round has a digest that does" if len(ends) > 1 else None


def circumstances(run: Run, other: Run) -> Iterator[str]:
    """What else is not the same, as it stands in the settings and the manifests of both.

    Raises:
        ResultsError: one of these files cannot be read.
    """
    here, there = _known(run), _known(other)
    for name in sorted(here.keys() | there.keys()):
        if name not in ELSEWHERE and here.get(name) != there.get(name):
            yield f"{name}: {here.get(name)} here, {there.get(name)} there"


def _known(run: Run) -> dict[str, Any]:
    """Settings, and entries of the manifest, by name."""
    manifest = {name: run.manifest[name] for name in FACTS if name in run.manifest}
    return dict(flatten(run.config)) | dict(flatten(manifest))


def _of_round(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    round = mine["round"]
    if round != theirs["round"]:
        return f"the record of round {min(round, theirs['round'])} is missing in one of them"
    here, there = mine.get("pushes") or {}, theirs.get("pushes") or {}
    if here.keys() != there.keys():
        return _others_counted(mine, theirs, here, there)
    if others := sorted(name for name in here if here[name] != there[name]):
        before = "the same parameters" if round else "the beginning"
        return (
            f"round {round} is the first that differs: from {before} the vectors of {_names(others)} came "
            "out otherwise, so look at workers: their settings, data, versions, threads and processors"
        )
    if mine.get("parameters") == theirs.get("parameters"):
        return None
    rule = [name for name in OF_RULE if mine.get(name) != theirs.get(name)]
    what = f"the rule ({', '.join(rule)})" if rule else "the step"
    return (
        f"round {round} is the first that differs: the same vectors came, and {what} at the server came "
        "out otherwise, so look at its settings, versions, kernels, threads and processor"
    )


def _others_counted(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], here: Mapping[str, Any], there: Mapping[str, Any]
) -> str:
    parts: list[str] = []
    for record, names, where in (
        (mine, there.keys() - here.keys(), "here"),
        (theirs, here.keys() - there.keys(), "there"),
    ):
        if names:
            why = record.get("skipped") or record.get("because")
            parts.append(f"{_names(sorted(names))} did not count {where}" + (f" ({why})" if why else ""))
    return f"round {mine['round']} is the first that differs: {'; '.join(parts)}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
