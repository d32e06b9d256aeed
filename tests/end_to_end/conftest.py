import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

import varangian as package


@pytest.fixture
def started(tmp_path):
    """A command in a session of its own, as a terminal starts it."""
    running = []

    def start(*argv):
        environment = os.environ | {"PYTHONPATH": str(pathlib.Path(package.__file__).parents[1])}
        process = subprocess.Popen(
            [sys.executable, "-m", "varangian", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
