"""How much of the suite runs, and how long a test may wait: the two settings of a test session."""

import os
import time

EVERYTHING = "VARANGIAN_TEST_ALL"
"""Set by `--all`, for modules that are imported later and for processes that a session starts."""
FACTOR = "VARANGIAN_PATIENCE"
"""How many times longer than on a quiet machine a test may wait; measured when it is not set."""
REFERENCE = 0.025
"""Seconds of `_work` on a slow but quiet core."""
MOST = 10.0


def everything() -> bool:
    return os.environ.get(EVERYTHING) == "1"


def examples(count: int, few: int | None = None) -> int:
    """Examples of a property test: `count` under `--all`, otherwise `few`, or a fifth and at least five."""
    return count if everything() else min(count, few if few is not None else max(5, count // 5))


def patience(seconds: float) -> float:
    """A limit that a quiet machine never reaches, scaled with how slow and how busy this one is."""
    return seconds * factor()


def for_everybody() -> list[str]:
    """Settings of processes whose rounds have the vectors of all workers, however busy the machine is."""
    return [f"server.{setting}={patience(60):.0f}" for setting in ("deadline", "wait_floor")]


def factor() -> float:
    if FACTOR not in os.environ:
        os.environ[FACTOR] = f"{_measured():.2f}"
    value = os.environ[FACTOR]
    try:
        return max(1.0, float(value))
    except ValueError:
        raise ValueError(f"{FACTOR} should be a number, 1 for a quiet machine, and is {value!r}") from None


def _measured() -> float:
    """Speed of a core by the clock on the wall, times the number of programs that want one."""
    begin = time.perf_counter()
    _work()
    slow = (time.perf_counter() - begin) / REFERENCE
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    return min(MOST, max(1.0, slow) * max(1.0, busy))


def _work() -> int:
    return sum(i * i for i in range(300_000))
