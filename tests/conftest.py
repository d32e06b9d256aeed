"""Settings of every test: one thread, a fixed seed, time enough; and which of the tests run."""

import asyncio
import functools
import inspect
import logging
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from tests.certificates import authority, bundles, copied, listening  # noqa: F401
from tests.extent import EVERYTHING, everything, examples, factor, patience
from tests.sampling import asked_for, sample
from tests.slurm import slurm  # noqa: F401

# Deadline and health check measure wall time, which on a busy machine says nothing about a test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# gRPC's record of a server that is freed without a stop has the server: a test that keeps it, as caplog
# does at this level, frees it twice, and the process crashes.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.INFO)
LIMIT = 240
"""Seconds that a test may take on a quiet machine; none takes long by itself."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all",
        action="store_true",
        help="every combination of parameters, every exhaustive test and all examples of property tests",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads its option
def pytest_configure(config: pytest.Config) -> None:
    if config.option.all:
        os.environ[EVERYTHING] = "1"
    if config.option.timeout is None:
        config.option.timeout = patience(LIMIT)
    settings.load_profile("patient")
    settings.register_profile("extent", max_examples=examples(100), derandomize=not everything())
    settings.load_profile("extent")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reporter(config), "names-of-failures")


def pytest_report_header(config: pytest.Config) -> str:
    extent = "all tests" if everything() else "samples of products of parameters (--all: all tests)"
    return f"extent: {extent}; patience: {factor():.1f} times that of a quiet machine"


def to_its_end(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test that is a coroutine as one that is none; it does not run for ever."""
    if not inspect.iscoroutinefunction(test):
        return test
    return functools.wraps(test)(
        lambda *given, **more: asyncio.run(asyncio.wait_for(test(*given, **more), patience(100)))
    )


@pytest.hookimpl(tryfirst=True)  # before pytest's own, which calls what it finds here
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    if hasattr(pyfuncitem.obj, "hypothesis"):
        inner = pyfuncitem.obj.hypothesis
        inner.inner_test = to_its_end(inner.inner_test)
    else:
        pyfuncitem.obj = to_its_end(pyfuncitem.obj)


def slow_files_first(items: list[pytest.Item]) -> None:
    """So that no process is left alone with a long file at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(trylast=True)  # a sample of what -k and -m leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow_files_first(items)
    if everything():
        return
    arguments = config.args
    cases, left_out = defaultdict(list), set()
    for item in items:
        if asked_for(item.nodeid, arguments):
            continue
        if item.get_closest_marker("exhaustive"):
            left_out.add(item)
        elif hasattr(item, "callspec") and not item.get_closest_marker("whole"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for group in cases.values():
        kept = sample([item.callspec._idlist for item in group], [item.nodeid for item in group])
        left_out.update(item for place, item in enumerate(group) if place not in kept)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


class Reporter:
    """Names of failures as they happen, so that a run that is stopped has said them; SIGTERM is a stop."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.process = os.getpid()

    def pytest_sessionstart(self) -> None:
        self.before = signal.signal(signal.SIGTERM, self._stop)

    def pytest_unconfigure(self) -> None:
        if signal.getsignal(signal.SIGTERM) == self._stop:
            signal.signal(signal.SIGTERM, self.before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a child of a test, which has the handler from its parent
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        pytest.exit("stopped by SIGTERM")  # with pytest's own exit status for it there is a summary

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message.partition("\n")[0] if crash else ""
            terminal.write(f"\nFAILED {report.nodeid} ({report.when}) {reason}".rstrip() + "\n", red=True)


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a disk changes nothing that this process sees; processes that a test starts do wait."""
    monkeypatch.setattr("varangian.files.fsync", lambda descriptor: None)


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` holds NaN, so that what is read before it is written shows."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
