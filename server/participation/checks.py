"""What ways with K seats have in common."""

from __future__ import annotations

from collections.abc import Iterator

from varangian.registry import Problem


def check_participants(participants: int | None) -> None:
    if participants is not None and participants < 1:
        raise ValueError(f"`participants` should be null or at least 1 worker. Found {participants}.")


def check_gather(gather: float) -> None:
    if not 0 <= gather < float("inf"):
        raise ValueError(f"`gather` should be a number of seconds, at least 0. Found {gather}.")


def too_many(participants: int | None, n: int) -> Iterator[Problem]:
    if participants is not None and participants > n:
        yield Problem("participants", f"should be at most the number of workers, {n}", participants)
