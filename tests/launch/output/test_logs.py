"""The logger of this package: as it was, before and after a run, however many there are."""

import json
import logging
import subprocess
import sys
import textwrap

import pytest

from varangian.launch.output.logs import log_to_file

OURS = logging.getLogger("varangian")


def state():
    root = logging.getLogger()
    return [*OURS.handlers], OURS.level, OURS.propagate, [*root.handlers], root.level


def test_runs_that_overlap_leave_the_logger_as_it_was(tmp_path):
    before = state()
    first, second = log_to_file(tmp_path / "a.log"), log_to_file(tmp_path / "b.log")
    first.__enter__()
    second.__enter__()
    OURS.info("both")
    first.__exit__(None, None, None)
    OURS.info("one")
    assert OURS.propagate is False
    second.__exit__(None, None, None)
    assert state() == before
    assert [line.split(": ")[1] for line in (tmp_path / "a.log").read_text().splitlines()] == ["both"]
    assert [line.split(": ")[1] for line in (tmp_path / "b.log").read_text().splitlines()] == [
        "both",
        "one",
    ]


def test_a_file_of_json_lines_is_about_the_run_of_its_folder(tmp_path):
    with log_to_file(tmp_path / "server.log", form="json"):
        OURS.warning("one\nline")
    (line,) = map(json.loads, (tmp_path / "server.log").read_text().splitlines())
    assert (line["run"], line["message"], line["level"]) == (tmp_path.name, "one\nline", "warning")


@pytest.mark.exhaustive  # a process of its own, in which nothing else has been imported
def test_a_program_that_imports_and_runs_keeps_its_own_logging(tmp_path):
    script = """
        import logging, sys
        root = logging.getLogger()
        before = list(root.handlers), root.level
        import varangian
        for _ in range(2):
            varangian.run(backend="simulate", data="synthetic", model="softmax", rounds=2, output="runs")
            sys.modules.pop("varangian.api")
            import varangian
        assert (list(root.handlers), root.level) == before
        ours = [logging.getLogger(name) for name in root.manager.loggerDict if name.startswith("varangian")]
        assert not [logger for logger in ours if logger.handlers]
        logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
        logging.getLogger("varangian.server").warning("once")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "once\n"
