"""Which tests run by default, how long they may wait, and what a stopped run says."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests import extent
from tests.sampling import FEWEST, asked_for, sample

ROOT = Path(__file__).parents[1]


def product(*sizes):
    values = [[f"{parameter}{value}" for value in range(size)] for parameter, size in enumerate(sizes)]
    return list(itertools.product(*values))


@pytest.mark.parametrize("sizes", [(55, 3, 2), (13, 12, 6, 2), (100,), (2, 40)])
def test_every_value_of_every_parameter_is_in_the_sample(sizes):
    cases = product(*sizes)
    chosen = sample(cases, ["-".join(case) for case in cases])
    for place, size in enumerate(sizes):
        assert len({cases[i][place] for i in chosen}) == size
    assert len(chosen) == max(FEWEST, *sizes)


def test_few_combinations_run_whole():
    cases = product(4, 4)
    assert sample(cases, ["-".join(case) for case in cases]) == set(range(16))


def test_the_sample_depends_on_names_alone():
    cases = product(9, 8, 3)
    backwards = cases[::-1]
    first, second = (
        {each[i] for i in sample(each, ["-".join(case) for case in each])} for each in (cases, backwards)
    )
    assert first == second


def test_a_test_that_is_named_runs_whole():
    name = "tests/test_x.py::test_y[a-1]"
    assert asked_for(name, ["tests/test_x.py::test_y"])
    assert asked_for(name, ["./tests/test_x.py::test_y[a-1]"])
    assert not asked_for(name, ["tests/test_x.py", "tests/test_z.py::test_y"])


def test_patience_is_a_factor_that_can_be_set(monkeypatch):
    monkeypatch.setenv(extent.FACTOR, "3")
    assert extent.patience(20) == 60
    monkeypatch.setenv(extent.FACTOR, "0.1")
    assert extent.patience(20) == 20
    monkeypatch.setenv(extent.FACTOR, "much")
    with pytest.raises(ValueError, match=r"VARANGIAN_PATIENCE should be a number.*'much'"):
        extent.factor()
    monkeypatch.delenv(extent.FACTOR)
    assert 1 <= extent.factor() <= extent.MOST


def test_examples_are_fewer_by_default(monkeypatch):
    monkeypatch.delenv(extent.EVERYTHING, raising=False)
    assert (extent.examples(100), extent.examples(8), extent.examples(100, few=3)) == (20, 5, 3)
    monkeypatch.setenv(extent.EVERYTHING, "1")
    assert (extent.examples(100), extent.examples(8), extent.examples(100, few=3)) == (100, 8, 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)]
)
def test_a_run_that_is_stopped_has_named_its_failures(tmp_path, number):
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "test_it.py").write_text(
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it\n"
        "def test_fails():\n    assert 1 == 2\n"
        f"def test_stops():\n    os.kill(os.getpid(), {int(number)})\n    __import__('time').sleep(600)\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "test_it.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=extent.patience(100),
    )
    assert done.returncode == 2, done.stdout
    assert "FAILED test_it.py::test_fails (call) assert 1 == 2" in done.stdout
    assert "= FAILURES =" in done.stdout
    assert ("stopped by SIGTERM" if number == signal.SIGTERM else "KeyboardInterrupt") in done.stdout
